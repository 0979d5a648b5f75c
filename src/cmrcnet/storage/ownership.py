"""What cmrcnet wrote and may therefore delete: marked folders, and temporary files and folders of its own.

Every folder that cmrcnet writes holds a marker file that lists its files (or patterns of their names, while the folder
is being filled). Only listed files are ever deleted, in a plain folder with a marker, and no link is followed: a link,
a file of the user's in our folder, and a user's folder that happens to have the name of one of ours all stay.

A temporary name says which process on which machine made it (``.OUT.tmp-MACHINE-PROCESS-RANDOM``), so that the next run
tells what a killed process left from what another process is writing at the moment.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

log = logging.getLogger("cmrcnet")

MARKER = ".cmrcnet.json"
LARGEST_MARKER = 1 << 26
"""Bytes; a larger file is no marker."""
OF_THE_SYSTEM = (".DS_Store", "Thumbs.db", "desktop.ini")
"""Files that file managers leave in any folder, as they do those that begin with ._; they go with it."""
ABANDONED_SECONDS = 7 * 24 * 3600.0
"""Age from which a temporary file counts as abandoned where its process cannot be asked for."""

_TEMPORARY = re.compile(
    r"^\.(?P<stem>.+)\.(?P<kind>tmp|old|probe)-(?P<machine>[0-9a-f]{8})-(?P<process>[0-9a-f]+)-[0-9a-z_]{8}"
    r"(?P<suffix>\.[^.]*)?$"
)
_made_here: set[str] = set()


def mark_folder(folder: Path, patterns: Sequence[str] | None = None) -> None:
    """Write the marker of a folder that cmrcnet makes.

    Parameters
    ----------
    folder : Path
    patterns : sequence of str, optional
        Names of files that are cmrcnet's, relative to the folder, ``*`` for anything; for a folder that is still being
        filled. When left out, the files that lie there now are listed, but for those of folders with their own marker.
    """
    files: list[str] = []
    if patterns is None:
        for where, folders, names in os.walk(folder):
            inner = Path(where)
            folders[:] = sorted(name for name in folders if not _marker_of(inner / name))
            files += [(inner / name).relative_to(folder).as_posix() for name in names if name != MARKER]
    content = {"written_by": "cmrcnet", "format": 1, "files": sorted(files), "patterns": list(patterns or ())}
    written = temporary_path(folder / MARKER)
    written.write_text(json.dumps(content), encoding="utf-8")
    written.replace(folder / MARKER)


def is_marked(folder: Path) -> bool:
    """Whether a path is a plain folder (no link) that cmrcnet wrote."""
    return _marker_of(folder) is not None


def foreign_files(folder: Path) -> list[str]:
    """What a folder holds that cmrcnet did not write, by relative name, sorted; links are never ours."""
    return _survey(folder)[1]


def remove_ours(path: Path) -> list[str]:
    """Remove a file, or of a folder everything that cmrcnet wrote; links are not followed and stay.

    Parameters
    ----------
    path : Path
        A folder without a marker stays, unless it is empty.

    Returns
    -------
    list of str
        What stays, by relative name: it is not ours.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return []
    if stat.S_ISREG(mode):
        path.unlink(missing_ok=True)
        return []
    if not stat.S_ISDIR(mode):
        return [path.name]
    ours, foreign = _survey(path)
    with _inside(path.parent) as parent:
        if parent is None:
            walk = ((*each, None) for each in os.walk(path, topdown=False))
        else:  # follows no links
            walk = os.fwalk(path.name, topdown=False, dir_fd=parent)
        for inner, folders, files, here in walk:
            relative = Path(os.path.relpath(inner, path.name if parent is not None else path))
            for name in files:
                if (relative / name).as_posix() in ours:
                    os.unlink(name if here is not None else Path(inner, name), dir_fd=here)
            for name in folders:
                _remove_empty(name if here is not None else str(Path(inner, name)), here)
        _remove_empty(path.name if parent is not None else str(path), parent)
    return foreign


def remove_made(path: Path) -> None:
    """Remove a folder that this process has just made under a name of its own, with everything in it."""
    shutil.rmtree(path, ignore_errors=True)  # refuses a link


def temporary_path(path: Path, kind: str = "tmp", *, keep_suffix: bool = False) -> Path:
    """A new path beside `path` for a temporary file or folder of this process.

    Parameters
    ----------
    path : Path
        What it will become.
    kind : {"tmp", "old", "probe"}
    keep_suffix : bool
        End it like `path`, for writers that choose their format by it.
    """
    stem, suffix = (path.stem, path.suffix) if keep_suffix else (path.name, "")
    name = f".{stem}.{kind}-{_machine()}-{os.getpid():x}-{uuid.uuid4().hex[:8]}{suffix}"
    _made_here.add(name)
    return path.with_name(name)


def temporary_folder(within: Path | None, name: str) -> tempfile.TemporaryDirectory:
    """Make a temporary folder, which is removed with the returned object; remove what killed processes left.

    Parameters
    ----------
    within : Path or None
        Folder to make it in, which is made where needed; the system's temporary folder when left out.
    name : str
        What its name begins with.
    """
    if within is not None:
        within.mkdir(parents=True, exist_ok=True)
        remove_abandoned(within, name)
    prefix = f".{name}.tmp-{_machine()}-{os.getpid():x}-"
    made = tempfile.TemporaryDirectory(prefix=prefix, dir=within, ignore_cleanup_errors=True)
    _made_here.add(Path(made.name).name)
    mark_folder(Path(made.name), ["*"])
    return made


