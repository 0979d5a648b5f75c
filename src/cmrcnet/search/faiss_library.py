"""The library behind the approximate indexes (docs/concepts/search.md says why this one), loaded when one is used."""

from __future__ import annotations

from types import ModuleType

from cmrcnet.errors import MissingExtra


def load_faiss() -> ModuleType:
    """FAISS.

    Raises
    ------
    MissingExtra
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingExtra("faiss", "An approximate search index", "'cmrcnet[ann]'") from error
    return faiss
