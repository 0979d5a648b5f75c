from __future__ import annotations

import errno
import multiprocessing

import pytest

from cmrcnet.errors import Unwritable
from cmrcnet.storage.atomic import file_lock


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


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_does_not_stop_the_work(tmp_path, monkeypatch, caplog, number):
    def refuse(*_):
        raise OSError(number, "no locks here")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with caplog.at_level("WARNING", "cmrcnet"), file_lock(tmp_path / "lock") as mine:
        assert mine
    assert len(caplog.records) == 1 and "cannot be locked" in caplog.text


def test_a_folder_that_may_not_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(Unwritable), file_lock(tmp_path / "file" / "lock"):
        pass
