"""How much each bank spot counts for a patch, given their similarities. Every row of weights sums to 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy import sparse

QUERIES_AT_A_TIME = 256

Weigh = Callable[[np.ndarray], np.ndarray]
"""Takes similarities (queries, bank), gives weights of the same shape."""


def top_k(k: int, temperature: float | None = None) -> Weigh:
    """The k most similar: all alike, or by ``exp(similarity / temperature)``.

    Parameters
    ----------
    k : int
        All, where the bank is smaller.
    temperature : float or None

    Returns
    -------
    callable
    """

    def weigh(similarity: np.ndarray) -> np.ndarray:
        kept = min(k, similarity.shape[1])
        ids = np.argsort(-similarity, axis=1, kind="stable")[:, :kept]
        chosen = np.take_along_axis(similarity, ids, axis=1)
        value = np.ones_like(chosen) if temperature is None else np.exp((chosen - chosen[:, :1]) / temperature)
        weights = np.zeros_like(similarity)
        np.put_along_axis(weights, ids, value / value.sum(axis=1, keepdims=True), axis=1)
        return weights

    return weigh


def all_by_similarity(similarity: np.ndarray) -> np.ndarray:
    """All spots, each by its similarity; those below 0 count nothing. All alike where none is above 0."""
    positive = np.maximum(similarity, 0)
    total = positive.sum(axis=1, keepdims=True)
    even = np.full_like(positive, 1 / positive.shape[1])
    return np.where(total > 0, positive / np.where(total > 0, total, 1), even)


def averaged(
    queries: np.ndarray, bank: np.ndarray, expression: sparse.csr_matrix | np.ndarray, weigh: Weigh
) -> np.ndarray:
    """The bank's expression, averaged for each query by its cosine similarities.

    Parameters
    ----------
    queries, bank : array, shape (queries, dim) and (bank, dim)
        Embeddings of any length but 0.
    expression : sparse matrix or array, shape (bank, genes)
    weigh : callable

    Returns
    -------
    numpy.ndarray, shape (queries, genes), float32
    """
    queries, bank = _unit(queries), _unit(bank)
    rows = [weigh(queries[part] @ bank.T) for part in _parts(len(queries))]
    # One product a part: with the expression sparse, its transpose takes the dense weights from the left.
    return np.concatenate([np.asarray((expression.T @ weights.T).T, np.float32) for weights in rows])


def _parts(n: int) -> Iterator[slice]:
    return (slice(start, start + QUERIES_AT_A_TIME) for start in range(0, n, QUERIES_AT_A_TIME))


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)
