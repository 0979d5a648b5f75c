"""Ridge and kernel ridge regression of expression scores on image features, for many penalties at the cost of one.

Ridge is ``W = (Z^T D Z + a I)^-1 Z^T D S`` (Hoerl and Kennard 1970); D holds the spots' weights, and features and
scores are centred over the training spots with the same weights.

Kernel ridge has a Laplacian kernel on landmarks L (all training spots, or a seeded sample), ``k(a, b) = exp(-g |a - b|
/ m)`` with m the median distance between landmarks::

    prediction(z) = k(z, L) W + offset
    W = (K_nL^T D K_nL + a K_LL)^-1 K_nL^T D S    subset of regressors (Rasmussen and Williams 2006, 8.3.1)

With all spots as landmarks that is kernel ridge regression, ``W = (K + a D^-1)^-1 S``. The kernel takes the distance
and not its square, because features have heavy tails. sklearn's Ridge and KernelRidge factorise anew for every
penalty and have no landmarks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

PENALTIES = tuple(float(10.0**power) for power in np.arange(-3, 3.5, 0.5))
"""Of ridge, per training spot: features have mean square 1, so that a penalty means the same at any size."""
WIDTHS = (0.1, 0.25, 0.5, 1.0)
KERNEL_PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
SETTINGS = tuple(itertools.product(WIDTHS, KERNEL_PENALTIES))
"""Every (width, penalty) of the search grid of kernel ridge."""
LANDMARKS = 2048

_SPOTS_AT_A_TIME = 4096
_JITTER = 1e-6


def ridge_solutions(gram: np.ndarray, products: np.ndarray, penalties: Sequence[float]) -> Iterator[np.ndarray]:
    """Solve ``(gram + penalty I) W = products`` for each penalty, above 0, with one eigendecomposition.

    `gram` (features, features) is ``Z^T Z``, `products` (features, targets) ``Z^T S``; yields (features, targets).

    Examples
    --------
    >>> for weights in ridge_solutions(np.diag([1.0, 3.0]), np.array([[2.0], [4.0]]), (1.0, 3.0)):
    ...     print(weights.ravel().round(3))
    [1. 1.]
    [0.5   0.667]
    """
    values, vectors = np.linalg.eigh(gram)
    rotated = vectors.T @ products
    for penalty in penalties:
        yield vectors @ (rotated / (np.maximum(values, 0) + penalty)[:, None])


@dataclass(frozen=True, eq=False)
class Ridge:
    """A fitted linear map: weights (features, rank) and offset (rank,), float32."""

    weights: np.ndarray
    offset: np.ndarray

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(spots, rank) float32 of features (spots, features)."""
        return features @ self.weights + self.offset


def ridge_path(
    features: np.ndarray,
    scores: np.ndarray,
    penalties: Sequence[float] = PENALTIES,
    weights: np.ndarray | None = None,
) -> list[Ridge]:
    """Fit ridge regression of scores (spots, rank) on features (spots, features) for each penalty.

    Each penalty times the number of spots is added to the diagonal. `weights` (spots,) has mean 1; all are equal when
    left out.

    Examples
    --------
    >>> features = np.array([[-1.0], [0.0], [1.0]])
    >>> exact, shrunk = ridge_path(features, 2 * features + 5, penalties=(1e-9, 2 / 3))
    >>> exact.weights.item(), round(shrunk.weights.item(), 6), shrunk.offset.item()
    (2.0, 1.0, 5.0)
    """
    inputs, targets = np.asarray(features, np.float64), np.asarray(scores, np.float64)
    counts = np.ones(len(inputs)) if weights is None else np.asarray(weights, np.float64)
    centre, level = np.average(inputs, axis=0, weights=counts), np.average(targets, axis=0, weights=counts)
    root = np.sqrt(counts)[:, None]
    inputs, targets = root * (inputs - centre), root * (targets - level)
    scaled = [penalty * len(inputs) for penalty in penalties]
    return [
        Ridge(slopes.astype(np.float32), (level - centre @ slopes).astype(np.float32))
        for slopes in ridge_solutions(inputs.T @ inputs, inputs.T @ targets, scaled)
    ]


@dataclass(frozen=True, eq=False)
class KernelRidge:
    """Landmarks (landmarks, features), their weights (landmarks, rank) and offset (rank,), float32; `rate` is ``g /
    m``.
    """

    landmarks: np.ndarray
    weights: np.ndarray
    offset: np.ndarray
    rate: float

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(spots, rank) float32 of features (spots, features), computed in chunks of spots."""
        found = np.empty((len(features), self.weights.shape[1]), np.float32)
        for start in range(0, len(features), _SPOTS_AT_A_TIME):
            part = slice(start, start + _SPOTS_AT_A_TIME)
            kernel = np.exp(-self.rate * distances(features[part], self.landmarks))
            found[part] = kernel @ self.weights + self.offset
        return found


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Euclidean distances, (first, second) float64: float32 would cancel in the difference of large squares."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * (a @ b.T)
    return np.sqrt(np.maximum(squares, 0))


def kernel_path(
    features: np.ndarray,
    scores: np.ndarray,
    seed: int,
    weights: np.ndarray | None = None,
    settings: Sequence[tuple[float, float]] = SETTINGS,
) -> Iterator[KernelRidge]:
    """Fit kernel ridge regression for each (width, penalty) of `settings`, in their order; see `ridge_path`.

    `seed` draws the landmarks when there are more than 2,048 spots.
    """
    from scipy.linalg import cholesky, solve_triangular

    landmarks = features
    if len(features) > LANDMARKS:
        chosen = np.random.default_rng([seed, 0x1A4D]).choice(len(features), LANDMARKS, replace=False)
        landmarks = features[np.sort(chosen)]
    among = distances(landmarks, landmarks)
    counts = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
    level = np.average(scores, axis=0, weights=counts)
    for width, same in itertools.groupby(settings, key=lambda setting: setting[0]):
        rate = width / max(float(np.median(among)), 1e-12)
        kernel = np.exp(-rate * among)
        # With K_LL = R R^T the penalty becomes a I, and the fit is ridge regression on k(., L) R^-T.
        root = cholesky(kernel + _JITTER * np.eye(len(kernel)), lower=True)
        gram, products = np.zeros_like(kernel), np.zeros((len(kernel), scores.shape[1]))
        for start in range(0, len(features), _SPOTS_AT_A_TIME):
            part = slice(start, start + _SPOTS_AT_A_TIME)
            mapped = solve_triangular(root, np.exp(-rate * distances(landmarks, features[part])), lower=True)
            weighted = mapped * counts[part]
            gram += weighted @ mapped.T
            products += weighted @ (scores[part] - level)
        for inner in ridge_solutions(gram, products, [penalty for _, penalty in same]):
            slopes = solve_triangular(root, inner, lower=True, trans=1)
            yield KernelRidge(landmarks.astype(np.float32), slopes.astype(np.float32), level.astype(np.float32), rate)
