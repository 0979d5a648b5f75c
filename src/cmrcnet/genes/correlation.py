"""Pearson's correlation of each gene over spots."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from cmrcnet.errors import ShapeMismatch

_GENES_AT_A_TIME = 1024
_CONSTANT = 1e-6
"""A column whose range is below this share of its largest value is constant but for float32 rounding."""


def pearson_per_gene(truth: np.ndarray | sparse.spmatrix, guess: np.ndarray | sparse.spmatrix) -> np.ndarray:
    """Correlate each gene's truth with its prediction over spots.

    ``sum((t - mean t)(g - mean g)) / sqrt(sum((t - mean t)^2) sum((g - mean g)^2))`` in float64, a block of genes at
    a time.

    Parameters
    ----------
    truth, guess : array or sparse matrix, shape (spots, genes)

    Returns
    -------
    numpy.ndarray, shape (genes,), float64
        NaN where it is undefined: a constant truth or prediction, fewer than two spots, or a value that is not
        finite. The caller decides, and says, what becomes of those.

    Raises
    ------
    ShapeMismatch
    """
    if truth.ndim != 2 or truth.shape != guess.shape:
        raise ShapeMismatch("guess", want=truth.shape, got=guess.shape)
    truth, guess = (each.tocsc() if sparse.issparse(each) else np.asarray(each) for each in (truth, guess))
    result = np.full(truth.shape[1], np.nan)
    if truth.shape[0] < 2:
        return result
    for start in range(0, truth.shape[1], _GENES_AT_A_TIME):
        part = slice(start, start + _GENES_AT_A_TIME)
        result[part] = _correlate(_dense(truth[:, part]), _dense(guess[:, part]))
    return result


def _dense(block: np.ndarray | sparse.csc_matrix) -> np.ndarray:
    return (block.toarray() if sparse.issparse(block) else block).astype(np.float64)


def _correlate(truth: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """Correlation of two dense blocks, which are changed on the way."""
    with np.errstate(invalid="ignore", divide="ignore"):
        defined = varies(truth) & varies(guess)
        for block in (truth, guess):
            block -= block.mean(axis=0)
            block /= np.sqrt(np.einsum("ng,ng->g", block, block))
        value = np.clip(np.einsum("ng,ng->g", truth, guess), -1, 1)
    return np.where(defined, value, np.nan)


def varies(block: np.ndarray) -> np.ndarray:
    """Which columns are finite and not constant: a bool a column."""
    low, high = block.min(axis=0), block.max(axis=0)
    return np.isfinite(low) & np.isfinite(high) & (high - low > _CONSTANT * np.maximum(np.abs(low), np.abs(high)))
