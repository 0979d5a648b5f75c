"""Refusals of the operating system (no permission, too many open files) told from damage of a file."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from cmrcnet.storage.ownership import final_path

_HINTS = {
    errno.EMFILE: "raise the number of files that may be open: ulimit -n 4096",
    errno.ENFILE: "close other programs, or ask for a higher limit of open files",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f unlimited), or choose another disk",
    errno.EACCES: "ask for permission, or choose another place",
    errno.EPERM: "ask for permission, or choose another place",
    errno.EROFS: "choose a place that you may write to",
    errno.ENOMEM: "free memory, or raise its limit (ulimit -v)",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "correct the links in the path",
    errno.EIO: "check the disk",
}
_ERRNO = re.compile(r"(?:errno = |os error |\[Errno )(\d+)")


def error_number(error: BaseException) -> int | None:
    """The operating system's error number; of libraries that hide it (HDF5, safetensors) from their message."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _ERRNO.search(str(error))
    return int(found[1]) if found else None


def fault_of_file(error: BaseException) -> str:
    """Why a library could not read a file: the system refused it, or else it is damaged."""
    number = error_number(error)
    if number in _HINTS:
        return f"the system refuses it ({os.strerror(number).lower()})"
    return f"the file is truncated, damaged or of another kind ({first_line(error)})"


def first_line(error: BaseException) -> str:
    """The first 120 characters of what a library says of a file, or the name of its error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def raise_refusal(error: BaseException, path: object) -> None:
    """Raise `OSError` where an error of reading `path` says that the system refused, and nothing of the content.

    Call it before calling a file damaged.

    Raises
    ------
    OSError
    """
    number = error_number(error)
    if number in _HINTS:
        raise OSError(number, os.strerror(number), str(path)) from error
    if isinstance(error, MemoryError):
        raise error


def refusal_sentence(error: Exception) -> str:
    """One sentence: what the operating system refused, and what to do."""
    number = error_number(error)
    file = getattr(error, "filename", None)
    what = f" {final_path(Path(file))}" if isinstance(file, str) else ""
    why = (os.strerror(number) if number else str(error).splitlines()[0]).lower()
    return f"The operating system refused{what}: {why}; {_HINTS.get(number or 0, 'correct that and run again')}."
