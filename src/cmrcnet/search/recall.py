"""Recall: the share of the true nearest spots that an approximate search finds, measured on held-out queries.

A query is a spot of the bank whose own row counts neither as found nor as true, and which had no part in the index
while recall was measured (see `build`): an index is at its best on what it was made from. A spot as similar as the k-th
true one counts as true: where similarities are equal, which of two spots is found is no loss. Vectors given as
`queries` (image embeddings) are taken as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cmrcnet.search.exact import ExactSearch
from cmrcnet.search.searcher import Searcher
from cmrcnet.search.stacked_rows import StackedRows
from cmrcnet.search.unit import unit_rows

MEASURED_AT = (1, 10, 50, 500)
"""Neighbours a query for which recall is stated; fewer where the bank has fewer spots."""

QUERIES = 256
SHARE_HELD_OUT = 0.1
_ROUNDING = 2e-6


@dataclass(frozen=True, eq=False)
class HeldOutQueries:
    """Queries, and the similarity that a true neighbour of each has at least.

    Parameters
    ----------
    queries : numpy.ndarray, shape (queries, dim), float32
    own : numpy.ndarray, shape (queries,), int64
        Bank row of each query itself; -1 for one that is not of the bank.
    kth : numpy.ndarray, shape (queries, ks), float32
        Similarity of the k-th true neighbour, for each k.
    ks : tuple of int
    """

    queries: np.ndarray
    own: np.ndarray
    kth: np.ndarray
    ks: tuple[int, ...]

    @classmethod
    def draw(
        cls, vectors: np.ndarray | StackedRows, seed: int, queries: np.ndarray | None = None, absent: bool = False
    ) -> HeldOutQueries:
        """Draw spots of the bank (or take other queries), and search exactly for what is true.

        Parameters
        ----------
        vectors : array or StackedRows, shape (bank, dim)
        seed : int
        queries : array, shape (queries, dim), optional
        absent : bool
            The spots drawn will not be in the index at all: none of them is another's true neighbour.
        """
        if queries is None:
            count = min(QUERIES, max(1, int(SHARE_HELD_OUT * len(vectors))))
            own = np.sort(np.random.default_rng(seed).choice(len(vectors), count, replace=False))
            queries = unit_rows(vectors[own], "vectors")
        else:
            own = np.full(len(queries), -1)
        passed_over = len(own) if absent else int((own >= 0).any())
        most = max(1, len(vectors) - passed_over)
        ks = tuple(sorted({min(k, most) for k in MEASURED_AT}))
        found = ExactSearch(vectors).nearest(queries, min(len(vectors), ks[-1] + passed_over))
        not_true = np.isin(found.ids, own) if absent else found.ids == own[:, None]
        true = -np.sort(-np.where(not_true, -np.inf, found.similarity), axis=1)
        return cls(queries, own, true[:, [k - 1 for k in ks]], ks)

    def recall(self, searcher: Searcher, k: int) -> float:
        """Share of the k true neighbours that are found, over all queries.

        Parameters
        ----------
        searcher : Searcher
        k : int
            One of `ks`.
        """
        found = searcher.nearest(self.queries, min(len(searcher), k + int((self.own >= 0).any())))
        others = found.ids != self.own[:, None]
        true = others & (found.similarity >= self.kth[:, [self.ks.index(k)]] - _ROUNDING)
        return float(np.minimum(true.sum(axis=1), k).mean() / k)
