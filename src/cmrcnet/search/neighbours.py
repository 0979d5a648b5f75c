"""Neighbours: which bank spots lie nearest to each query."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cmrcnet.errors import ShapeMismatch


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The k nearest bank spots of each query, most similar first.

    Parameters
    ----------
    ids : numpy.ndarray, shape (queries, k), int64
        Rows of the bank.
    similarity : numpy.ndarray, shape (queries, k), float32
        Cosine of each.
    """

    ids: np.ndarray
    similarity: np.ndarray

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.ids.shape != self.similarity.shape:
            raise ShapeMismatch("similarity", want=self.ids.shape, got=self.similarity.shape)

    @property
    def k(self) -> int:
        """Neighbours a query."""
        return self.ids.shape[1]
