"""Reading ahead changes when, never what."""

from __future__ import annotations

import threading
import time

import pytest

from cmrcnet.features.device import map_ahead, read_ahead


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "cmrcnet-read-ahead"]


@pytest.mark.parametrize("depth", [1, 3])
def test_items_come_in_order(depth):
    assert list(read_ahead(range(50), depth)) == list(range(50))
    assert ours() == []


def test_no_more_is_prepared_than_asked_for():
    made = []

    def items():
        for number in range(20):
            made.append(number)
            yield number

    ahead = read_ahead(items(), depth=2)
    assert next(ahead) == 0
    time.sleep(0.3)
    assert len(made) <= 4  # the one given, two that wait, one in hand
    ahead.close()


def test_a_fault_comes_out_in_its_place():
    def items():
        yield 1
        raise ZeroDivisionError("in the thread")

    ahead = read_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(ZeroDivisionError, match="in the thread"):
        next(ahead)


def test_leaving_early_ends_the_thread():
    for item in read_ahead(iter(int, 1)):  # endless zeros
        assert item == 0
        break
    time.sleep(0.3)
    assert ours() == []


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("depth", [0, 1, 5])
def test_results_come_in_the_order_of_the_items_and_few_wait(workers, depth):
    taken, started = [], []

    def work(item):
        started.append(item)
        time.sleep(0.002 * (item % 3))
        return 10 * item

    for number, result in enumerate(map_ahead(work, range(20), workers=workers, depth=depth)):
        assert len(started) <= number + 1 + workers + depth
        taken.append(result)
    assert taken == [10 * item for item in range(20)]


def test_an_error_in_a_thread_comes_out_in_its_turn():
    def work(item):
        if item == 2:
            raise KeyError(item)
        return item

    results = map_ahead(work, range(5), workers=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(KeyError):
        next(results)


def test_leaving_early_ends_the_threads_of_a_map():
    results = map_ahead(lambda item: item, iter(int, 1), workers=2)
    next(results)
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cmrcnet-map-ahead")]
