"""Tokens of frozen encoders on disk, found again by content: computed once, mapped ever after."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cmrcnet.errors import BadOption
from cmrcnet.storage.arrays import open_array, write_array
from cmrcnet.storage.atomic import atomic_file

log = logging.getLogger("cmrcnet")

FORMAT = 1
DEFAULT_GB = 64.0
"""Size that `TokenCache.default` keeps to, unless CMRCNET_CACHE_GB says another."""

IN_USE_SECONDS = 3600.0
"""What was used in the last hour may be mapped by a running job, and is never removed to make room."""


class TokenCache:
    """A folder of arrays that can be computed again: tokens, patches, and which patches lie at which locations.

    Entries are named by content (see `encode_patches`), so that nothing in the folder can be out of date, several
    processes may share it, and any file of it may be deleted at any time. A damaged entry counts as absent.

    Parameters
    ----------
    folder : Path
        Made when something is first written.
    most_bytes : int, optional
        Entries that were used longest ago are removed when the folder grows beyond this; no limit when left out.
    """

    def __init__(self, folder: Path, most_bytes: int | None = None) -> None:
        self.folder = Path(folder)
        self.most_bytes = most_bytes

    @classmethod
    def default(cls) -> TokenCache:
        """The user's cache: ``$CMRCNET_CACHE``, or the place that the operating system has for caches.

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
            Shelf: "tokens", "patches".
        name : str
            Fingerprint of the content.
        shape : tuple of int or None
            What it must have; None takes any.
        dtype : numpy type
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

    def recall(self, place: str) -> str | None:
        """The name of the patches at a location (see `place_name`), when somebody has cut them before."""
        path = self._path("locations", place, ".json")
        try:
            found = json.loads(path.read_text())
            digest = found["patches"] if found["format"] == FORMAT else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        _touch(path)
        return digest if isinstance(digest, str) else None

    def remember(self, place: str, digest: str) -> None:
        """Note which patches lie at a location."""
        path = self._path("locations", place, ".json")
        with atomic_file(path) as tmp:
            tmp.write_text(json.dumps({"format": FORMAT, "patches": digest}))

    def size_bytes(self) -> int:
        """Bytes that the folder holds now."""
        return sum(size for _, size, _ in self._files())

    def trim(self, most_bytes: int) -> int:
        """Remove what was used longest ago until at most `most_bytes` are left; give the bytes freed.

        What was used in the last hour stays. Temporary files of processes that were killed go after a day.
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
        """Remove every entry; give the bytes freed. Jobs that map them go on undisturbed (not on Windows)."""
        return sum(size for path, size, _ in list(self._files()) if _remove(path))

    def _path(self, kind: str, name: str, suffix: str = ".npy") -> Path:
        return self.folder / kind / name[:2] / f"{name}{suffix}"

    def _files(self) -> list[tuple[Path, int, float]]:
        """(path, bytes, time of last use) of everything on our shelves; other files in the folder are not ours."""
        found = []
        for shelf in ("tokens", "parts", "patches", "locations"):
            for path in sorted((self.folder / shelf).rglob("*")):
                try:
                    status = path.stat()
                except OSError:  # another process has just removed it
                    continue
                if path.is_file():
                    found.append((path, status.st_size, status.st_mtime))
        return found


def _touch(path: Path) -> None:
    """Note the time of use; a cache that may only be read stays as it is."""
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
