"""The fitted head of a model: from image features to expression scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cmrcnet.heads.ensemble import Ensemble
from cmrcnet.heads.pca import FeaturePCA
from cmrcnet.heads.ridge import KernelRidge, Ridge

RETRIEVAL, RIDGE, KERNEL = "retrieval", "ridge", "kernel"


@dataclass(frozen=True, eq=False)
class Head:
    """PCA of the features, ridge and kernel ridge regression, and their ensemble with retrieval.

    Parameters
    ----------
    pca : FeaturePCA
        Applied to a spot's tokens.
    ridge : Ridge
        On the PCA's components.
    kernel : KernelRidge
        On the same.
    ensemble : Ensemble
        Of retrieval, ridge and kernel.
    record : dict
        Chosen settings and their validation scores, plain values.
    """

    pca: FeaturePCA
    ridge: Ridge
    kernel: KernelRidge
    ensemble: Ensemble
    record: Mapping[str, Any] = field(default_factory=dict)

    def parts(self, features: np.ndarray, retrieved: np.ndarray) -> dict[str, np.ndarray]:
        """Predictions of the parts, by name: (spots, rank) each.

        Parameters
        ----------
        features : array, shape (spots, components)
            From `pca`.
        retrieved : array, shape (spots, rank)
            The bank's scores, averaged over each spot's neighbours.
        """
        return {RETRIEVAL: retrieved, RIDGE: self.ridge.predict(features), KERNEL: self.kernel.predict(features)}

    def combine(self, parts: Mapping[str, np.ndarray], kind: str) -> np.ndarray:
        """Combine the parts into predicted scores: (spots, rank) float32.

        Parameters
        ----------
        parts : mapping of str to array, shape (spots, rank)
            From `parts`.
        kind : {"retrieval", "ridge", "kernel", "ensemble"}
        """
        if kind == "ensemble":
            return self.ensemble.combine(parts)
        return (parts[kind] * self.ensemble.component_weights).astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays to store."""
        return {
            "pca.mean": self.pca.mean,
            "pca.directions": self.pca.directions,
            "ridge.weights": self.ridge.weights,
            "ridge.offset": self.ridge.offset,
            "kernel.landmarks": self.kernel.landmarks,
            "kernel.weights": self.kernel.weights,
            "kernel.offset": self.kernel.offset,
        }

    def facts(self) -> dict[str, Any]:
        """Plain values to store."""
        return {"kernel_rate": self.kernel.rate, "ensemble": self.ensemble.to_dict(), "record": dict(self.record)}

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Head:
        """Inverse of `arrays` and `facts`."""
        return cls(
            FeaturePCA(arrays["pca.mean"], arrays["pca.directions"]),
            Ridge(arrays["ridge.weights"], arrays["ridge.offset"]),
            KernelRidge(
                arrays["kernel.landmarks"], arrays["kernel.weights"], arrays["kernel.offset"], facts["kernel_rate"]
            ),
            Ensemble.from_dict(facts["ensemble"]),
            facts["record"],
        )
