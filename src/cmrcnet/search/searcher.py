"""What every way of searching offers, whatever it keeps inside."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from cmrcnet.search.neighbours import Neighbours


@runtime_checkable
class Searcher(Protocol):
    """Finds the bank spots whose vectors have the largest cosine with a query.

    The similarities are exact cosines, also where the search that found the spots is approximate.
    """

    def __len__(self) -> int:
        """Spots of the bank."""
        ...

    def nearest(self, queries: np.ndarray, k: int) -> Neighbours:
        """The k nearest bank spots of each query, most similar first.

        Parameters
        ----------
        queries : array, shape (queries, dim), float32
        k : int
            At most the bank's length.

        Raises
        ------
        ShapeMismatch, BadOption
        """
        ...
