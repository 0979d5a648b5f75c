"""Ridge regression of expression scores on reduced features, for many penalties at the cost of one.

``W = (Z^T Z + a I)^-1 Z^T S`` (Hoerl and Kennard 1970), by the eigenvectors of ``Z^T Z``; features and scores are
centred over the training spots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PENALTIES = tuple(float(10.0**power) for power in np.arange(-3, 3.5, 0.5))
"""Times the number of training spots: features have mean square 1, so that a penalty means the same at any size."""


@dataclass(frozen=True, eq=False)
class Ridge:
    """Weights and an offset.

    Parameters
    ----------
    weights : numpy.ndarray, shape (features, rank), float32
    offset : numpy.ndarray, shape (rank,), float32
    """

    weights: np.ndarray
    offset: np.ndarray

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(spots, rank) float32 of reduced features (spots, features)."""
        return features @ self.weights + self.offset


def ridge_path(features: np.ndarray, scores: np.ndarray, penalties: Sequence[float] = PENALTIES) -> list[Ridge]:
    """One fit a penalty.

    Parameters
    ----------
    features : array, shape (spots, features)
    scores : array, shape (spots, rank)
    penalties : sequence of float
        Each times the number of spots is added to the diagonal.
    """
    inputs, wanted = np.asarray(features, np.float64), np.asarray(scores, np.float64)
    middle, level = inputs.mean(axis=0), wanted.mean(axis=0)
    inputs, wanted = inputs - middle, wanted - level
    values, vectors = np.linalg.eigh(inputs.T @ inputs)
    turned = vectors.T @ (inputs.T @ wanted)
    found = []
    for penalty in penalties:
        weights = vectors @ (turned / (np.maximum(values, 0) + penalty * len(inputs))[:, None])
        found.append(Ridge(weights.astype(np.float32), (level - middle @ weights).astype(np.float32)))
    return found
