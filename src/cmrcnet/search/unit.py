"""What every search asks of its vectors: finite numbers, one dimension, and a length that is divided out."""

from __future__ import annotations

import numpy as np

from cmrcnet.errors import BadOption, ShapeMismatch


def unit_rows(vectors: np.ndarray, what: str, least: int = 0) -> np.ndarray:
    """The vectors at unit length, zeros staying zeros, followed by zeros up to `least` rows.

    Parameters
    ----------
    vectors : array, shape (rows, dim)
    what : str
        For the sentence.
    least : int

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
    """The queries as float32, or a refusal.

    Parameters
    ----------
    queries : array, shape (queries, dim)
    k : int
    bank : tuple of int
        Its number of spots, and dim.

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
