"""From candidates to neighbours: exact cosines, most similar first."""

from __future__ import annotations

import numpy as np

from cmrcnet.search.neighbours import Neighbours
from cmrcnet.search.stacked_rows import StackedRows

_VALUES_AT_ONCE = 2**22


def ranked(candidates: np.ndarray, similarity: np.ndarray, k: int) -> Neighbours:
    """The k most similar candidates; among equals the lower row of the bank first.

    Parameters
    ----------
    candidates : array of int, shape (queries, candidates)
    similarity : array, shape (queries, candidates), float32
        Exact cosines.
    k : int
    """
    order = np.lexsort((candidates, -similarity), axis=1)[:, :k]
    ids = np.take_along_axis(candidates, order, axis=1)
    return Neighbours(ids, np.take_along_axis(similarity, order, axis=1))


def exact_cosines(
    queries: np.ndarray, candidates: np.ndarray, vectors: np.ndarray | StackedRows, lengths: np.ndarray
) -> np.ndarray:
    """Cosine of every query with each of its candidates: (queries, candidates) float32.

    Parameters
    ----------
    queries : array, shape (queries, dim)
        Of unit length.
    candidates : array of int, shape (queries, candidates)
    vectors : array or StackedRows, shape (bank, dim)
        May be memory-mapped: only the candidates are read.
    lengths : array, shape (bank,), float32
        Of the vectors; 1 where one is 0.
    """
    found = np.empty(candidates.shape, np.float32)
    step = max(1, _VALUES_AT_ONCE // max(1, candidates.shape[1] * queries.shape[1]))
    for start in range(0, len(queries), step):
        some = candidates[start : start + step]
        near = np.asarray(vectors[some.ravel()], np.float32).reshape(*some.shape, -1)
        found[start : start + step] = np.matmul(near, queries[start : start + step, :, None])[:, :, 0]
    return found / lengths[candidates]
