"""Ensemble of several predictions of the same expression scores, weighted by their validation correlation.

With p_m the scores predicted by part m, t the component weights (below), L the loadings of the genes of the validation
score, c_m the root mean square of ``(t p_m) L`` on validation spots and w_m the weight of the part::

    ensemble = b t sum_m w_m p_m / c_m
    w        = sum_a a exp(s_a / 0.01) / sum_a exp(s_a / 0.01)

a runs over every way to divide 1 among the parts in quarters and s_a is its validation Pearson: combinations of similar
score are averaged, because the best of them on a few validation groups is a matter of luck. b is the slope of least
squared error on validation spots. The division by c_m removes the parts' different shrinkage. t is the mean over the
config's ranks r of "1 for the first r components, else 0", so that no single rank has to be chosen. All numbers come
from predictions of groups that the parts were not fitted on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from cmrcnet.genes.spatial_stats import mean_pearson

STEPS = 4
"""Shares are multiples of a quarter."""
SOFTNESS = 0.01
"""Difference in validation Pearson that changes the weight of a combination by a factor of e."""
SAME = 0.001
"""Differences in validation Pearson up to this are ties."""


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Weights of the parts and of the components.

    `weights` and `powers` are ``w_m`` and ``c_m`` of each part, `component_weights` (rank,) is ``t``, `slope` is ``b``;
    `covariance` (rank, rank) is that of the combined scores on validation spots, within sections.
    """

    weights: Mapping[str, float]
    powers: Mapping[str, float]
    component_weights: np.ndarray
    slope: float
    covariance: np.ndarray

    def scaled(self, predicted: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """``b t p_m / c_m`` of each part: its prediction on the scale of the ensemble."""
        return {
            name: self.slope * self.component_weights * values / self.powers[name] for name, values in predicted.items()
        }

    def combine(self, predicted: Mapping[str, np.ndarray]) -> np.ndarray:
        """(spots, rank) float32 of the parts' predicted scores, each (spots, rank)."""
        return (self.slope * self.component_weights * _sum(predicted, self.weights, self.powers)).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, including the (small) arrays."""
        return {
            "weights": dict(self.weights),
            "powers": dict(self.powers),
            "component_weights": self.component_weights.tolist(),
            "slope": self.slope,
            "covariance": self.covariance.tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Ensemble:
        """Inverse of `to_dict`."""
        arrays = {name: np.asarray(values[name], np.float32) for name in ("component_weights", "covariance")}
        return cls(values["weights"], values["powers"], slope=float(values["slope"]), **arrays)


def component_weights_of(ranks: Sequence[int], rank: int) -> np.ndarray:
    """Share of `ranks` (numbers of leading components) that include each of `rank` components: (rank,) float32.

    Examples
    --------
    >>> component_weights_of((1, 3), 4)
    array([1. , 0.5, 0.5, 0. ], dtype=float32)
    """
    reach = np.minimum(np.asarray(ranks), rank)
    return (np.arange(rank)[:, None] < reach).mean(axis=1).astype(np.float32)


def fit_ensemble(
    predicted: Mapping[str, np.ndarray],
    component_weights: np.ndarray,
    scores: np.ndarray,
    truth: np.ndarray,
    loadings: np.ndarray,
    section_of: np.ndarray,
) -> tuple[Ensemble, float]:
    """Fit the weights by validation Pearson, then the slope by least squares.

    `predicted` holds each part's scores (spots, rank) of spots in groups that it was not fitted on, `scores` the
    measured ones; `component_weights` (rank,) is ``t``. `truth` (spots, genes) and `loadings` (rank, genes) are
    measured expression and loadings of the genes of the validation score. Returns the ensemble and its mean validation
    Pearson.
    """

    def pearson(weights: Mapping[str, float]) -> float:
        guess = (component_weights * _sum(predicted, weights, powers)) @ loadings
        return float(np.nan_to_num(mean_pearson(truth, guess, section_of)))

    powers = {
        name: max(float(np.sqrt((((values * component_weights) @ loadings) ** 2).mean())), 1e-9)
        for name, values in predicted.items()
    }
    ways = product(range(STEPS + 1), repeat=len(predicted))
    shares = [tuple(share / STEPS for share in way) for way in ways if sum(way) == STEPS]
    tried = np.array([pearson(dict(zip(predicted, share, strict=True))) for share in shares])
    soft = np.exp((tried - tried.max()) / SOFTNESS)
    average = (soft[:, None] * np.array(shares)).sum(axis=0) / soft.sum()
    weights = {name: float(share) for name, share in zip(predicted, average, strict=True)}
    raw = component_weights * _sum(predicted, weights, powers)
    slope = max(float((raw * scores).sum() / max((raw**2).sum(), 1e-12)), 0.0)
    centred = np.array(slope * raw, np.float64)
    for section in np.unique(section_of):
        rows = section_of == section
        centred[rows] -= centred[rows].mean(axis=0)
    covariance = (centred.T @ centred / len(centred)).astype(np.float32)
    return Ensemble(weights, powers, np.asarray(component_weights, np.float32), slope, covariance), pearson(weights)


def choose(
    predictions: Iterable[np.ndarray],
    component_weights: np.ndarray,
    truth: np.ndarray,
    loadings: np.ndarray,
    section_of: np.ndarray,
) -> tuple[int, float]:
    """Choose the setting with the best validation Pearson, the first among ties: its number and its score.

    `predictions` gives for each setting the predicted scores (spots, rank) of spots in groups that it was not fitted
    on; the other parameters are those of `fit_ensemble`.
    """
    weighted = component_weights[:, None] * loadings
    best = (0, -np.inf)
    for number, predicted in enumerate(predictions):
        score = float(np.nan_to_num(mean_pearson(truth, predicted @ weighted, section_of)))
        if best[1] == -np.inf or score > best[1] + SAME:
            best = (number, score)
    return best


def _sum(predicted: Mapping[str, np.ndarray], weights: Mapping[str, float], powers: Mapping[str, float]) -> np.ndarray:
    scaled = (values * (weights[name] / powers[name]) for name, values in predicted.items())
    return np.asarray(sum(scaled, start=np.float64(0)))
