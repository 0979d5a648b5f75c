"""Ridge regression of expression scores on reduced features, for many penalties at the cost of one.

``W = (Z^T D Z + a I)^-1 Z^T D S`` (Hoerl and Kennard 1970), by the eigenvectors of ``Z^T D Z``; D holds the spots'
weights, and features and scores are centred over the training spots, weighted alike.

Kernel ridge regression with a Laplacian kernel, on landmarks where there are many spots.

With landmarks L (all training spots, or a seeded sample) and ``k(a, b) = exp(-g |a - b| / m)``, m the median of the
distances between landmarks::

    prediction(z) = k(z, L) W + offset
    W = (K_nL^T D K_nL + a K_LL)^-1 K_nL^T D S    subset of regressors (Rasmussen and Williams 2006, 8.3.1)

D holds the spots' weights. With all spots as landmarks that is kernel ridge regression, ``W = (K + a D^-1)^-1 S``.
The distance and not its square: features have heavy tails, and a square sets one odd patch far from everything.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
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


LANDMARKS = 2048
WIDTHS = (0.1, 0.25, 0.5, 1.0)
KERNEL_PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_SPOTS_AT_A_TIME = 4096
_JITTER = 1e-6


@dataclass(frozen=True, eq=False)
class KernelRidge:
    """Landmarks and their weights.

    Parameters
    ----------
    landmarks : numpy.ndarray, shape (landmarks, features), float32
    weights : numpy.ndarray, shape (landmarks, rank), float32
    offset : numpy.ndarray, shape (rank,), float32
    rate : float
        ``g / m`` of the formula.
    """

    landmarks: np.ndarray
    weights: np.ndarray
    offset: np.ndarray
    rate: float

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(spots, rank) float32 of reduced features (spots, features), some thousand spots at a time."""
        found = np.empty((len(features), self.weights.shape[1]), np.float32)
        for start in range(0, len(features), _SPOTS_AT_A_TIME):
            part = features[start : start + _SPOTS_AT_A_TIME]
            kernel = np.exp(-self.rate * distances(part, self.landmarks))
            found[start : start + _SPOTS_AT_A_TIME] = kernel @ self.weights + self.offset
        return found


def settings() -> tuple[tuple[float, float], ...]:
    """Every (width, penalty) that is tried, in the order of `kernel_path`."""
    return tuple(itertools.product(WIDTHS, KERNEL_PENALTIES))


def kernel_path(
    features: np.ndarray, scores: np.ndarray, seed: int, weights: np.ndarray | None = None
) -> Iterator[KernelRidge]:
    """One fit a setting, in the order of `settings`.

    Parameters
    ----------
    features : array, shape (spots, features)
    scores : array, shape (spots, rank)
    seed : int
        Draws the landmarks, where there are more than 2,048 spots.
    weights : array, shape (spots,), optional
        How much each spot counts, with mean 1; all alike when left out.
    """
    for width in WIDTHS:
        yield from _of_width(features, scores, seed, width, KERNEL_PENALTIES, weights)


def kernel_ridge(
    features: np.ndarray,
    scores: np.ndarray,
    seed: int,
    setting: tuple[float, float],
    weights: np.ndarray | None = None,
) -> KernelRidge:
    """The fit of one (width, penalty)."""
    width, penalty = setting
    return next(iter(_of_width(features, scores, seed, width, (penalty,), weights)))


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Euclidean, (first, second) float64: the root of a small difference of large squares needs the digits."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * (a @ b.T)
    return np.sqrt(np.maximum(squares, 0))


def _of_width(
    features: np.ndarray,
    scores: np.ndarray,
    seed: int,
    width: float,
    penalties: tuple[float, ...],
    weights: np.ndarray | None,
) -> Iterator[KernelRidge]:
    from scipy.linalg import cholesky, solve_triangular

    landmarks = _landmarks(features, seed)
    among = distances(landmarks, landmarks)
    rate = width / max(float(np.median(among)), 1e-12)
    kernel = np.exp(-rate * among)
    counts = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
    level = np.average(scores, axis=0, weights=counts)
    # In coordinates where the penalty is a plain a I: K_LL = R R^T, and then as ridge on k(., L) R^-T.
    root = cholesky(kernel + _JITTER * np.eye(len(kernel)), lower=True)
    gram, right = np.zeros_like(kernel), np.zeros((len(kernel), scores.shape[1]))
    for start in range(0, len(features), _SPOTS_AT_A_TIME):
        part, here = features[start : start + _SPOTS_AT_A_TIME], counts[start : start + _SPOTS_AT_A_TIME]
        mapped = solve_triangular(root, np.exp(-rate * distances(landmarks, part)), lower=True)
        gram += (mapped * here) @ mapped.T
        right += (mapped * here) @ (scores[start : start + _SPOTS_AT_A_TIME] - level)
    values, vectors = np.linalg.eigh(gram)
    turned = vectors.T @ right
    for penalty in penalties:
        inner = vectors @ (turned / (np.maximum(values, 0) + penalty)[:, None])
        slopes = solve_triangular(root, inner, lower=True, trans="T")
        yield KernelRidge(landmarks.astype(np.float32), slopes.astype(np.float32), level.astype(np.float32), rate)


def _landmarks(features: np.ndarray, seed: int) -> np.ndarray:
    if len(features) <= LANDMARKS:
        return features
    chosen = np.random.default_rng([seed, 0x1A4D]).choice(len(features), LANDMARKS, replace=False)
    return features[np.sort(chosen)]
