"""Recall: the share of the true nearest spots that an approximate search finds, measured on held-out queries.

A query is a spot of the bank whose own row counts neither as found nor as true: as if it had been held out, and the
index otherwise the very one that is used. A spot as similar as the k-th true one counts as true: where similarities are
equal, which of two spots is found is no loss. Vectors given as `queries` (image embeddings) are taken as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cmrcnet.search.exact import ExactSearch
from cmrcnet.search.neighbours import Neighbours
from cmrcnet.search.searcher import Searcher
from cmrcnet.search.stacked_rows import StackedRows

MEASURED_AT = (50, 500)
"""Neighbours a query for which recall is stated; fewer where the bank has fewer spots."""

QUERIES = 256
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
    def draw(cls, vectors: np.ndarray | StackedRows, seed: int, queries: np.ndarray | None = None) -> HeldOutQueries:
        """Draw spots of the bank (or take other queries), and search exactly for what is true.

        Parameters
        ----------
        vectors : array or StackedRows, shape (bank, dim)
        seed : int
        queries : array, shape (queries, dim), optional
        """
        most = len(vectors) - 1 if queries is None else len(vectors)
        ks = tuple(sorted({max(1, min(k, most)) for k in MEASURED_AT}))
        if queries is None:
            rows = np.random.default_rng(seed).choice(len(vectors), min(QUERIES, len(vectors)), replace=False)
            own = np.sort(rows)
            queries = np.asarray(vectors[own], np.float32)
        else:
            own = np.full(len(queries), -1)
        found = ExactSearch(vectors).nearest(queries, min(len(vectors), ks[-1] + 1))
        others = _without(found, own)
        kth = np.stack([np.sort(others, axis=1)[:, -min(k, others.shape[1])] for k in ks], axis=1)
        return cls(queries, own, kth, ks)

    def recall(self, searcher: Searcher, k: int) -> float:
        """Share of the k true neighbours that are found, over all queries.

        Parameters
        ----------
        searcher : Searcher
        k : int
            One of `ks`.
        """
        wanted = k + 1 if (self.own >= 0).any() and k < len(searcher) else k
        found = _without(searcher.nearest(self.queries, wanted), self.own)
        true = found >= self.kth[:, [self.ks.index(k)]] - _ROUNDING
        return float(np.minimum(true.sum(axis=1), k).mean() / k)


def _without(found: Neighbours, own: np.ndarray) -> np.ndarray:
    """Similarities of what was found, the query's own row counted as nothing."""
    return np.where(found.ids == own[:, None], -np.inf, found.similarity)
