"""Neighbours: which bank spots lie nearest to each query, and what every search shares.

A search checks its queries, scales vectors to unit length, and ranks candidates by exact cosine: similarity and bank
row are packed into one integer, so that ranking is one integer sort.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from cmrcnet.errors import BadOption, ShapeMismatch

NO_NEIGHBOUR = np.iinfo(np.int64).max
"""Sort key behind all others."""


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
    k : int
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
    k : int
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
    similarity : array, float32
    ids : array of int
        Below 2^31.
    """
    bits = (similarity + np.float32(0)).view(np.int32)  # + 0 turns -0.0 into 0.0: they are equal
    rising = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    return (~rising).astype(np.int64) << 32 | ids


def unpacked(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unpack ids and similarity from the keys of `packed`.

    Parameters
    ----------
    keys : array of int64
    """
    rising = ~(keys >> 32).astype(np.int32)
    bits = rising ^ ((rising >> 31) & np.int32(0x7FFFFFFF))
    return keys & 0xFFFFFFFF, bits.view(np.float32)
