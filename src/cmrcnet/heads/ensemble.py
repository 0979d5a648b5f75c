"""A ensemble of several predictions of the same expression scores, weighted by how they did on validation units.

With p_m the scores predicted by part m, t the component_weights (below), L the loadings of the genes that choose, c_m
the root
mean square of ``(t p_m) L`` on validation units, and w_m the weight of the part::

    ensemble = b t sum_m w_m p_m / c_m
    w     = sum_a a exp(s_a / 0.01) / sum_a exp(s_a / 0.01)

a runs over every way to share 1 among the parts in quarters and s_a is its validation Pearson: shares that did about as
well are averaged, because the best of them on a few validation units is a matter of luck. b is the one slope of least
squared error on validation units. The division by c_m makes a shrunken part count as much as a bold one. The
component_weights is
the mean over the config's ranks r of "1 for the first r components, else 0": averaging over ranks costs nothing and
is safer than choosing one. All numbers come from predictions of units that the parts had not seen.

How well validation units are predicted: the number by which penalties, ranks and weights are chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from cmrcnet.genes.spatial_stats import pearson_per_gene

STEPS = 4
"""Shares are multiples of a quarter."""
SOFTNESS = 0.01
"""Difference of validation Pearson that changes the say of a share by a factor of e."""


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Weights, component_weights and slope.

    Parameters
    ----------
    weights, powers : dict of str to float
        ``w_m`` and ``c_m`` of each part.
    component_weights : numpy.ndarray, shape (rank,), float32
    slope : float
        ``b``.
    covariance : numpy.ndarray, shape (rank, rank), float32
        Of the combined scores on validation units, within sections.
    """

    weights: Mapping[str, float]
    powers: Mapping[str, float]
    component_weights: np.ndarray
    slope: float
    covariance: np.ndarray

    def scaled(self, predicted: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """``b t p_m / c_m`` of each part: its own prediction on the scale of the ensemble, so that parts compare."""
        return {
            name: self.slope * self.component_weights * values / self.powers[name] for name, values in predicted.items()
        }

    def combine(self, predicted: Mapping[str, np.ndarray]) -> np.ndarray:
        """(spots, rank) float32 of the parts' predicted scores, each (spots, rank)."""
        return (self.slope * self.component_weights * _sum(predicted, self.weights, self.powers)).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the arrays too, for they are small."""
        return {
            "weights": dict(self.weights),
            "powers": dict(self.powers),
            "component_weights": self.component_weights.tolist(),
            "slope": self.slope,
            "covariance": self.covariance.tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Ensemble:
        """Build from `to_dict`."""
        arrays = {name: np.asarray(values[name], np.float32) for name in ("component_weights", "covariance")}
        return cls(values["weights"], values["powers"], slope=float(values["slope"]), **arrays)


def component_weights_of(ranks: Sequence[int], rank: int) -> np.ndarray:
    """(rank,) float32: of each component, the share of `ranks` that reach it.

    Parameters
    ----------
    ranks : sequence of int
    rank : int
        Components that there are.
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
    """Weights by how validation units were predicted, then the slope.

    Parameters
    ----------
    predicted : mapping of str to array, shape (spots, rank)
        Each part's predictions of spots in units that it had not seen.
    component_weights : array, shape (rank,)
    scores : array, shape (spots, rank)
        Measured.
    truth : array, shape (spots, genes)
        Measured expression of the genes that choose.
    loadings : array, shape (rank, genes)
    section_of : array, shape (spots,)

    Returns
    -------
    Ensemble, float
        And its mean validation Pearson.
    """
    powers = {
        name: max(float(np.sqrt((((values * component_weights) @ loadings) ** 2).mean())), 1e-9)
        for name, values in predicted.items()
    }
    shares = _shares(len(predicted))
    tried = np.array(
        [
            mean_pearson(
                truth, (component_weights * _sum(predicted, _named(predicted, share), powers)) @ loadings, section_of
            )
            for share in shares
        ]
    )
    say = np.exp((tried - tried.max()) / SOFTNESS)
    weights = _named(predicted, (say[:, None] * np.array(shares)).sum(axis=0) / say.sum())
    raw = component_weights * _sum(predicted, weights, powers)
    slope = max(float((raw * scores).sum() / max((raw**2).sum(), 1e-12)), 0.0)
    value = mean_pearson(truth, raw @ loadings, section_of)
    return Ensemble(
        weights, powers, np.asarray(component_weights, np.float32), slope, _within(slope * raw, section_of)
    ), value


def _sum(predicted: Mapping[str, np.ndarray], weights: Mapping[str, float], powers: Mapping[str, float]) -> np.ndarray:
    return sum((values * (weights[name] / powers[name]) for name, values in predicted.items()), start=np.float64(0))


def _named(predicted: Mapping[str, np.ndarray], share: Sequence[float] | np.ndarray) -> dict[str, float]:
    return {name: float(each) for name, each in zip(predicted, share, strict=True)}


def _shares(parts: int) -> list[tuple[float, ...]]:
    """Every way to share 1 among the parts in quarters."""
    ways = product(range(STEPS + 1), repeat=parts)
    return [tuple(share / STEPS for share in way) for way in ways if sum(way) == STEPS]


def _within(scores: np.ndarray, section_of: np.ndarray) -> np.ndarray:
    """(rank, rank) covariance of scores around their sections' means."""
    centred = np.array(scores, np.float64)
    for section in np.unique(section_of):
        rows = section_of == section
        centred[rows] -= centred[rows].mean(axis=0)
    return (centred.T @ centred / len(centred)).astype(np.float32)


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
