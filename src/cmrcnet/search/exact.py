"""Exact search: the k bank vectors of largest cosine, found block by block; and what every search shares.

The full (queries, bank) matrix of similarities is never held. One block of it is computed, the few entries that can
still be among the k best are selected, and these are merged with the best of the blocks before.

The file is one thing, from a query to its ranked neighbours. Every search checks its queries, scales vectors to unit
length, and ranks candidates by exact cosine: similarity and bank row are packed into one integer, so that ranking is
one integer sort.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from cmrcnet.errors import BadOption, ShapeMismatch
from cmrcnet.search.stacked_arrays import StackedRows

NO_NEIGHBOUR = np.iinfo(np.int64).max
"""Sort key behind all others."""
QUERIES_AT_ONCE = 256
BANK_AT_ONCE = 16384
LONGEST_BANK = 2**31 - 1
"""A row number must fit the lower half of a sort key."""

# BLAS uses other routines for a single row and for small products, and they round differently. Products are padded with
# zeros to at least this size, so that a similarity hardly depends on the batch. On some processors BLAS also chooses by
# larger shapes: there a similarity may change by 1e-6 with the batch or the block, and near ties may swap.
_LEAST_QUERIES = 64
_LEAST_BANK = 1024


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The k nearest bank spots of each query, most similar first.

    Parameters
    ----------
    ids : numpy.ndarray, shape (queries, k), int64
        Rows of the bank.
    similarity : numpy.ndarray, shape (queries, k), float32
        Cosine of each.

    Examples
    --------
    >>> import numpy as np
    >>> from cmrcnet import Neighbours
    >>> Neighbours(np.array([[2, 0]]), np.array([[0.9, 0.4]], np.float32)).k
    2
    """

    ids: np.ndarray
    similarity: np.ndarray

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.ids.shape != self.similarity.shape:
            raise ShapeMismatch("similarity", want=self.ids.shape, got=self.similarity.shape)

    @property
    def k(self) -> int:
        """Neighbours per query."""
        return self.ids.shape[1]


@runtime_checkable
class Searcher(Protocol):
    """Finds the bank spots whose vectors have the largest cosine with a query.

    Similarities are exact cosines, even where the search is approximate.
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


class ExactSearch:
    """Compare every bank vector with every query.

    Parameters
    ----------
    vectors : array or StackedRows, shape (bank, dim), float32
        One per bank spot; may be memory-mapped, and is read block by block. Any length: the cosine is computed. A
        vector of zeros has cosine 0 with everything.
    block : int
        Bank vectors compared at once. It changes speed and memory, and the result only by rounding: similarities by
        up to 1e-6, and the order of neighbours that are closer to each other than that.

    Raises
    ------
    ShapeMismatch
        Not two axes, or an empty one.
    BadOption
        `block` is below 1.

    Examples
    --------
    >>> import numpy as np
    >>> from cmrcnet import ExactSearch
    >>> bank = np.array([[1, 0], [0, 1], [1, 1]], np.float32)
    >>> ExactSearch(bank).nearest(np.array([[2, 0.1]], np.float32), k=2).ids
    array([[0, 2]])
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
            Embeddings of any length above 0.
        k : int
            Neighbours per query, at most the bank's length.

        Returns
        -------
        Neighbours
            Most similar first; among equals the lower row of the bank first, as a stable sort gives them. Whether equal
            vectors have equal similarities is up to BLAS, which may round them differently, by less than 1e-6.

        Raises
        ------
        ShapeMismatch
            Queries of another dimension than the bank.
        BadOption
            k is below 1 or above the bank's length, or a vector is not finite.
        """
        queries = require_query(queries, k, self.vectors.shape)
        best = np.full((len(queries), k), NO_NEIGHBOUR)
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
    """Merge one block's candidates into the best (queries, k) so far, whose last column is the worst."""
    k = best.shape[1]
    # Entries that cannot be among the k best of this block, or are worse than all k held, are skipped. The similarity
    # of an empty slot is NaN, which fmax ignores.
    least = np.fmax(_kth_at_least(similarity, k), unpacked(best[:, -1])[1])
    both = np.concatenate([best, _candidates(similarity, least, first_id)], axis=1)
    both.partition(k - 1, axis=1)
    best[:] = both[:, :k]


