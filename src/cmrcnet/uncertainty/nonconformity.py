"""How hard a location is to predict: one factor by which the intervals of all of its genes are wide or narrow.

With p_r the mean square loading of component r, n_p(v) = sqrt(sum_r p_r v_r^2), q_m the scores that part m of the
head predicts (on one scale) and s those that are predicted in the end, the traits of a location are

- the mean cosine to its neighbours,
- log n_p of the spread of its neighbours' scores,
- log n_p of the spread among the parts (retrieval, ridge, kernel ridge) around their mean,
- log n_p(s), and the first three of s themselves: where much is expressed, much can be missed.

The factor is exp(w . traits), w by ridge regression of the log root mean square residual of validation spots (over the
genes that choose, each divided by its own root mean square). This is the normalised nonconformity of Papadopoulos,
Gammerman and Vovk (2008): the residual of a location is divided by how hard it looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

SIGNED = 3
"""Components that count with their sign."""
PENALTY = 10.0
"""Of the ridge regression, in spots; traits have mean square 1."""

_SMALL = 1e-6


def difficulty_traits(
    similarity: np.ndarray,
    spread: np.ndarray,
    parts: Mapping[str, np.ndarray],
    scores: np.ndarray,
    power: np.ndarray,
) -> np.ndarray:
    """The traits of each location.

    Parameters
    ----------
    similarity : array, shape (locations,)
        Mean cosine to the neighbours.
    spread : array, shape (locations, rank)
        Deviation of the neighbours' scores.
    parts : mapping of str to array, shape (locations, rank)
        What each part of the head predicts, on one scale (`Ensemble.scaled`).
    scores : array, shape (locations, rank)
        What is predicted in the end.
    power : array, shape (rank,)
        ``p``.

    Returns
    -------
    numpy.ndarray, shape (locations, traits), float64
    """
    each = np.stack([np.asarray(values, np.float64) for values in parts.values()])
    disagreement = np.sqrt((each.var(axis=0) * power).sum(axis=1))
    lengths = [_length(spread, power), disagreement, _length(scores, power)]
    signed = np.zeros((len(scores), SIGNED))
    signed[:, : scores.shape[1]] = scores[:, :SIGNED]
    return np.column_stack([similarity, *(np.log(length + _SMALL) for length in lengths), signed])


@dataclass(frozen=True, eq=False)
class Difficulty:
    """Weights of the traits.

    Parameters
    ----------
    middle, deviation : numpy.ndarray, shape (traits,)
        Of the traits over validation spots.
    weights : numpy.ndarray, shape (traits,)
    """

    middle: np.ndarray
    deviation: np.ndarray
    weights: np.ndarray

    def factor(self, traits: np.ndarray) -> np.ndarray:
        """(locations,) float64, above 0; 1 for the typical validation spot. Traits count up to four deviations."""
        standard = np.clip((traits - self.middle) / self.deviation, -4, 4)
        return np.exp(standard @ self.weights)


def fit_difficulty(traits: np.ndarray, missed: np.ndarray) -> Difficulty:
    """Fit the weights.

    Parameters
    ----------
    traits : array, shape (spots, traits)
    missed : array, shape (spots,)
        Root mean square residual of each validation spot.
    """
    middle, deviation = traits.mean(axis=0), traits.std(axis=0)
    deviation = np.where(deviation > 1e-9, deviation, 1.0)
    standard = (traits - middle) / deviation
    wanted = np.log(np.maximum(missed, _SMALL))
    gram = standard.T @ standard + PENALTY * np.eye(traits.shape[1])
    return Difficulty(middle, deviation, np.linalg.solve(gram, standard.T @ (wanted - wanted.mean())))


def _length(values: np.ndarray, power: np.ndarray) -> np.ndarray:
    return np.sqrt((np.asarray(values, np.float64) ** 2 * power).sum(axis=1))
