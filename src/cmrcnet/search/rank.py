"""From candidates to neighbours: exact cosines, most similar first."""

from __future__ import annotations

import numpy as np

from cmrcnet.search.neighbours import Neighbours
from cmrcnet.search.stacked_rows import StackedRows
from cmrcnet.search.unit import unit_rows

_VALUES_AT_ONCE = 2**24


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


def exact_cosines(queries: np.ndarray, candidates: np.ndarray, vectors: np.ndarray | StackedRows) -> np.ndarray:
    """Cosine of every query with each of its candidates: (queries, candidates) float32.

    Parameters
    ----------
    queries : array, shape (queries, dim)
        Of unit length.
    candidates : array of int, shape (queries, candidates)
    vectors : array or StackedRows, shape (bank, dim)
        May be memory-mapped: only the candidates are read.
    """
    found = np.empty(candidates.shape, np.float32)
    step = max(1, _VALUES_AT_ONCE // max(1, candidates.shape[1] * queries.shape[1]))
    for start in range(0, len(queries), step):
        some = candidates[start : start + step]
        near = unit_rows(vectors[some.ravel()], "vectors").reshape(*some.shape, -1)
        found[start : start + step] = np.matmul(near, queries[start : start + step, :, None])[:, :, 0]
    return found
