"""Intervals of means over few patients, by the bootstrap."""

from __future__ import annotations

import numpy as np

DRAWS = 2_000


def mean_interval(values: np.ndarray, level: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """Mean, and the percentile bootstrap interval of it (Efron & Tibshirani 1993, chapter 13).

    Parameters
    ----------
    values : array, shape (n,)
        One a patient (or a section); nan is left out.
    level : float
    seed : int
        Of the 2,000 draws.

    Returns
    -------
    mean, low, high : float
        The interval is nan with fewer than two values.
    """
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return float("nan"), float("nan"), float("nan")
    if len(values) == 1:
        return float(values[0]), float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(0, len(values), (DRAWS, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(values.mean()), float(low), float(high)
