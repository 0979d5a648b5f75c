"""Features of frozen encoders on disk: computed once, then mapped."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cmrcnet.errors import BadOption
from cmrcnet.storage.arrays import open_array, write_array

log = logging.getLogger("cmrcnet")

DEFAULT_GB = 64.0
"""Size limit of `TokenCache.default`, unless CMRCNET_CACHE_GB is set."""

IN_USE_SECONDS = 3600.0
"""Entries that were used in the last hour may be mapped by a running job, and are not removed to make room."""


class TokenCache:
    """A folder of arrays that can be computed again: features, image statistics and patches.

    Entries are named by everything that they depend on (see `features.extract`), so that nothing in the folder can be
    out of date, several processes may share it, and any file of it may be deleted at any time. A damaged entry counts
    as absent.

    Parameters
    ----------
    folder : Path
        Created at the first write.
    most_bytes : int, optional
        Entries that were used longest ago are removed when the folder grows beyond this; no limit when left out.

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
        path = self._path(kind, name)
        found = open_array(path, shape, np.dtype(dtype))
        if found is not None:
            _touch(path)
        elif path.exists():
            log.warning("The cache entry %s is damaged and is computed again.", path)
        return found

    def put(
        self, kind: str, name: str, shape: tuple[int, ...], dtype: type, blocks: Iterable[np.ndarray]
    ) -> np.ndarray:
        """Write an entry from blocks that follow each other along the first axis, and map it.

        Raises
        ------
        NoSpace
            There is no room; nothing half-written is left.
        Unwritable
        """
        written = write_array(self._path(kind, name), shape, np.dtype(dtype), blocks)
        if self.most_bytes is not None:
            self.trim(self.most_bytes)
        return written

    def drop(self, kind: str, name: str) -> None:
        """Remove an entry, if it is there."""
        _remove(self._path(kind, name))

    def size_bytes(self) -> int:
        """Bytes that the folder holds now."""
        return sum(size for _, size, _ in self._files())

    def trim(self, most_bytes: int) -> int:
        """Remove the least recently used entries until at most `most_bytes` are left, and return the bytes freed.

        Entries used in the last hour stay. Temporary files of killed processes are removed after a day.
        """
        now = time.time()
        files = sorted(self._files(), key=lambda each: each[2])
        total, freed = sum(size for _, size, _ in files), 0
        for path, size, used in files:
            abandoned = ".tmp-" in path.name and now - used > 24 * 3600
            if abandoned or (total - freed > most_bytes and now - used > IN_USE_SECONDS):
                freed += size if _remove(path) else 0
        return freed

    def clear(self) -> int:
        """Remove every entry and return the bytes freed. Jobs that map them are not disturbed (except on Windows)."""
        return sum(size for path, size, _ in list(self._files()) if _remove(path))

    def _path(self, kind: str, name: str, suffix: str = ".npy") -> Path:
        return self.folder / kind / name[:2] / f"{name}{suffix}"

    def _files(self) -> list[tuple[Path, int, float]]:
        """(path, bytes, time of last use) of every entry; other files in the folder are left alone."""
        found = []
        for kind in ("tokens", "patches", "parts", "locations"):  # the last two of earlier versions
            for path in sorted((self.folder / kind).rglob("*")):
                try:
                    status = path.stat()
                except OSError:  # another process has just removed it
                    continue
                if path.is_file():
                    found.append((path, status.st_size, status.st_mtime))
        return found


def _touch(path: Path) -> None:
    """Record the time of use; a read-only cache stays as it is."""
    try:
        status = path.stat()
        if time.time() - status.st_mtime > 60:
            os.utime(path)
    except OSError:
        pass


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True
