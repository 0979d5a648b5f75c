"""Features of frozen encoders on disk: computed once, then mapped."""

from __future__ import annotations

import errno
import logging
import math
import os
import stat
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from cmrcnet.errors import BadOption, NoSpace
from cmrcnet.storage.arrays import MARK, TAIL, open_array, write_array
from cmrcnet.storage.ownership import is_abandoned, is_temporary

log = logging.getLogger("cmrcnet")

DEFAULT_GB = 64.0
"""Size limit of `TokenCache.default`, unless CMRCNET_CACHE_GB is set."""

IN_USE_SECONDS = 3600.0
"""Entries that were used in the last hour may be mapped by a running job, and are not removed to make room."""


_said: set[Path] = set()
"""Folders of which the log has said that they cannot be written."""

_stand_ins: list[tempfile.TemporaryDirectory] = []
"""Temporary folders that stand in for them; removed when the process ends."""


class TokenCache:
    """A folder of arrays that can be computed again: features, image statistics and patches.

    Entries are named by everything that they depend on (see `features.extract`), so that nothing in the folder can be
    out of date, several processes may share it, and any file of it may be deleted at any time. A damaged entry counts
    as absent. Where the folder cannot be written (a read-only home), what is computed is kept until this process ends,
    and the log says so once.

    Parameters
    ----------
    folder : Path
        Created at the first write.
    most_bytes : int, optional
        Entries that were used longest ago are removed when the folder grows beyond this; no limit when left out. The
        folder is looked through at the first write, and then whenever a hundredth of the limit was written, so that a
        process may exceed it by that much.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> import cmrcnet as cn
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = cn.TokenCache(Path(folder))
    ...     values = np.arange(6, dtype=np.float32).reshape(2, 3)
    ...     _ = cache.put("tokens", "a1b2", values.shape, np.float32, [values])
    ...     print(np.array(cache.get("tokens", "a1b2", (2, 3), np.float32)).tolist())
    [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    """

    def __init__(self, folder: Path, most_bytes: int | None = None) -> None:
        self.folder = Path(folder)
        self.most_bytes = most_bytes
        self._instead: Path | None = None  # stands in for a folder that cannot be written
        self._untrimmed: float = math.inf  # bytes written since the folder was looked through

    @classmethod
    def default(cls) -> TokenCache:
        """The user's cache: ``$CMRCNET_CACHE``, or the operating system's folder for caches.

        It keeps to ``$CMRCNET_CACHE_GB`` gigabytes (64 when not set).
        """
        import platformdirs

        place = os.environ.get("CMRCNET_CACHE") or platformdirs.user_cache_dir("cmrcnet")
        size = os.environ.get("CMRCNET_CACHE_GB", str(DEFAULT_GB))
        try:
            most = float(size)
        except ValueError:
            most = -1.0
        if not most > 0:
            raise BadOption("CMRCNET_CACHE_GB", size, want="gigabytes that the cache may fill, above 0")
        return cls(Path(place).expanduser(), int(most * 1e9))

    def get(self, kind: str, name: str, shape: tuple[int, ...] | None, dtype: type) -> np.ndarray | None:
        """Map an entry, or None when it is absent or damaged.

        Parameters
        ----------
        kind : str
            "tokens" or "patches".
        name : str
            Fingerprint of what the content depends on.
        shape : tuple of int or None
            What it must have; None takes any.
        """
        for path in self._paths(kind, name):
            try:
                found = open_array(path, shape, np.dtype(dtype))
                if found is not None:
                    with suppress(OSError):  # a read-only cache stays as it is
                        if time.time() - path.stat().st_mtime > 60:
                            os.utime(path)
                    return found
                if path.exists():
                    log.warning("The cache entry %s is damaged or of another version, and is computed again.", path)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    raise
                log.warning("The cache entry %s cannot be read (%s) and is computed again.", path, error.strerror)
        return None

    def put(
        self, kind: str, name: str, shape: tuple[int, ...], dtype: type, blocks: Iterable[np.ndarray]
    ) -> np.ndarray:
        """Write an entry from blocks that follow each other along the first axis, and map it.

        Raises
        ------
        NoSpace
            There is no room; nothing half-written is left.
        """
        path = self._paths(kind, name)[-1]
        if self._instead is None and not self._can_write(path):
            _stand_ins.append(tempfile.TemporaryDirectory(prefix="cmrcnet-cache-", ignore_cleanup_errors=True))
            self._instead = Path(_stand_ins[-1].name)
            path = self._paths(kind, name)[-1]
        written = write_array(path, shape, np.dtype(dtype), blocks)
        if self.most_bytes is not None:
            self._untrimmed += written.nbytes
            if self._untrimmed > self.most_bytes / 100:
                self.trim(self.most_bytes)
                self._untrimmed = 0
        return written

    def drop(self, kind: str, name: str) -> None:
        """Remove an entry, if it is there."""
        for path in self._paths(kind, name):
            _remove(path)

    def size_bytes(self) -> int:
        """Bytes that the folder holds now."""
        return sum(size for _, size, _ in self._files())

    def trim(self, most_bytes: int) -> int:
        """Remove the least recently used entries until at most `most_bytes` are left, and return the bytes freed.

        Entries used in the last hour stay. Temporary files of killed processes are removed.
        """
        now = time.time()
        files = sorted(self._files(), key=lambda each: each[2])
        total, freed = sum(size for _, size, _ in files), 0
        for path, size, used in files:
            abandoned = is_abandoned(path)
            if abandoned or (total - freed > most_bytes and now - used > IN_USE_SECONDS):
                freed += size if _remove_ours(path) else 0
        return freed

    def clear(self) -> int:
        """Remove every entry and return the bytes freed. Jobs that map them are not disturbed (except on Windows)."""
        return sum(size for path, size, _ in self._files() if _remove_ours(path))

    def _paths(self, kind: str, name: str) -> list[Path]:
        """Where an entry may lie: in the folder, and in the one that stands in for it."""
        folders = [self.folder, *([] if self._instead is None else [self._instead])]
        return [folder / kind / name[:2] / f"{name}.npy" for folder in folders]

    def _can_write(self, path: Path) -> bool:
        """Whether an entry can be written; said once where it cannot."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if os.access(path.parent, os.W_OK):
                return True
            why = "permission denied"
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace(path) from error
            why = (error.strerror or str(error)).lower()
        if self.folder not in _said:
            _said.add(self.folder)
            log.warning(
                "The cache %s cannot be written (%s), so every run computes its features again; set CMRCNET_CACHE to "
                "a folder that you may write to.",
                self.folder,
                why,
            )
        return False

    def _files(self) -> list[tuple[Path, int, float]]:
        """(path, bytes, time of last use) of every file that is named and placed as an entry; others are left alone."""
        found = []
        for kind in ("tokens", "patches"):
            for where, folders, names in os.walk(self.folder / kind):
                if Path(where).is_symlink():  # what a link points to is not ours
                    folders.clear()
                    continue
                for path in (Path(where, name) for name in sorted(names)):
                    if not (is_temporary(path) or (path.suffix == ".npy" and path.parent.name == path.stem[:2])):
                        continue
                    try:
                        status = path.lstat()
                    except OSError:  # another process has just removed it
                        continue
                    if stat.S_ISREG(status.st_mode):
                        found.append((path, status.st_size, status.st_mtime))
        return found


def _remove_ours(path: Path) -> bool:
    """Remove a file of `_files` if it is temporary, or has our mark at its end."""
    if not is_temporary(path):
        try:
            with path.open("rb") as file:
                file.seek(-TAIL, os.SEEK_END)
                if file.read(len(MARK) - 1) != MARK[:-1]:  # of any format
                    return False
        except OSError:
            return False
    return _remove(path)


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True
