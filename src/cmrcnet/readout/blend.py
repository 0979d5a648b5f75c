"""A blend of several predictions of the same expression scores, weighted by how they did on held-in units.

With p_m the scores predicted by part m (cut after its own rank), c_m the root mean square of its predictions of the
scored genes on held-in units, w_m >= 0 its weight::

    blend = b * sum_m w_m p_m / c_m        b: one slope a component, of least squared error on held-in units

The division makes a shrunken part count as much as a bold one; the slopes bring the sum back to the scale of the
truth. All numbers come from predictions of units that the part had not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cmrcnet.readout.held_in import mean_pearson

STEPS = 4
"""Weights are multiples of a quarter."""
SAME = 0.001
"""Held-in scores that count as the same: the more even weights are taken."""
_STRENGTH = 0.25
"""Weight of the common slope beside a component's own, as a share of the components' mean sum of squares."""


@dataclass(frozen=True, eq=False)
class Blend:
    """Weights, ranks and slopes.

    Parameters
    ----------
    weights, powers : dict of str to float
        ``w_m`` and ``c_m`` of each part.
    ranks : dict of str to int
        Components that each part predicts.
    slopes : numpy.ndarray, shape (rank,), float32
    covariance : numpy.ndarray, shape (rank, rank), float32
        Of the blended scores on held-in units, within sections.
    """

    weights: Mapping[str, float]
    powers: Mapping[str, float]
    ranks: Mapping[str, int]
    slopes: np.ndarray
    covariance: np.ndarray

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts with a weight above 0."""
        return tuple(name for name, weight in self.weights.items() if weight > 0)

    def combine(self, predicted: Mapping[str, np.ndarray]) -> np.ndarray:
        """(spots, rank) float32 of the parts' predicted scores, each (spots, rank)."""
        return (_sum(predicted, self.weights, self.powers, self.ranks) * self.slopes).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the arrays too, for they are small."""
        return {
            "weights": dict(self.weights),
            "powers": dict(self.powers),
            "ranks": dict(self.ranks),
            "slopes": self.slopes.tolist(),
            "covariance": self.covariance.tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Blend:
        """Build from `to_dict`."""
        arrays = {name: np.asarray(values[name], np.float32) for name in ("slopes", "covariance")}
        return cls(values["weights"], values["powers"], values["ranks"], **arrays)


def fit_blend(
    predicted: Mapping[str, np.ndarray],
    ranks: Mapping[str, int],
    scores: np.ndarray,
    truth: np.ndarray,
    loadings: np.ndarray,
    section_of: np.ndarray,
) -> tuple[Blend, float]:
    """Choose the weights that predict held-in units best, then the slopes.

    Parameters
    ----------
    predicted : mapping of str to array, shape (spots, rank)
        Each part's predictions of spots in units that it had not seen.
    ranks : mapping of str to int
    scores : array, shape (spots, rank)
        Measured.
    truth : array, shape (spots, genes)
        Measured expression of the scored genes.
    loadings : array, shape (rank, genes)
    section_of : array, shape (spots,)

    Returns
    -------
    Blend, float
        And its mean held-in Pearson.
    """
    powers = {
        name: max(float(np.sqrt(((values[:, : ranks[name]] @ loadings[: ranks[name]]) ** 2).mean())), 1e-9)
        for name, values in predicted.items()
    }
    tried = []
    for shares in _shares(len(predicted)):
        weights = dict(zip(predicted, shares, strict=True))
        score = mean_pearson(truth, _sum(predicted, weights, powers, ranks) @ loadings, section_of)
        tried.append((score, -sum(share**2 for share in shares), weights))
    best = max(score for score, *_ in tried)
    value, _, weights = max((each for each in tried if each[0] >= best - SAME), key=lambda each: each[1])
    raw = _sum(predicted, weights, powers, ranks)
    slopes = _slopes(raw, scores)
    blended = raw * slopes
    return Blend(weights, powers, dict(ranks), slopes, _within(blended, section_of)), value


def _sum(
    predicted: Mapping[str, np.ndarray],
    weights: Mapping[str, float],
    powers: Mapping[str, float],
    ranks: Mapping[str, int],
) -> np.ndarray:
    total = np.zeros(next(iter(predicted.values())).shape)
    for name, values in predicted.items():
        if weights[name] > 0:
            total[:, : ranks[name]] += values[:, : ranks[name]] * (weights[name] / powers[name])
    return total


def _shares(parts: int) -> list[tuple[float, ...]]:
    """Every way to share 1 among the parts in quarters."""
    if parts == 1:
        return [(1.0,)]

    def split(left: int, places: int) -> Sequence[tuple[int, ...]]:
        if places == 1:
            return [(left,)]
        return [(first, *rest) for first in range(left + 1) for rest in split(left - first, places - 1)]

    even = tuple(1.0 / parts for _ in range(parts))
    return [even, *(tuple(share / STEPS for share in shares) for shares in split(STEPS, parts))]


def _slopes(blended: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Least squares, one a component, drawn towards the slope of all together; never negative."""
    up, down = (blended * scores).sum(axis=0), (blended**2).sum(axis=0)
    common = up.sum() / max(down.sum(), 1e-12)
    pull = _STRENGTH * down.mean()
    slopes = (up + pull * common) / np.maximum(down + pull, 1e-12)
    return np.maximum(slopes, 0).astype(np.float32)


def _within(scores: np.ndarray, section_of: np.ndarray) -> np.ndarray:
    centred = scores.copy()
    for section in np.unique(section_of):
        rows = section_of == section
        centred[rows] -= centred[rows].mean(axis=0)
    return (centred.T @ centred / len(centred)).astype(np.float32)
