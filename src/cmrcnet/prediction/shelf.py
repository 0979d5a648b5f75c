"""The temporary folder that a bank lives in until it is saved; it goes with the bank."""

from __future__ import annotations

import shutil
import tempfile
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmrcnet.encoding.token_cache import TokenCache

_PREFIX = "bank-in-use-"
_ABANDONED_SECONDS = 7 * 24 * 3600.0


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
    return tempfile.TemporaryDirectory(prefix=_PREFIX, dir=within, ignore_cleanup_errors=True)


def _sweep(cache: TokenCache) -> None:
    """Make the cache's folder, and remove what killed processes left in it."""
    cache.folder.mkdir(parents=True, exist_ok=True)
    for left in sorted(cache.folder.glob(f"{_PREFIX}*")):
        if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
