"""From candidates to neighbours: exact cosines, most similar first, as one sort of whole numbers."""

from __future__ import annotations

import numpy as np

from cmrcnet.search.neighbours import Neighbours
from cmrcnet.search.stacked_rows import StackedRows

NOBODY = np.iinfo(np.int64).max
"""Sort key behind all others: no neighbour."""

_VALUES_AT_ONCE = 2**22


def ranked(candidates: np.ndarray, similarity: np.ndarray, k: int) -> Neighbours:
    """The k most similar candidates; among equals the lower row of the bank first.

    Parameters
    ----------
    candidates : array of int, shape (queries, candidates)
        At least k of each query; -1 for none.
    similarity : array, shape (queries, candidates), float32
        Exact cosines.
    k : int
    """
    keys = np.where(candidates >= 0, packed(similarity, candidates), NOBODY)
    if keys.shape[1] > k:
        keys = np.partition(keys, k - 1, axis=1)[:, :k]
    keys.sort(axis=1)
    return Neighbours(*unpacked(keys))


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


def packed(similarity: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """One integer for (similarity, id) that sorts by falling similarity, then by rising id.

    The bits of a positive float sort like an integer; those of a negative one do once all but the sign are flipped.

    Parameters
    ----------
    similarity : array, float32
    ids : array of int
        Below 2^31.
    """
    bits = (similarity + np.float32(0)).view(np.int32)  # + 0 turns -0.0 into 0.0: they are equal
    rising = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    return (~rising).astype(np.int64) << 32 | ids


def unpacked(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids and similarity of `packed`.

    Parameters
    ----------
    keys : array of int64
    """
    rising = ~(keys >> 32).astype(np.int32)
    bits = rising ^ ((rising >> 31) & np.int32(0x7FFFFFFF))
    return keys & 0xFFFFFFFF, bits.view(np.float32)
