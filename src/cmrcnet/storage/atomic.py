"""Write files and folders whole or not at all, one process at a time, and continue what an interrupted run left."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cmrcnet.errors import CmrcnetError, NoSpace, OutputExists, Unwritable

OUR_FOLDERS = (
    "model.json", "bank.json", "student.json", "run.json", "demo.json", "sweep.json", "transfer.json",
    "prediction.json",
)  # fmt: skip
"""A folder that holds one of these was written by cmrcnet, so that --overwrite may replace it."""

log = logging.getLogger("cmrcnet")
_TEMPORARY = re.compile(r"^\.(.+)\.tmp-[0-9a-f]{8}$")


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise `OutputExists` or `Unwritable` before any time is spent on an output that could not be written.

    Even with `overwrite`, a folder is only replaced when it is empty or cmrcnet wrote it: ``--out ~ --overwrite`` must
    not delete a home folder.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise OutputExists(path)
    if path.is_dir() and any(path.iterdir()) and not any((path / name).exists() for name in OUR_FOLDERS):
        raise OutputExists(path, "it is a folder that cmrcnet did not write, so choose another name")
    with translate_os_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            probe = path.parent / f".{path.name}.probe-{uuid.uuid4().hex[:8]}"
            probe.touch()
            probe.unlink()
        except FileNotFoundError as error:  # a location that is no ordinary folder, as /proc
            raise Unwritable(path, "no file can be made there") from error


def final_path(path: Path) -> Path:
    """Final path of a file that is still written under a temporary name, for messages."""
    return Path(*(_TEMPORARY.sub(r"\1", part) for part in Path(path).parts))


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on failure nothing is left.

    Raises
    ------
    NoSpace, Unwritable
    """
    path = Path(path)
    tmp = path.with_name(f".{path.stem}.tmp-{uuid.uuid4().hex[:8]}{path.suffix}")
    with translate_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield tmp
            tmp.replace(path)
        finally:
            tmp.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `path`; on success it replaces `path`, on failure nothing is left.

    An existing `path` is replaced only with `overwrite`, and then at the last moment.

    Raises
    ------
    OutputExists, NoSpace, Unwritable
    """
    path = Path(path)
    refuse_existing(path, overwrite)
    tmp = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    with translate_os_errors(path):
        try:
            tmp.mkdir(parents=True)
            yield tmp
            replace_folder(tmp, path)
        finally:
            shutil.rmtree(tmp, ignore_errors=True)


def replace_folder(new: Path, path: Path) -> None:
    """Move the folder (or file) `new` to `path`; an old one is removed only when the new one is in place."""
    old = path.with_name(f".{path.name}.old-{uuid.uuid4().hex[:8]}")
    if path.exists():
        path.replace(old)
    try:
        new.replace(path)
    except BaseException:  # an interrupt as well
        if old.exists():
            old.replace(path)
        raise
    if old.is_dir():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.unlink(missing_ok=True)


@contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Turn errors of the operating system in writing `path` into `NoSpace` and `Unwritable`.

    Raises
    ------
    NoSpace, Unwritable
    """
    try:
        yield
    except CmrcnetError:
        raise
    except Exception as error:
        if _means_full_disk(error):
            raise NoSpace(final_path(path)) from error
        if isinstance(error, OSError) and error.errno in _FORBIDDEN and _concerns(error, path):
            raise Unwritable(final_path(path), os.strerror(error.errno).lower()) from error
        raise


@contextmanager
def file_lock(path: Path) -> Iterator[bool]:
    """Hold a lock file while the block runs.

    The system releases it when the process ends, however it ends. Where files cannot be locked (some network disks)
    the work goes on without a lock, and the log says so.

    Parameters
    ----------
    path : Path
        The lock file, created if needed in an existing folder.

    Yields
    ------
    bool
        False where another process holds it.

    Raises
    ------
    Unwritable, NoSpace
    """
    from filelock import FileLock, Timeout

    lock, mine = FileLock(path, timeout=0), True
    with translate_os_errors(path.parent):
        try:
            lock.acquire()
        except Timeout:
            mine = False
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            log.warning("Files in %s cannot be locked, so other processes are not kept from it.", path.parent)
    try:
        yield mine
    finally:
        lock.release()


def partial_folder(out: Path, marks: Sequence[str], *, resume: bool = False, overwrite: bool = False) -> Path:
    """Name the folder ``OUT.partial`` of an output that takes long, and decide about what an interrupted run left.

    Parameters
    ----------
    out : Path
        The output.
    marks : sequence of str
        A folder that is not empty and holds none of these files was not written by cmrcnet.
    resume : bool
        Keep what an interrupted run left.
    overwrite : bool
        Delete it, unless `resume` keeps it.

    Returns
    -------
    Path
        It need not exist.

    Raises
    ------
    OutputExists
        It is a foreign folder, or an interrupted run and neither `resume` nor `overwrite` is set.
    """
    partial = Path(out).with_name(f"{Path(out).name}.partial")
    if not partial.exists():
        return partial
    written = any((partial / mark).exists() for mark in marks)
    if not written and (not partial.is_dir() or any(partial.iterdir())):
        raise OutputExists(partial, "it is a folder that cmrcnet did not write, so choose another name")
    if written and not (resume or overwrite):
        raise OutputExists(
            partial, "an interrupted run; pass --resume to go on with it, or --overwrite to start afresh"
        )
    if not resume:
        shutil.rmtree(partial)
    return partial


def reserve(path: Path, size: int) -> None:
    """Make a file this long and reserve its blocks, so that a full disk is noticed before hours are spent.

    Parameters
    ----------
    path : Path
        Created if needed; its content stays.
    size : int
        Bytes.
    """
    with path.open("ab") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except (AttributeError, OSError) as error:  # not on every system, nor on every file system
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise
            file.truncate(size)


_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


def _means_full_disk(error: Exception) -> bool:
    """Whether a library ran out of disk. Some hide the error number: numpy counts bytes, safetensors has a class."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    sentence = str(error)
    return "No space left on device" in sentence or re.search(r"\d+ requested and \d+ written", sentence) is not None


def _concerns(error: OSError, path: Path) -> bool:
    """Whether an error is about the output: writing it may also read files of other folders."""
    if not isinstance(error.filename, str | os.PathLike):
        return True
    parent = path.absolute().parent
    refused = Path(error.filename).absolute()
    return refused.is_relative_to(parent) or parent.is_relative_to(refused)
