"""One process at a time, for work that two would spoil."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cmrcnet.storage.atomic import translate_os_errors

_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)


@contextmanager
def file_lock(lock: Path) -> Iterator[bool]:
    """Hold a lock while the block runs.

    The system lets go of it when the process ends, however it ends, so that a lock file that lies about means nothing.
    Where files cannot be locked (Windows, some network disks) everybody is told that the lock is theirs.

    Parameters
    ----------
    lock : Path
        The lock file; made when it is not there. Its folder must be.

    Yields
    ------
    bool
        False where another process holds it.

    Raises
    ------
    Unwritable, NoSpace
    """
    with translate_os_errors(lock.parent):
        file = lock.open("w")
    with file:
        yield _locked(file.fileno())


def _locked(file: int) -> bool:
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _TAKEN
    return True