def final_path(path: Path) -> Path:
    """Final path of a file that is still written under a temporary name, for messages."""
    return Path(*(_final_name(part) or part for part in Path(path).parts))


def is_temporary(path: Path) -> bool:
    """Whether a path has a temporary name, of whichever process."""
    return _TEMPORARY.match(path.name) is not None


def is_abandoned(path: Path) -> bool:
    """Whether a path has a temporary name whose process has ended."""
    found = _TEMPORARY.match(path.name)
    if found is None:
        return False
    if found["machine"] == _machine() and os.name == "posix":
        process = int(found["process"], 16)
        return path.name not in _made_here if process == os.getpid() else not _is_alive(process)
    try:
        return time.time() - path.lstat().st_mtime > ABANDONED_SECONDS
    except OSError:
        return False


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left in a folder under temporary names, as far as it is recognised as ours.

    Parameters
    ----------
    folder : Path
    name : str, optional
        Only what would have become this file or folder.
    """
    for path in _temporaries(folder, name):
        if not is_abandoned(path):
            continue
        try:
            left = remove_ours(path)
        except OSError:  # another process has just removed it, or we may not
            continue
        if left:
            log.warning("%s stays: it holds %s, which cmrcnet did not write.", path, left[0])


def recover(path: Path) -> None:
    """Bring back an output that a run was replacing when it was killed; nothing where `path` is there."""
    if os.path.lexists(path):
        return
    olds = [each for each in _temporaries(path.parent, path.name) if ".old-" in each.name and is_abandoned(each)]
    olds = sorted((each for each in olds if is_marked(each)), key=lambda each: each.lstat().st_mtime)
    if olds:
        olds[-1].rename(path)
        log.warning("%s is back as it was: an earlier run was stopped while it replaced it.", path)


def _temporaries(folder: Path, name: str | None) -> list[Path]:
    """Temporary files and folders of any process in a folder."""
    try:
        names = [entry.name for entry in os.scandir(folder)]
    except OSError:
        return []
    finals = {each: _final_name(each) for each in names if each.startswith(".")}
    return [folder / each for each, final in sorted(finals.items()) if final and name in (None, final)]


def _final_name(name: str) -> str | None:
    found = _TEMPORARY.match(name)
    return None if found is None else found["stem"] + (found["suffix"] or "")


def _marker_of(folder: Path) -> dict | None:
    """Content of the marker of a plain folder; None where there is none that we wrote."""
    path = folder / MARKER
    try:
        status = path.lstat()
        if not stat.S_ISDIR(folder.lstat().st_mode) or not stat.S_ISREG(status.st_mode):
            return None
        if status.st_size > LARGEST_MARKER:
            return None
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("written_by") != "cmrcnet":
        return None
    lists = [content.get("files"), content.get("patterns")]
    return content if all(isinstance(each, list) for each in lists) else None


def _survey(folder: Path) -> tuple[set[str], list[str]]:
    """Relative names of files that are ours, and of everything else that is no folder."""
    ours: set[str] = set()
    foreign: list[str] = []
    rules: dict[Path, tuple[Path, dict]] = {}
    for where, folders, names in os.walk(folder):
        inner = Path(where)
        marker = _marker_of(inner)
        if marker is not None:
            rules[inner] = (inner, {**marker, "files": set(map(str, marker["files"]))})
        elif inner.parent in rules and inner != folder:
            rules[inner] = rules[inner.parent]
        foreign += [(inner / name).relative_to(folder).as_posix() for name in folders if (inner / name).is_symlink()]
        for name in names:
            path = inner / name
            known = _is_known(path, *rules[inner]) if inner in rules else _final_name(name) == MARKER
            relative = path.relative_to(folder).as_posix()
            if known:
                ours.add(relative)
            else:
                foreign.append(relative)
    return ours, sorted(foreign)


def _is_known(path: Path, base: Path, rule: dict) -> bool:
    """Whether a file of a marked folder is ours: the marker lists it, or it is temporary, or of the system."""
    try:
        status = path.lstat()
    except OSError:
        return False
    if not stat.S_ISREG(status.st_mode):
        return False
    relative = path.relative_to(base).as_posix()
    if path.name in (MARKER, *OF_THE_SYSTEM) or path.name.startswith("._") or relative in rule["files"]:
        return True
    if path.name.lstrip(".") == "lock" and status.st_size < 1024:
        return True
    inside_temporary = any(_TEMPORARY.match(part) for part in Path(relative).parts)
    return inside_temporary or any(fnmatchcase(relative, str(pattern)) for pattern in rule["patterns"])


@contextmanager
def _inside(folder: Path) -> Iterator[int | None]:
    """An open folder to remove things relative to; None where the system knows no such thing (Windows)."""
    if not hasattr(os, "fwalk"):
        yield None
        return
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield opened
    finally:
        os.close(opened)


def _remove_empty(name: str, parent: int | None) -> None:
    with suppress(OSError):  # not empty, or a link
        os.rmdir(name, dir_fd=parent)


@cache
def _machine() -> str:
    """Name of the machine, and of the container, within which a process number means one process."""
    try:
        space = str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        space = ""
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
