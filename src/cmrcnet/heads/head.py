"""The fitted head of a model: reduced features in, expression scores out."""

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
    """Everything between the tokens of a spot and its predicted expression scores, but for the bank.

    Parameters
    ----------
    reduction : FeaturePCA
    ridge : Ridge
    kernel : KernelRidge
    ensemble : Ensemble
        Of retrieval, ridge and kernel.
    record : dict
        What was chosen and how it did on validation units, plain values.
    """

    reduction: FeaturePCA
    ridge: Ridge
    kernel: KernelRidge
    ensemble: Ensemble
    record: Mapping[str, Any] = field(default_factory=dict)

    def parts(self, features: np.ndarray, retrieved: np.ndarray) -> dict[str, np.ndarray]:
        """What each part predicts by itself, by name: (spots, rank) each.

        Parameters
        ----------
        features : array, shape (spots, components)
            Reduced.
        retrieved : array, shape (spots, rank)
            The bank's scores, averaged over each spot's neighbours.
        """
        return {RETRIEVAL: retrieved, RIDGE: self.ridge.predict(features), KERNEL: self.kernel.predict(features)}

    def combine(self, parts: Mapping[str, np.ndarray], kind: str) -> np.ndarray:
        """Predicted expression scores: (spots, rank) float32.

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
        """What is stored beside the weights."""
        return {
            "reduction.mean": self.reduction.mean,
            "reduction.directions": self.reduction.directions,
            "ridge.weights": self.ridge.weights,
            "ridge.offset": self.ridge.offset,
            "kernel.landmarks": self.kernel.landmarks,
            "kernel.weights": self.kernel.weights,
            "kernel.offset": self.kernel.offset,
        }

    def facts(self) -> dict[str, Any]:
        """What is stored as plain values."""
        return {"kernel_rate": self.kernel.rate, "ensemble": self.ensemble.to_dict(), "record": dict(self.record)}

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Head:
        """The opposite of `arrays` and `facts`."""
        return cls(
            FeaturePCA(arrays["reduction.mean"], arrays["reduction.directions"]),
            Ridge(arrays["ridge.weights"], arrays["ridge.offset"]),
            KernelRidge(
                arrays["kernel.landmarks"], arrays["kernel.weights"], arrays["kernel.offset"], facts["kernel_rate"]
            ),
            Ensemble.from_dict(facts["ensemble"]),
            facts["record"],
        )
