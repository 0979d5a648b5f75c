"""Write a file or a folder whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cmrcnet.errors import CmrcnetError, NoSpace, OutputExists, Unwritable

OUR_FOLDERS = (
    "model.json", "bank.json", "student.json", "run.json", "demo.json", "sweep.json", "transfer.json",
    "prediction.json",
)  # fmt: skip
"""A folder that holds one of these was written by us, so that --overwrite may replace it."""

_DRAFT = re.compile(r"^\.(.+)\.tmp-[0-9a-f]{8}$")


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise `OutputExists` or `Unwritable` before any time is spent on an output that could not be written.

    Even with `overwrite`, a folder is only replaced when it is empty or one of ours: ``--out ~ --overwrite`` must
    not cost anybody a home.
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
    """The name that `path` will bear once the temporary files around it have taken their places, for what is told
    meanwhile."""
    return Path(*(_DRAFT.sub(r"\1", part) for part in Path(path).parts))


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; on success it takes the place of `path`, on failure nothing is left.

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
    """Give an empty folder beside `path`; on success it takes the place of `path`, on failure nothing is left.

    An existing `path` is only replaced, and then at the last moment, when `overwrite` is set.

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
    """Put the folder (or file) `new` where `path` is; the old one goes only once the new one stands."""
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
    """Turn the operating system's translate_os_errors to write `path` into our sentences.

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


def reserve(path: Path, size: int) -> None:
    """Make a file so long, and take the room for it, so that a disk without room says so before hours are spent.

    Parameters
    ----------
    path : Path
        Made when it is not there; what it holds stays.
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
    """Whether a library ran out of disk. Not all give the number: numpy counts bytes, safetensors has its own class."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    sentence = str(error)
    return "No space left on device" in sentence or re.search(r"\d+ requested and \d+ written", sentence) is not None


def _concerns(error: OSError, path: Path) -> bool:
    """Whether a refusal is about the output: what is written may also read files of other folders."""
    if not isinstance(error.filename, str | os.PathLike):
        return True
    parent = path.absolute().parent
    refused = Path(error.filename).absolute()
    return refused.is_relative_to(parent) or parent.is_relative_to(refused)