def _kth_at_least(similarity: np.ndarray, k: int) -> np.ndarray:
    """A value of each row that at least k entries reach: (rows,).

    Columns are folded and only maxima kept. At least k maxima reach the k-th largest maximum, so at least k entries
    do, and few more where there are many columns.
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
    """Keys (rows, widest) of the entries that reach `least`; rows with fewer are padded with `NO_NEIGHBOUR`."""
    row, column = np.divmod(np.flatnonzero(similarity >= least[:, None]), similarity.shape[1])
    keys = packed(similarity[row, column], column + first_id)
    each = np.bincount(row, minlength=len(similarity))
    place = np.arange(len(row)) - np.repeat(np.cumsum(each) - each, each)
    table = np.full((len(similarity), each.max(initial=0)), NO_NEIGHBOUR)
    table[row, place] = keys
    return table


def unit_rows(vectors: np.ndarray, what: str, least: int = 0) -> np.ndarray:
    """Scale vectors to unit length (zeros stay zeros), and pad with zeros to `least` rows.

    Parameters
    ----------
    vectors : array, shape (rows, dim)
    what : str
        Name of the vectors in an error.
    least : int
        Number of rows to pad to.

    Raises
    ------
    BadOption
        A vector is not finite.
    """
    vectors = np.asarray(vectors, np.float32)
    length = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    if not np.isfinite(length).all():
        raise BadOption(what, "not finite (NaN or infinite)", want="numbers only; embed them again")
    unit = np.zeros((max(len(vectors), least), vectors.shape[1]), np.float32)
    scale = np.divide(1, length, out=np.zeros_like(length), where=length > 0)
    np.multiply(vectors, scale[:, None], out=unit[: len(vectors)])
    return unit


def require_query(queries: np.ndarray, k: int, bank: tuple[int, int]) -> np.ndarray:
    """Check queries and k, and return the queries as float32.

    Parameters
    ----------
    queries : array, shape (queries, dim)
    bank : tuple of int
        Number of spots, and dim.

    Raises
    ------
    ShapeMismatch
        Queries of another dimension than the bank.
    BadOption
        k is below 1 or above the bank's length.
    """
    queries = np.asarray(queries, np.float32)
    if queries.ndim != 2 or queries.shape[1] != bank[1]:
        raise ShapeMismatch("queries", want=("queries", bank[1]), got=queries.shape)
    if not 1 <= k <= bank[0]:
        raise BadOption("k", k, want=f"1 to {bank[0]}, the number of spots in the bank")
    return queries


def ranked(candidates: np.ndarray, similarity: np.ndarray, k: int) -> Neighbours:
    """The k most similar candidates; among equals the lower row of the bank first.

    Parameters
    ----------
    candidates : array of int, shape (queries, candidates)
        At least k per query; -1 for none.
    similarity : array, shape (queries, candidates), float32
        Exact cosines.
    """
    keys = np.where(candidates >= 0, packed(similarity, candidates), NO_NEIGHBOUR)
    if keys.shape[1] > k:
        keys = np.partition(keys, k - 1, axis=1)[:, :k]
    keys.sort(axis=1)
    return Neighbours(*unpacked(keys))


def packed(similarity: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Pack (similarity, id) into one integer that sorts by falling similarity, then by rising id.

    The bits of a positive float sort like an integer; those of a negative one do once all but the sign are flipped.

    Parameters
    ----------
    ids : array of int
        Below 2^31.
    """
    bits = (similarity + np.float32(0)).view(np.int32)  # + 0 turns -0.0 into 0.0: they are equal
    rising = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    return (~rising).astype(np.int64) << 32 | ids


def unpacked(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unpack ids and similarity from the keys of `packed`."""
    rising = ~(keys >> 32).astype(np.int32)
    bits = rising ^ ((rising >> 31) & np.int32(0x7FFFFFFF))
    return keys & 0xFFFFFFFF, bits.view(np.float32)
