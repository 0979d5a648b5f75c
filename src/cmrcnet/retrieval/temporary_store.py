"""The temporary folder that a bank lives in until it is saved; it goes with the bank."""

from __future__ import annotations

import shutil
import tempfile
import time
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmrcnet.storage.cache import TokenCache

_PREFIX = "bank-in-use-"
_ABANDONED_SECONDS = 7 * 24 * 3600.0
_open: weakref.WeakSet[tempfile.TemporaryDirectory] = weakref.WeakSet()


def open_shelf(cache: TokenCache | None) -> tempfile.TemporaryDirectory:
    """A temporary folder, removed when the object that is returned goes.

    Parameters
    ----------
    cache : TokenCache or None
        Where it is made; by default in the system's own temporary folder.
    """
    if cache is not None:
        _sweep(cache)
    within = None if cache is None else cache.folder
    shelf = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=within, ignore_cleanup_errors=True)
    _open.add(shelf)
    return shelf


def close_shelves() -> None:
    """Remove the folders of all banks that are still held: for a process that ends by `os._exit`."""
    for shelf in list(_open):
        shelf.cleanup()


def _sweep(cache: TokenCache) -> None:
    """Make the cache's folder, and remove what killed processes left in it."""
    cache.folder.mkdir(parents=True, exist_ok=True)
    for left in sorted(cache.folder.glob(f"{_PREFIX}*")):
        if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
