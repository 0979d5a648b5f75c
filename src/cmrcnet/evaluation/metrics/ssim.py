"""Structural similarity of maps of expression, on spots instead of pixels."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from cmrcnet.errors import ShapeMismatch
from cmrcnet.genes.spatial_stats import SpotLattice, varies

_SIGMA = 1.5
_REACH = 5  # 3.5 standard deviations, rounded: an 11 x 11 window
_K1, _K2 = 0.01, 0.03
_VALUES_AT_A_TIME = 1_000_000


def ssim_windows(lattice: SpotLattice) -> sparse.csr_matrix:
    """Weights of the spots in the window around each spot, which sum to 1.

    A Gaussian of standard deviation 1.5 pitches, cut to 11 x 11 pitches. Locations of the window that hold no spot (off
    the tissue, beyond the edge) are left out and the others weigh accordingly more.

    Parameters
    ----------
    lattice : SpotLattice

    Returns
    -------
    scipy.sparse.csr_matrix, shape (spots, spots), float64
    """
    locations, spots = lattice.locations, len(lattice.locations)
    near = cKDTree(locations).query_pairs(_REACH + 1e-6, p=np.inf, output_type="ndarray")
    weight = np.exp(-((locations[near[:, 0]] - locations[near[:, 1]]) ** 2).sum(axis=1) / (2 * _SIGMA**2))
    one_way = sparse.csr_matrix((weight, tuple(near.T)), shape=(spots, spots))
    windows = one_way + one_way.T + sparse.eye_array(spots)
    return sparse.csr_matrix(sparse.diags_array(1 / np.asarray(windows.sum(axis=1)).ravel()) @ windows)


def ssim_per_gene(truth: np.ndarray, guess: np.ndarray, windows: sparse.csr_matrix) -> np.ndarray:
    """Mean structural similarity of each gene's two maps.

    ``(2 mx my + C1)(2 sxy + C2) / ((mx^2 + my^2 + C1)(sxx + syy + C2))`` at each spot, from the means, variances and
    covariance of its window, then the mean over spots; ``C1 = (0.01 L)^2, C2 = (0.03 L)^2`` (Wang et al., "Image
    quality assessment: from error visibility to structural similarity", IEEE Transactions on Image Processing 2004).
    L, the range of values, is that of the gene's truth in this section. On a full square lattice, away from its edges,
    this equals `skimage.metrics.structural_similarity` with ``gaussian_weights=True, use_sample_covariance=False``.

    Parameters
    ----------
    truth, guess : numpy.ndarray, shape (spots, genes)
    windows : scipy.sparse.csr_matrix, shape (spots, spots)
        See `ssim_windows`.

    Returns
    -------
    numpy.ndarray, shape (genes,), float64
        NaN where the truth is constant or a value is not finite; a constant prediction has a value.

    Raises
    ------
    ShapeMismatch
    """
    if truth.shape != guess.shape:
        raise ShapeMismatch("guess", want=truth.shape, got=guess.shape)
    result = np.full(truth.shape[1], np.nan)
    step = max(1, _VALUES_AT_A_TIME // max(1, len(truth)))
    for start in range(0, truth.shape[1], step):
        part = slice(start, start + step)
        result[part] = _block(np.asarray(truth[:, part], np.float64), np.asarray(guess[:, part], np.float64), windows)
    return result


def _block(x: np.ndarray, y: np.ndarray, windows: sparse.csr_matrix) -> np.ndarray:
    defined = varies(x) & np.isfinite(y).all(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        c1, c2 = ((k * np.ptp(x, axis=0)) ** 2 for k in (_K1, _K2))
        mx, my = windows @ x, windows @ y
        sxx, syy, sxy = windows @ (x * x) - mx**2, windows @ (y * y) - my**2, windows @ (x * y) - mx * my
        maps = (2 * mx * my + c1) * (2 * sxy + c2) / ((mx**2 + my**2 + c1) * (sxx + syy + c2))
        return np.where(defined, maps.mean(axis=0), np.nan)
