"""Percentile bootstrap intervals of means: over patients, sections or other groups, for many columns at once."""

from __future__ import annotations

import numpy as np

from cmrcnet.errors import BadOption

RESAMPLES = 2_000
_COLUMNS_AT_A_TIME = 2_000


def bootstrap_means(
    values: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of each column and its percentile bootstrap interval, drawing rows; all columns share the draws.

    Efron and Tibshirani, "An introduction to the bootstrap", 1993. Samples in which a column has no defined row are
    left out for that column.

    Parameters
    ----------
    values : array, shape (groups, columns)
        One row for each patient, section or other group that is drawn; NaN where undefined.
    weights : array, shape (groups, columns), optional
        Weight of each value in the mean, 0 where undefined; all equal when left out.
    seed : int
        Of the draws.
    resamples : int
        1 or more.
    level : float
        Nominal coverage of the interval.

    Returns
    -------
    mean, low, high : numpy.ndarray, shape (columns,)
        The mean is NaN without a defined row, the interval with fewer than two.

    Raises
    ------
    BadOption

    Examples
    --------
    >>> mean, low, high = bootstrap_means(np.array([[0.1], [0.3], [0.5]]), seed=0)
    >>> mean.round(3), low.round(3), high.round(3)
    (array([0.3]), array([0.1]), array([0.5]))
    """
    if resamples < 1:
        raise BadOption("resamples", resamples, want="a number of resamples, 1 or more")
    rows, columns = values.shape
    known = np.isfinite(values)
    weights = known.astype(np.float64) if weights is None else weights
    filled = np.where(known, values, 0.0) * weights
    draws = np.random.default_rng(seed).integers(0, max(rows, 1), (resamples, rows))
    times = np.zeros((resamples, rows))  # how often each row was drawn
    np.add.at(times, (np.arange(resamples)[:, None], draws), 1)
    tail = (1 - level) / 2
    bounds = np.full((2, columns), np.nan)
    repeated = np.flatnonzero(known.sum(axis=0) > 1)
    for start in range(0, len(repeated), _COLUMNS_AT_A_TIME):
        part = repeated[start : start + _COLUMNS_AT_A_TIME]
        total = times @ weights[:, part]
        means = np.divide(times @ filled[:, part], total, out=np.full(total.shape, np.nan), where=total > 0)
        bounds[:, part] = np.nanquantile(means, [tail, 1 - tail], axis=0)
    total = weights.sum(axis=0)
    mean = np.divide(filled.sum(axis=0), total, out=np.full(columns, np.nan), where=total > 0)
    return mean, bounds[0], bounds[1]
