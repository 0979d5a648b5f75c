"""How well held-in units are predicted: the number by which penalties, ranks and weights are chosen."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cmrcnet.expression.correlation import pearson_per_gene

SAME = 0.001
"""Scores that count as the same."""


def mean_pearson(truth: np.ndarray, guess: np.ndarray, section_of: np.ndarray) -> float:
    """Mean over genes, then over sections; 0 where nothing is defined.

    Parameters
    ----------
    truth, guess : array, shape (spots, genes)
    section_of : array, shape (spots,)
    """
    means = []
    for section in dict.fromkeys(section_of.tolist()):
        rows = section_of == section
        values = pearson_per_gene(truth[rows], guess[rows])
        if np.isfinite(values).any():
            means.append(float(np.nanmean(values)))
    return float(np.mean(means)) if means else 0.0


def choose(
    predictions: Iterable[np.ndarray],
    ranks: Iterable[int],
    truth: np.ndarray,
    loadings: np.ndarray,
    section_of: np.ndarray,
) -> tuple[int, int, float]:
    """The setting and the rank that predict held-in units best; the first of equals.

    Parameters
    ----------
    predictions : iterable of array, shape (spots, rank)
        One a setting: predicted scores of spots in units that it had not seen.
    ranks : iterable of int
        Tried with each.
    truth : array, shape (spots, genes)
    loadings : array, shape (rank, genes)
    section_of : array, shape (spots,)

    Returns
    -------
    setting, rank : int
    score : float
    """
    best = (0, 1, -np.inf)
    tried = [int(rank) for rank in ranks]
    for number, predicted in enumerate(predictions):
        for rank in tried:
            cut = min(rank, predicted.shape[1])
            score = mean_pearson(truth, predicted[:, :cut] @ loadings[:cut], section_of)
            if score > best[2] + SAME or best[2] == -np.inf:
                best = (number, cut, score)
    return best
