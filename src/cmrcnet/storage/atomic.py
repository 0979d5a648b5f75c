"""Write files and folders whole or not at all, one process at a time, and continue what an interrupted run left."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cmrcnet.errors import BadOption, CmrcnetError, NoSpace, OutputExists, Unwritable
from cmrcnet.storage.ownership import (
    MARKER,
    final_path,
    foreign_files,
    is_marked,
    mark_folder,
    recover,
    remove_abandoned,
    remove_made,
    remove_ours,
    temporary_path,
)
from cmrcnet.storage.refusals import error_number, raise_refusal

log = logging.getLogger("cmrcnet")


def refuse_existing(path: Path, overwrite: bool, *, folder: bool = False) -> None:
    """Raise before any time is spent on an output that could not be written.

    Even with `overwrite` only what cmrcnet wrote is replaced: ``--out ~ --overwrite`` must not delete a home folder,
    and no link is followed. An output that an earlier run was replacing when it was killed is brought back first, and
    what killed runs left beside it is removed.

    Parameters
    ----------
    path : Path
        The output.
    overwrite : bool
        It may be there already.
    folder : bool
        It is a folder, not a file.

    Raises
    ------
    OutputExists, Unwritable, BadOption
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise BadOption("the output", str(path), want="the name of a new file or folder, as in results/model")
    with translate_os_errors(path):
        recover(path)
        _require_replaceable(path, folder)
        if os.path.lexists(path) and not overwrite:
            raise OutputExists(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned(path.parent, path.name)
            probe = temporary_path(path, "probe")
            probe.touch()
            probe.unlink()
        except FileNotFoundError as error:  # a location that is no ordinary folder, as /proc
            raise Unwritable(path, "no file can be made there") from error


def _require_replaceable(path: Path, folder: bool) -> None:
    """Raise `OutputExists` where something lies at `path` that cmrcnet must not replace, whatever is asked for."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISLNK(mode):
        raise OutputExists(path, "it is a link, and links are not followed; name the place itself, or another")
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OutputExists(path, "it is neither a file nor a folder, so choose another name")
    if folder and stat.S_ISREG(mode):
        raise OutputExists(path, "it is a file, and a folder is to be written, so choose another name")
    if stat.S_ISDIR(mode) and any(path.iterdir()):
        if not folder:
            raise OutputExists(path, "it is a folder, and a file is to be written, so choose another name")
        if not is_marked(path):
            raise OutputExists(path, f"it is a folder that cmrcnet did not write (no {MARKER}), so choose another name")
        foreign = foreign_files(path)
        if foreign:
            raise OutputExists(path, f"it holds {foreign[0]}, which cmrcnet did not write; move that elsewhere")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on failure nothing is left.

    Raises
    ------
    NoSpace, Unwritable
    """
    path = Path(path)
    tmp = temporary_path(path, keep_suffix=True)
    with translate_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield tmp
            tmp.replace(path)
        finally:
            tmp.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a folder beside `path` to fill; on success it replaces `path`, on failure nothing is left.

    An existing `path` is replaced only with `overwrite`, and then at the last moment. The folder gets the marker by
    which it is known as cmrcnet's (see `ownership`).

    Raises
    ------
    OutputExists, NoSpace, Unwritable
    """
    path = Path(path)
    refuse_existing(path, overwrite, folder=True)
    tmp = temporary_path(path)
    with translate_os_errors(path):
        try:
            tmp.mkdir(parents=True)
            mark_folder(tmp, ["*"])
            yield tmp
            mark_folder(tmp)
            replace_folder(tmp, path)
        finally:
            remove_made(tmp)


def replace_folder(new: Path, path: Path) -> None:
    """Move the folder `new` to `path`; an old one is removed only when the new one is in place.

    Raises
    ------
    OutputExists
        What lies at `path` was not written by cmrcnet.
    """
    _require_replaceable(path, folder=True)
    old = temporary_path(path, "old")
    if path.exists():
        path.replace(old)
    try:
        new.replace(path)
    except BaseException:  # an interrupt as well
        if old.exists():
            old.replace(path)
        raise
    left = remove_ours(old)
    if left:
        log.warning("%s stays: it holds %s, which cmrcnet did not write.", old, left[0])


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
        if error_number(error) in (errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG):
            raise_refusal(error, final_path(path))
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

    if path.is_symlink():
        raise Unwritable(path, "it is a link, and links are not followed")
    lock, mine = FileLock(path, timeout=0, fallback_to_soft=False), True
    with translate_os_errors(path.parent):
        try:
            lock.acquire()
        except Timeout:
            mine = False
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            log.warning("Files in %s cannot be locked, so other processes are not kept from it.", path.parent)
    try:
        yield mine
    finally:
        with suppress(OSError, NotImplementedError):  # what could not be locked cannot be released either
            lock.release()


def partial_folder(out: Path, *, resume: bool | None = False, overwrite: bool = False) -> Path:
    """Decide about the folder ``OUT.partial`` of an output that takes long, and about what an interrupted run left.

    Parameters
    ----------
    out : Path
        The output.
    resume : bool or None
        Keep what an interrupted run left. None: keep it without being asked.
    overwrite : bool
        Delete it, unless `resume` keeps it.

    Returns
    -------
    Path
        It need not exist; `make_partial` makes it.

    Raises
    ------
    OutputExists
        It is not cmrcnet's or holds something that is not, or it is an interrupted run and neither `resume` nor
        `overwrite` is set.
    Unwritable, NoSpace
    """
    partial = Path(out).with_name(f"{Path(out).name}.partial")
    with translate_os_errors(partial):
        if os.path.lexists(partial):
            _require_replaceable(partial, folder=True)
        began = partial.exists() and any(entry.name != MARKER for entry in partial.iterdir())
        if began and resume is False:
            if not overwrite:
                raise OutputExists(
                    partial, "an interrupted run; pass --resume to go on with it, or --overwrite to start afresh"
                )
            remove_ours(partial)
    return partial


def make_partial(partial: Path, patterns: Sequence[str]) -> None:
    """Make the folder ``OUT.partial`` with the marker by which it may be removed again; one that is there is kept.

    Parameters
    ----------
    partial : Path
        From `partial_folder`.
    patterns : sequence of str
        Names of the files that will lie in it, relative, ``*`` for anything.

    Raises
    ------
    Unwritable, NoSpace
    """
    if not is_marked(partial):
        with translate_os_errors(partial):
            partial.mkdir(parents=True, exist_ok=True)
            mark_folder(partial, patterns)


def remove_partial(partial: Path) -> None:
    """Remove the folder ``OUT.partial`` of an output that is finished, but for files that cmrcnet did not write."""
    with suppress(OSError):  # the output is written; what cannot be removed is removed by the next run
        left = remove_ours(partial)
        if left:
            log.warning("%s stays: it holds %s, which cmrcnet did not write.", partial, left[0])


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


_FORBIDDEN = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP,
)  # fmt: skip
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


def _means_full_disk(error: Exception) -> bool:
    """Whether a library ran out of disk. Some hide the error number: numpy counts bytes, safetensors has a class."""
    if error_number(error) in (errno.ENOSPC, errno.EDQUOT):
        return True
    if error_number(error) is not None:
        return False
    sentence = str(error)
    return "No space left on device" in sentence or re.search(r"\d+ requested and \d+ written", sentence) is not None


def _concerns(error: OSError, path: Path) -> bool:
    """Whether an error is about the output: writing it may also read files of other folders."""
    if not isinstance(error.filename, str | os.PathLike):
        return True
    parent = path.absolute().parent
    refused = Path(error.filename).absolute()
    return refused.is_relative_to(parent) or parent.is_relative_to(refused)
