"""Split-conformal intervals of each location and gene, calibrated on validation predictions.

With r = (y - prediction) / f the residuals of the calibration spots, f the nonconformity scale of their location and
q_a the weighted quantiles of r, gene by gene::

    interval = [prediction + f q_{a/2}, prediction + f q_{1-a/2}], cut to values that can be         a = 1 - level

Every group (patient, or section when patients are few) has the same weight, and so has every section of a group and
every spot of a section. Quantiles are those of split-conformal prediction (Vovk, Gammerman and Shafer 2005; Lei et al.
2018): the new spot counts as one more residual, at infinity. Coverage holds for new spots of groups like these. A new
patient has an offset of its own, and a guarantee for new patients needs K + 1 >= 1 / a of them, nine at 90 % (Lee,
Barber and Willett 2023). With fewer, the share o of the mean square residual that is due to the patients' offsets is
widened by Student's t over the normal quantile, and the sentence says so::

    q <- q sqrt(1 + o ((t_{K, 1-a/2} / z_{1-a/2})^2 - 1))

Simulated with normal offsets, 90 % intervals cover new patients in 89 to 91 % from two calibration patients on while o
is at most .3, and in 82 % (two patients) to 88 % (eight) with an o of .6. A single patient says nothing about how much
others differ: no intervals are made from one. mapie and crepes calibrate one target at a time, with equal weights, in
objects stored as pickles; here thousands of genes share one pass, groups are weighted, and two numbers a gene are
stored.

The nonconformity scale of a location is one factor for the intervals of all its genes. With p_r the mean square loading
of component r, n_p(v) = sqrt(sum_r p_r v_r^2), q_m the scores that part m of the head predicts (on one scale) and s the
predicted scores, the features of a location are

- the mean cosine to its neighbours,
- log n_p of the standard deviation of its neighbours' scores,
- log n_p of the standard deviation among the parts (retrieval, ridge, kernel ridge) around their mean,
- log n_p(s), and the first three of s themselves: errors grow with expression.

The scale is exp(w . features), w by ridge regression of the log root mean square residual of validation spots (over
the genes of the validation score, each divided by its own root mean square). This is the normalised nonconformity of
Papadopoulos, Gammerman and Vovk (2008): residuals are divided by their expected size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cmrcnet.heads.ridge import ridge_solutions

LEVEL = 0.9
"""Nominal coverage of the intervals."""
FEWEST_PATIENTS = 2
"""Patients, and groups, in which a gene must have residuals."""
NO_PATIENTS = "the training sections are of one patient, which says nothing about how much other patients differ"

SIGNED = 3
"""Leading components that enter with their sign."""
PENALTY = 10.0
"""Of the ridge regression, in spots; features have mean square 1."""

_STEPS = np.linspace(0, 1, 101)
_SMALL = 1e-6


@dataclass(frozen=True, eq=False)
class ConformalIntervals:
    """Residual quantiles of each gene, and quantiles of the locations' nonconformity scales.

    `low` and `high` (genes,) float32 are added to the prediction after multiplication by a location's scale; `low` is 0
    or less, and both are NaN for a gene that could not be calibrated. `scales` (101,) float32 are quantiles of the
    validation locations' scales. `facts` holds level, groups, group_by ("patient" or "section"), patients, sections,
    spots.

    Examples
    --------
    >>> facts = {"level": 0.9, "groups": 9, "group_by": "patient", "patients": 9, "sections": 12, "spots": 3456}
    >>> none = np.zeros(1, np.float32)
    >>> intervals = ConformalIntervals(none, none, np.linspace(1, 3, 101, dtype=np.float32), facts)
    >>> intervals.confidence(np.array([1.5]))
    array([0.75], dtype=float32)
    >>> intervals.sentence
    '90% intervals, split-conformal, calibrated on 9 validation patients (12 sections, 3,456 spots).'
    """

    low: np.ndarray
    high: np.ndarray
    scales: np.ndarray
    facts: dict[str, Any]

    def confidence(self, scale: np.ndarray) -> np.ndarray:
        """Share of validation spots with a larger scale than each location: (locations,) float32 from 0 to 1."""
        harder = 1 - np.interp(scale, self.scales, _STEPS)
        return np.where(np.isfinite(scale), harder, np.nan).astype(np.float32)

    @property
    def sentence(self) -> str:
        """Coverage statement: what the intervals were calibrated on, and whether it extends to new patients."""
        facts = self.facts
        groups, patients, group = facts["groups"], facts["patients"], facts["group_by"]
        within = f"of {patients} patients, " if group == "section" else f"{facts['sections']} sections, "
        if patients < FEWEST_PATIENTS:
            return f"No intervals: {NO_PATIENTS}."
        sentence = (
            f"{facts['level']:.0%} intervals, split-conformal, calibrated on {groups} validation {group}s "
            f"({within}{facts['spots']:,} spots)."
        )
        needed = patients_needed(facts["level"])
        if patients >= needed:
            return sentence
        few = f"Guaranteed coverage of new patients needs {needed} of them"
        return f"{sentence} {few}; the difference between {group}s is widened by Student's t instead."


def bounds(
    mean: np.ndarray,
    scale: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    limits: tuple[float, float] = (0.0, np.inf),
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the interval of every location and gene: two (locations, genes) float32, NaN where there is none.

    `mean` (locations, genes) is predicted, `scale` (locations,) the nonconformity scale, `low` and `high` (genes,) are
    those of `ConformalIntervals`; values are cut to `limits`, those that expression can have.
    """
    lower, upper = (np.clip(mean + np.outer(scale, side), *limits).astype(np.float32) for side in (low, high))
    return lower, upper


