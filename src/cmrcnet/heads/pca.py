"""Principal components of image features: the input of every head and of the image head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from cmrcnet.errors import ShapeMismatch

COMPONENTS = 256
"""As HEST-Bench's probe (Jaume et al., NeurIPS 2024); 64 did as well on the sections at hand."""


@dataclass(frozen=True, eq=False)
class FeaturePCA:
    """Mean (dim,) and directions (dim, components) of a principal component analysis, float32.

    The directions are orthogonal, scaled so that the components together have mean square 1 over the training spots.
    """

    mean: np.ndarray
    directions: np.ndarray

    def apply(self, features: np.ndarray) -> np.ndarray:
        """(spots, components) float32 of features (spots, dim), or of tokens (spots, tokens, dim) laid flat."""
        flat = np.asarray(features, np.float32).reshape(len(features), -1)
        if flat.shape[1] != len(self.mean):
            raise ShapeMismatch("features", want=("spots", len(self.mean)), got=flat.shape)
        return (flat - self.mean) @ self.directions


@threadpool_limits.wrap(limits=1, user_api="blas")  # several threads may differ in the last bit, and so may two runs
def fit_pca(features: np.ndarray, seed: int, components: int = COMPONENTS) -> FeaturePCA:
    """Principal components (not whitened) of the training spots' features (spots, dim) or tokens (spots, tokens, dim).

    `seed` is that of the randomised solver, which scikit-learn takes for many features; the number of spots limits
    `components`.

    Examples
    --------
    >>> pca = fit_pca(np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]]), seed=0)
    >>> abs(pca.apply(np.array([[2.0, 1.0], [4.0, 1.0]]))).round(3)
    array([[0.   , 0.   ],
           [1.414, 0.   ]], dtype=float32)
    """
    from sklearn.decomposition import PCA

    flat = np.asarray(features, np.float32).reshape(len(features), -1)
    count = max(1, min(components, flat.shape[1], len(flat) - 1))
    pca: Any = PCA(count, random_state=seed).fit(flat)
    power = float(np.sqrt(pca.explained_variance_.mean())) or 1.0
    return FeaturePCA(pca.mean_.astype(np.float32), (pca.components_.T / max(power, 1e-12)).astype(np.float32))
