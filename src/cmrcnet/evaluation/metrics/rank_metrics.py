"""Scores that look at the order of spots only: Spearman's correlation, and how well detection is told."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from cmrcnet.errors import ShapeMismatch
from cmrcnet.genes.spatial_stats import pearson_per_gene


def spearman_per_gene(truth: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of each gene over spots: Pearson's of the ranks, ties sharing their mean rank.

    Parameters
    ----------
    truth, guess : numpy.ndarray, shape (spots, genes)

    Returns
    -------
    numpy.ndarray, shape (genes,), float64
        NaN where truth or prediction is constant or not finite.
    """
    if truth.shape != guess.shape:
        raise ShapeMismatch("guess", want=truth.shape, got=guess.shape)
    return pearson_per_gene(_ranks(truth), _ranks(guess))


def detection_auc(detected: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """Chance that a spot where the gene was counted is predicted higher than one where it was not, ties half.

    The area under the ROC curve of "count above 0" by the predicted value, from ranks:
    ``(sum of the detected spots' ranks - n1 (n1 + 1) / 2) / (n1 n0)`` (Mann and Whitney 1947; Hanley and McNeil,
    "The meaning and use of the area under a ROC curve", Radiology 1982).

    Parameters
    ----------
    detected : numpy.ndarray of bool, shape (spots, genes)
        A log-normalised value above 0 is a count above 0.
    guess : numpy.ndarray, shape (spots, genes)

    Returns
    -------
    numpy.ndarray, shape (genes,), float64
        0.5 for a constant prediction. NaN where the gene was counted in every spot or in none, or the prediction is
        not finite.
    """
    if detected.shape != guess.shape:
        raise ShapeMismatch("guess", want=detected.shape, got=guess.shape)
    spots = len(detected)
    positive = detected.sum(axis=0).astype(np.float64)
    result = np.full(detected.shape[1], np.nan)
    mixed = np.flatnonzero((positive > 0) & (positive < spots))
    if len(mixed) == 0:
        return result
    ranks, n1 = _ranks(guess[:, mixed]), positive[mixed]
    above = np.einsum("ng,ng->g", ranks, detected[:, mixed].astype(np.float64)) - n1 * (n1 + 1) / 2
    result[mixed] = above / (n1 * (spots - n1))
    return result


def _ranks(block: np.ndarray) -> np.ndarray:
    """Ranks down each column from 1; NaN throughout a column that holds a value that is not finite."""
    ranks = rankdata(block, axis=0).astype(np.float64) if len(block) else np.zeros(block.shape)
    ranks[:, ~np.isfinite(block).all(axis=0)] = np.nan
    return ranks