def group_weights(group_of: np.ndarray, section_of: np.ndarray) -> np.ndarray:
    """Spot weights under which groups, sections of a group and spots of a section count alike: (spots,), sum 1."""
    weights = np.zeros(len(group_of))
    groups = np.unique(group_of)
    for group in groups:
        sections = np.unique(section_of[group_of == group])
        for section in sections:
            rows = (group_of == group) & (section_of == section)
            weights[rows] = 1 / (len(groups) * len(sections) * rows.sum())
    return weights


def conformal_quantiles(residuals: np.ndarray, weights: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Weighted lower and upper quantile of each column, with the new value as one more residual at infinity.

    `level` is the share that should lie between the two (genes,). The residuals (spots, genes) are NaN where not
    measured, the weights (spots,) are from `group_weights`. A quantile is infinite where there are too few residuals
    for the level, and NaN where there is none.
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
    """Factor by which each gene's quantiles are widened when there are few patients; 1 when there are enough.

    `offset_share` (genes,) is the mean square offset of the groups over the mean square residual.
    """
    from scipy.stats import norm, t

    if patients >= patients_needed(level):
        return np.ones_like(offset_share)
    upper = (1 + level) / 2
    return np.sqrt(1 + np.clip(offset_share, 0, 1) * ((t.ppf(upper, patients) / norm.ppf(upper)) ** 2 - 1))


def patients_needed(level: float) -> int:
    """Fewest patients for a coverage guarantee on new ones: the least K with 1 / (K + 1) <= 1 - level."""
    return int(np.ceil(1 / (1 - level) - 1e-9)) - 1


def scale_quantiles(scale: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted quantiles of the validation locations' scales, in steps of 1 %: (101,) float32."""
    shares = np.maximum(_STEPS - 1e-12, 0)
    return np.quantile(scale, shares, weights=weights, method="inverted_cdf").astype(np.float32)


def _first_reaching(values: np.ndarray, reached: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """First value of each column at which the cumulative weight suffices; infinite where it never does."""
    enough = reached >= wanted - 1e-12
    first = enough.argmax(axis=0)
    found = values[first, np.arange(values.shape[1])]
    return np.where(enough.any(axis=0), found, np.inf)


def nonconformity_features(
    similarity: np.ndarray,
    neighbour_std: np.ndarray,
    parts: Mapping[str, np.ndarray],
    scores: np.ndarray,
    power: np.ndarray,
) -> np.ndarray:
    """Features of each location: (locations, features) float64.

    `similarity` (locations,) is the mean cosine to the neighbours, `neighbour_std` (locations, rank) the standard
    deviation of their scores. `parts` are the predictions (locations, rank) of each part of the head, on one scale
    (`Ensemble.scaled`), `scores` the final ones; `power` (rank,) is ``p``.
    """

    def length(values: np.ndarray) -> np.ndarray:
        return np.log(np.sqrt((np.asarray(values, np.float64) ** 2 * power).sum(axis=1)) + _SMALL)

    each = np.stack([np.asarray(values, np.float64) for values in parts.values()])
    disagreement = np.log(np.sqrt((each.var(axis=0) * power).sum(axis=1)) + _SMALL)
    signed = np.zeros((len(scores), SIGNED))
    signed[:, : scores.shape[1]] = scores[:, :SIGNED]
    return np.column_stack([similarity, length(neighbour_std), disagreement, length(scores), signed])


@dataclass(frozen=True, eq=False)
class NonconformityScale:
    """Log-linear model of the residual's size: weights of standardised features, each array (features,)."""

    centre: np.ndarray
    deviation: np.ndarray
    weights: np.ndarray

    def scale(self, features: np.ndarray) -> np.ndarray:
        """(locations,) float64, above 0; 1 for the average validation spot. Features are clipped at 4 deviations."""
        standard = np.clip((features - self.centre) / self.deviation, -4, 4)
        return np.exp(standard @ self.weights)


def fit_nonconformity_scale(features: np.ndarray, residual: np.ndarray) -> NonconformityScale:
    """Fit the weights on validation spots: features (spots, features), root mean square residual (spots,)."""
    centre, deviation = features.mean(axis=0), features.std(axis=0)
    deviation = np.where(deviation > 1e-9, deviation, 1.0)
    standard = (features - centre) / deviation
    target = np.log(np.maximum(residual, _SMALL))
    products = standard.T @ (target - target.mean())[:, None]
    (weights,) = ridge_solutions(standard.T @ standard, products, (PENALTY,))
    return NonconformityScale(centre, deviation, weights[:, 0])
