from __future__ import annotations

import multiprocessing

from cmrcnet.storage.file_lock import file_lock


def _hold(lock, ready, done) -> None:
    with file_lock(lock) as mine:
        assert mine
        ready.set()
        done.wait(30)


def test_a_lock_is_one_process_s_until_it_ends_however_it_ends(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "lock", ready, done))
    other.start()
    assert ready.wait(30)
    with file_lock(tmp_path / "lock") as mine:
        assert not mine
    other.kill()
    other.join(30)
    with file_lock(tmp_path / "lock") as mine:
        assert mine
