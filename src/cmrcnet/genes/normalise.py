"""Raw counts to expression: library size, then log1p.

How much a spot's measured expression can be trusted, from how deeply it was sequenced.

The counting noise of log-normalised expression falls as one over the spot's depth. Where the noise of a spot of usual
depth is as large as what is to be learnt, least squares weighs spot i of a section by::

    w_i = d_i / (d_i + g) / mean_j(d_j / (d_j + g))        d = all counts of the spot, g = exp(mean_j log d_j)

the inverse of a variance ``1 + g / d_i`` (weighted least squares, Aitken 1936), with mean 1 in every section, so that
a section sequenced twice as deeply counts no more than another.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadOption


def library_sizes(counts: sparse.csr_matrix) -> np.ndarray:
    """Counts of each spot over all its genes: (spots,) float64."""
    return np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()


def scale_factors(library: np.ndarray, target_sum: float | Literal["median"]) -> np.ndarray:
    """What each spot's counts are multiplied by: (spots,) float64; 0 for an empty spot.

    Parameters
    ----------
    library : numpy.ndarray, shape (spots,)
    target_sum : float or "median"
        Library size after scaling. "median": of this section's own spots that hold any count.
    """
    if target_sum != "median" and not (np.isfinite(target_sum) and target_sum > 0):
        raise BadOption("target_sum", target_sum, want='a sum above 0, or "median"')
    filled = library > 0
    target = (float(np.median(library[filled])) if filled.any() else 1.0) if target_sum == "median" else target_sum
    return np.divide(float(target), library, out=np.zeros_like(library), where=filled)


def normalize(counts: sparse.csr_matrix, target_sum: float | Literal["median"] = 10_000.0) -> sparse.csr_matrix:
    """Scale every spot to the same library size and take log1p: ``log(1 + count / library * target_sum)``.

    The same as `scanpy.pp.normalize_total` and `scanpy.pp.log1p`. An empty spot stays zero.

    Parameters
    ----------
    counts : sparse matrix, shape (spots, genes)
        Raw counts of ALL the section's genes: the library size is their sum.
    target_sum : float or "median"
        "median" is the median library size of this section's spots that are not empty (the released code's way; it
        makes sections differ in scale).

    Returns
    -------
    scipy.sparse.csr_matrix, shape (spots, genes), float32

    Raises
    ------
    BadOption
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


def spot_weights(counts: sparse.spmatrix) -> np.ndarray:
    """Weights of the spots of ONE section.

    Parameters
    ----------
    counts : sparse matrix, shape (spots, genes)
        Raw.

    Returns
    -------
    numpy.ndarray, shape (spots,), float32
        Mean 1; 0 for a spot without counts. All 1 where no spot has any.
    """
    depth = np.asarray(counts.sum(axis=1), np.float64).ravel()
    counted = depth > 0
    if not counted.any():
        return np.ones(len(depth), np.float32)
    usual = np.exp(np.log(depth[counted]).mean())
    weights = depth / (depth + usual)
    return (weights / weights.mean()).astype(np.float32)
