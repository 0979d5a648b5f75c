"""Prefetching: prepare the next items in threads while the current one is processed."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_READERS = 8

_END = object()


def read_ahead(items: Iterable[Item], depth: int = 2) -> Iterator[Item]:
    """Iterate over `items`, at most `depth` of them prepared before they are asked for.

    The order stays. One thread makes the items, so that a seeded generator behind them draws as it would without.
    An exception in `items` is raised here. Leaving the iteration early ends the thread.

    Parameters
    ----------
    items : iterable
        Iterated in a thread of its own.
    depth : int
        Bounds the memory that waits.
    """
    ready: queue.Queue = queue.Queue(maxsize=depth)
    left = threading.Event()

    def put(what: object) -> bool:
        while not left.is_set():
            try:
                ready.put(what, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((_END, None))
        except BaseException as error:  # handed to whoever iterates
            put((_END, error))

    thread = threading.Thread(target=work, name="cmrcnet-read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        left.set()
        thread.join()


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int = 1, depth: int = 1
) -> Iterator[Result]:
    """Apply `function` to each of the items in threads, some items ahead of the one that is processed.

    The results come in the order of the items. An exception in `function` is raised here, in its turn. Leaving the
    iteration early drops waiting items and ends the threads.

    Parameters
    ----------
    function : callable
        Reads or decodes, so that it releases the GIL.
    items : iterable
        Iterated in the caller's own thread.
    workers : int
        Threads.
    depth : int
        Results that wait at most, besides one a thread: bounds the memory.
    """
    waiting: deque[Future] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="cmrcnet-map-ahead")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers + depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def reading_threads(device: str) -> int:
    """Threads that cut patches: one beside an encoder on the CPU, which uses the cores itself; several for a GPU.

    Parameters
    ----------
    device : str
        Kind of the device that encodes: cpu, cuda, mps.
    """
    return 1 if device == "cpu" else max(1, min(MOST_READERS, (os.cpu_count() or 1) - 1))
