"""Ridge regression of expression scores on reduced features, for many penalties at the cost of one.

``W = (Z^T D Z + a I)^-1 Z^T D S`` (Hoerl and Kennard 1970), by the eigenvectors of ``Z^T D Z``; D holds the spots'
weights, and features and scores are centred over the training spots, weighted alike.
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


def ridge_path(
    features: np.ndarray,
    scores: np.ndarray,
    penalties: Sequence[float] = PENALTIES,
    weights: np.ndarray | None = None,
) -> list[Ridge]:
    """One fit a penalty.

    Parameters
    ----------
    features : array, shape (spots, features)
    scores : array, shape (spots, rank)
    penalties : sequence of float
        Each times the number of spots is added to the diagonal.
    weights : array, shape (spots,), optional
        How much each spot counts, with mean 1; all alike when left out.
    """
    inputs, wanted = np.asarray(features, np.float64), np.asarray(scores, np.float64)
    counts = np.ones(len(inputs)) if weights is None else np.asarray(weights, np.float64)
    middle, level = np.average(inputs, axis=0, weights=counts), np.average(wanted, axis=0, weights=counts)
    root = np.sqrt(counts)[:, None]
    inputs, wanted = root * (inputs - middle), root * (wanted - level)
    values, vectors = np.linalg.eigh(inputs.T @ inputs)
    turned = vectors.T @ (inputs.T @ wanted)
    found = []
    for penalty in penalties:
        slopes = vectors @ (turned / (np.maximum(values, 0) + penalty * len(inputs))[:, None])
        found.append(Ridge(slopes.astype(np.float32), (level - middle @ slopes).astype(np.float32)))
    return found
