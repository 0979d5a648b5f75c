"""Exact search: the k bank vectors of largest cosine, found block by block.

The full (queries, bank) matrix of similarities is never held. A block of it is multiplied, the few entries that can
still be among the k best are picked out, and these are merged with the best of the blocks before.
"""

from __future__ import annotations

import numpy as np

from cmrcnet.errors import BadOption, ShapeMismatch
from cmrcnet.search.neighbours import Neighbours
from cmrcnet.search.rank import NOBODY, packed, unpacked
from cmrcnet.search.stacked_rows import StackedRows
from cmrcnet.search.unit import require_query, unit_rows

QUERIES_AT_ONCE = 256
BANK_AT_ONCE = 16384
LONGEST_BANK = 2**31 - 1
"""A row number must fit the lower half of a sort key."""

# BLAS takes another routine for a single row and for a small product, and rounds there otherwise in the last bit.
# Products are filled up with zeros to at least this size, so that a spot's similarity does not depend on its company.
_LEAST_QUERIES = 64
_LEAST_BANK = 1024


class ExactSearch:
    """Every bank vector is compared with every query.

    Parameters
    ----------
    vectors : array or StackedRows, shape (bank, dim), float32
        One a bank spot; may be memory-mapped, and is read block by block. They need not have unit length: the cosine
        is taken. A vector of zeros has cosine 0 with everything.
    block : int
        Bank vectors compared at once. It changes speed and memory, never the result.

    Raises
    ------
    ShapeMismatch, BadOption
    """

    def __init__(self, vectors: np.ndarray | StackedRows, *, block: int = BANK_AT_ONCE) -> None:
        if vectors.ndim != 2 or 0 in vectors.shape or len(vectors) > LONGEST_BANK:
            raise ShapeMismatch("vectors", want="(bank, dim), neither of them 0", got=vectors.shape)
        if block < 1:
            raise BadOption("block", block, want="a number of bank vectors, 1 or more")
        self.vectors, self.block = vectors, block

    def __len__(self) -> int:
        return len(self.vectors)

    def nearest(self, queries: np.ndarray, k: int) -> Neighbours:
        """Find the k nearest bank spots of each query.

        Parameters
        ----------
        queries : array, shape (queries, dim), float32
            Embeddings, of any length but 0 for a meaningful answer.
        k : int
            Neighbours a query, at most the bank's length.

        Returns
        -------
        Neighbours
            Most similar first; among equals the lower row of the bank first, as a stable sort gives them.

        Raises
        ------
        ShapeMismatch
            Queries of another dimension than the bank.
        BadOption
            k is below 1 or above the bank's length, or a vector is not finite.
        """
        queries = require_query(queries, k, self.vectors.shape)
        best = np.full((len(queries), k), NOBODY)
        asked = [
            (
                best[start : start + QUERIES_AT_ONCE],
                unit_rows(queries[start : start + QUERIES_AT_ONCE], "queries", _LEAST_QUERIES),
            )
            for start in range(0, len(queries), QUERIES_AT_ONCE)
        ]
        for start in range(0, len(self), self.block):
            rows = np.asarray(self.vectors[start : start + self.block], np.float32)
            unit = unit_rows(rows, "vectors", _LEAST_BANK)
            for held, some in asked:
                _improve(held, (some @ unit.T)[: len(held), : len(rows)], start)
        best.sort(axis=1)
        return Neighbours(*unpacked(best))


def _improve(best: np.ndarray, similarity: np.ndarray, first_id: int) -> None:
    """Put what one block of the bank has better into the best (queries, k) so far, which end with the worst."""
    k = best.shape[1]
    # What cannot be among the k best of this block, or is worse than k that we hold already, is passed over.
    # Nobody's similarity is NaN, which fmax ignores.
    least = np.fmax(_kth_at_least(similarity, k), unpacked(best[:, -1])[1])
    both = np.concatenate([best, _candidates(similarity, least, first_id)], axis=1)
    both.partition(k - 1, axis=1)
    best[:] = both[:, :k]


def _kth_at_least(similarity: np.ndarray, k: int) -> np.ndarray:
    """A value of each row that at least k entries reach: (rows,).

    Of columns that are laid over each other only the largest is kept. At least k of these maxima reach the k-th
    largest maximum, so at least k entries do, and hardly more when the columns are many.
    """
    fold = 16
    while fold > 1 and similarity.shape[1] // fold < 4 * k:
        fold //= 2
    while fold > 1:
        half = similarity.shape[1] // 2
        similarity = np.maximum(similarity[:, :half], similarity[:, half : 2 * half])
        fold //= 2
    if similarity.shape[1] < k:
        return np.full(len(similarity), -np.inf, np.float32)
    kth = similarity.shape[1] - k
    return np.partition(similarity, kth, axis=1)[:, kth]


def _candidates(similarity: np.ndarray, least: np.ndarray, first_id: int) -> np.ndarray:
    """Keys (rows, widest) of the entries that reach `least`; rows with fewer are filled up with nobody."""
    row, column = np.divmod(np.flatnonzero(similarity >= least[:, None]), similarity.shape[1])
    keys = packed(similarity[row, column], column + first_id)
    each = np.bincount(row, minlength=len(similarity))
    place = np.arange(len(row)) - np.repeat(np.cumsum(each) - each, each)
    table = np.full((len(similarity), each.max(initial=0)), NOBODY)
    table[row, place] = keys
    return table
