"""How much a spot's measured expression can be trusted, from how deeply it was sequenced.

The counting noise of log-normalised expression falls as one over the spot's depth. Where the noise of a spot of usual
depth is as large as what is to be learnt, least squares weighs spot i of a section by::

    w_i = d_i / (d_i + g) / mean_j(d_j / (d_j + g))        d = all counts of the spot, g = exp(mean_j log d_j)

the inverse of a variance ``1 + g / d_i`` (weighted least squares, Aitken 1936), with mean 1 in every section, so that
a section sequenced twice as deeply counts no more than another.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse


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
