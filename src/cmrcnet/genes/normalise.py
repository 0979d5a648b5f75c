"""Raw counts to log-normalised expression, and the weight of each spot from its sequencing depth."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadOption


def library_sizes(counts: sparse.csr_matrix) -> np.ndarray:
    """Counts of each spot over all its genes: (spots,) float64."""
    return np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()


def scale_factors(library: np.ndarray, target_sum: float | Literal["median"]) -> np.ndarray:
    """Factor of each spot's counts: (spots,) float64; 0 for an empty spot.

    `library` is from `library_sizes`; `target_sum` is the library size after scaling, where "median" is that of this
    section's spots with any count.
    """
    if target_sum != "median" and not (np.isfinite(target_sum) and target_sum > 0):
        raise BadOption("target_sum", target_sum, want='a sum above 0, or "median"')
    filled = library > 0
    target = (float(np.median(library[filled])) if filled.any() else 1.0) if target_sum == "median" else target_sum
    return np.divide(float(target), library, out=np.zeros_like(library), where=filled)


def normalize(counts: sparse.csr_matrix, target_sum: float | Literal["median"] = 10_000.0) -> sparse.csr_matrix:
    """Scale every spot to the same library size and take log1p: ``log(1 + count / library * target_sum)``.

    Equal to `scanpy.pp.normalize_total` and `scanpy.pp.log1p`. An empty spot stays zero.

    Parameters
    ----------
    counts : sparse matrix, shape (spots, genes)
        Raw counts of all genes of the section: the library size is their sum.
    target_sum : float or "median"
        Library size after scaling; "median" is that of this section's non-empty spots (as in the released code; it
        makes sections differ in scale).

    Returns
    -------
    scipy.sparse.csr_matrix, shape (spots, genes), float32

    Raises
    ------
    BadOption

    Examples
    --------
    >>> expression = normalize(sparse.csr_matrix([[1, 3], [0, 0]]), target_sum=4)
    >>> np.expm1(expression.toarray()).round(3)
    array([[1., 3.],
           [0., 0.]], dtype=float32)
    """
    counts = sparse.csr_matrix(counts)
    return log_scaled(counts, scale_factors(library_sizes(counts), target_sum))


def log_scaled(counts: sparse.csr_matrix, factor: np.ndarray) -> sparse.csr_matrix:
    """log1p of counts times each spot's factor, float32; zeros are not stored."""
    each = np.repeat(factor, np.diff(counts.indptr))
    values = np.log1p(counts.data * each).astype(np.float32)
    result = sparse.csr_matrix((values, counts.indices.copy(), counts.indptr.copy()), shape=counts.shape)
    result.eliminate_zeros()
    return result


def spot_weights(counts: sparse.csr_matrix) -> np.ndarray:
    """Weigh the spots of one section by sequencing depth, for least squares: (spots,) float32 of mean 1.

    The counting noise of log-normalised expression falls as one over the spot's depth, so that spot i gets the inverse
    of the variance ``1 + g / d_i`` (weighted least squares, Aitken 1936)::

        w_i = d_i / (d_i + g) / mean_j(d_j / (d_j + g))        d = counts of the spot, g = exp(mean_j log d_j)

    The mean is 1 in every section, so that a section sequenced twice as deeply has the same weight as another. A spot
    without counts weighs 0; all weigh 1 when no spot has any.

    Examples
    --------
    >>> spot_weights(sparse.csr_matrix([[10], [10], [0]]))
    array([1.5, 1.5, 0. ], dtype=float32)
    """
    depth = np.asarray(counts.sum(axis=1), np.float64).ravel()
    counted = depth > 0
    if not counted.any():
        return np.ones(len(depth), np.float32)
    usual = np.exp(np.log(depth[counted]).mean())
    weights = depth / (depth + usual)
    return (weights / weights.mean()).astype(np.float32)
