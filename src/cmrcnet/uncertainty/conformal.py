"""Split-conformal intervals of each location and gene, calibrated on validation units.

With r = (y - prediction) / f the residuals of the calibration spots, f the factor of their place (`difficulty`), and
q_a their weighted quantiles, gene by gene::

    interval = [max(prediction + f q_{a/2}, 0), prediction + f q_{1-a/2}]         a = 1 - level

Every unit (patient, or section where patients are few) weighs the same, every section of a unit and every spot of a
section too. Quantiles are those of split-conformal prediction (Vovk, Gammerman and Shafer 2005; Lei et al. 2018): the
new spot counts as one more residual, at infinity. They promise coverage for new spots of units like these. A new
patient has an offset of its own, of which K patients tell little: a promise for new patients needs K + 1 >= 1 / a, nine
of them at 90 % (Lee, Barber and Willett 2023). With fewer, the share o of the mean square residual that is the units'
offset is widened by Student's t over the normal quantile, and it is said that it was::

    q <- q sqrt(1 + o ((t_{K, 1-a/2} / z_{1-a/2})^2 - 1))

With a single unit nothing can be calibrated. The libraries of the field (mapie, crepes) calibrate one target at a
time, on residuals that all weigh the same, in objects that are stored as pickles; here thousands of genes share one
pass, units weigh alike, and two numbers a gene are stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

LEVEL = 0.9
"""Share of measured values that the intervals are to hold."""
FEWEST_UNITS = 2

_STEPS = np.linspace(0, 1, 101)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Quantiles of the residuals of each gene, and of the locations' factors.

    Parameters
    ----------
    low, high : numpy.ndarray, shape (genes,), float32
        Below and above the prediction, both to be multiplied by a location's factor; `low` is 0 or less. NaN where a
        gene could not be calibrated.
    factors : numpy.ndarray, shape (101,), float32
        Quantiles of the validation locations' factors.
    facts : dict
        level, units, unit ("patient" or "section"), patients, sections, spots.
    """

    low: np.ndarray
    high: np.ndarray
    factors: np.ndarray
    facts: dict[str, Any]

    def confidence(self, factor: np.ndarray) -> np.ndarray:
        """Share of validation spots that looked harder than each location: (locations,) float32 from 0 to 1."""
        harder = 1 - np.interp(factor, self.factors, _STEPS)
        return np.where(np.isfinite(factor), harder, np.nan).astype(np.float32)

    @property
    def sentence(self) -> str:
        """What the intervals promise, and what not."""
        facts = self.facts
        units, patients, unit = facts["units"], facts["patients"], facts["unit"]
        within = (
            f"of {patients} patient{'s' * (patients != 1)}, "
            if unit == "section"
            else f"{facts['sections']} sections, "
        )
        said = (
            f"{facts['level']:.0%} intervals, split-conformal, calibrated on {units} validation {unit}s "
            f"({within}{facts['spots']:,} spots)."
        )
        needed = units_needed(facts["level"])
        if patients >= needed:
            return said
        few = f"A promise for new patients would need {needed} of them"
        if patients == 1:
            few = "One patient says nothing of others"
        return f"{said} {few}; what differs between {unit}s is widened by Student's t instead."


def bounds(mean: np.ndarray, factor: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The interval of every location and gene: two (locations, genes) float32, NaN where there is none.

    Parameters
    ----------
    mean : array, shape (locations, genes)
        Predicted; any block of locations.
    factor : array, shape (locations,)
    low, high : array, shape (genes,)
    """
    lower = np.maximum(mean + np.outer(factor, low), 0)
    return lower.astype(np.float32), (mean + np.outer(factor, high)).astype(np.float32)


def unit_weights(unit_of: np.ndarray, section_of: np.ndarray) -> np.ndarray:
    """(spots,) float64 summing to 1: units alike, sections of a unit alike, spots of a section alike.

    Parameters
    ----------
    unit_of, section_of : array of str, shape (spots,)
    """
    weights = np.zeros(len(unit_of))
    units = np.unique(unit_of)
    for unit in units:
        sections = np.unique(section_of[unit_of == unit])
        for section in sections:
            rows = (unit_of == unit) & (section_of == section)
            weights[rows] = 1 / (len(units) * len(sections) * rows.sum())
    return weights


def conformal_quantiles(residuals: np.ndarray, weights: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper quantile of each column, the new value counted as one more residual at infinity.

    Parameters
    ----------
    residuals : array, shape (spots, genes)
        NaN: not measured, left out.
    weights : array, shape (spots,)
    level : float
        Share that is to lie between the two.

    Returns
    -------
    low, high : numpy.ndarray, shape (genes,), float64
        Infinite where there are too few residuals for the level; NaN where there is none.
    """
    order = np.argsort(residuals, axis=0, kind="stable")  # NaN goes last
    values = np.take_along_axis(residuals, order, axis=0)
    weight = np.where(np.isnan(values), 0.0, weights[order])
    reached = np.cumsum(weight, axis=0)
    total = reached[-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        new = (weight**2).sum(axis=0) / total  # weight of one more: the mean weight, 1 / n where all are alike
        tail = (1 - level) / 2 * (total + new)
        high = _first_reaching(values, reached, total + new - tail)
        fall = np.cumsum(weight[::-1], axis=0)
        below = _first_reaching(-values[::-1], fall, total + new - tail)
    empty = ~(total > 0)
    return np.where(empty, np.nan, -below), np.where(empty, np.nan, high)


def widening(offset_share: np.ndarray, patients: int, level: float) -> np.ndarray:
    """Factor of each gene's quantiles for the patients being few; 1 where there are enough.

    Parameters
    ----------
    offset_share : array, shape (genes,)
        Mean square offset of the units over the mean square residual.
    patients : int
    level : float
    """
    from scipy.stats import norm, t

    if patients >= units_needed(level):
        return np.ones_like(offset_share)
    upper = (1 + level) / 2
    return np.sqrt(1 + np.clip(offset_share, 0, 1) * ((t.ppf(upper, patients) / norm.ppf(upper)) ** 2 - 1))


def units_needed(level: float) -> int:
    """Patients from which on a promise for new ones can be kept: the least K with 1 / (K + 1) <= 1 - level."""
    return int(np.ceil(1 / (1 - level) - 1e-9)) - 1


def factor_quantiles(factor: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(101,) float32: weighted quantiles of the validation locations' factors, least to largest."""
    order = np.argsort(factor, kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    locations = np.minimum(np.searchsorted(reached, _STEPS - 1e-12), len(factor) - 1)
    return factor[order][locations].astype(np.float32)


def _first_reaching(values: np.ndarray, reached: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """First value of each column at which the weight reached is the one wanted; infinite where it never is."""
    enough = reached >= wanted - 1e-12
    first = enough.argmax(axis=0)
    found = values[first, np.arange(values.shape[1])]
    return np.where(enough.any(axis=0), found, np.inf)
