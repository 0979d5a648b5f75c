"""Nonconformity scale of a location: one factor that widens or narrows the intervals of all its genes.

With p_r the mean square loading of component r, n_p(v) = sqrt(sum_r p_r v_r^2), q_m the scores that part m of the
head predicts (on one scale) and s the predicted scores, the features of a location are

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

import numpy as np

from cmrcnet.heads.ridge import ridge_solutions

SIGNED = 3
"""Leading components that enter with their sign."""
PENALTY = 10.0
"""Of the ridge regression, in spots; features have mean square 1."""

_SMALL = 1e-6


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
