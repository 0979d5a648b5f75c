"""How well validation units are predicted: the number by which penalties, ranks and weights are chosen."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cmrcnet.genes.correlation import pearson_per_gene

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
    component_weights: np.ndarray,
    truth: np.ndarray,
    loadings: np.ndarray,
    section_of: np.ndarray,
) -> tuple[int, float]:
    """The setting that predicts validation units best; the first of equals.

    Parameters
    ----------
    predictions : iterable of array, shape (spots, rank)
        One a setting: predicted scores of spots in units that it had not seen.
    component_weights : array, shape (rank,)
        How much of each component counts.
    truth : array, shape (spots, genes)
    loadings : array, shape (rank, genes)
    section_of : array, shape (spots,)

    Returns
    -------
    setting : int
    score : float
    """
    weighted = component_weights[:, None] * loadings
    best = (0, -np.inf)
    for number, predicted in enumerate(predictions):
        score = mean_pearson(truth, predicted @ weighted, section_of)
        if best[1] == -np.inf or score > best[1] + SAME:
            best = (number, score)
    return best
