"""The fitted head of a model: from image features to expression scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cmrcnet.heads.ensemble import Ensemble
from cmrcnet.heads.pca import FeaturePCA
from cmrcnet.heads.ridge import KernelRidge, Ridge
from cmrcnet.storage.arrays import arrays_of, arrays_under

RETRIEVAL, RIDGE, KERNEL = "retrieval", "ridge", "kernel"
PARTS = (RETRIEVAL, RIDGE, KERNEL)


@dataclass(frozen=True, eq=False)
class Head:
    """PCA of a spot's tokens, ridge and kernel ridge regression on its components, and their ensemble with retrieval.

    `record` holds the chosen settings and their validation scores as plain values.
    """

    pca: FeaturePCA
    ridge: Ridge
    kernel: KernelRidge
    ensemble: Ensemble
    record: Mapping[str, Any] = field(default_factory=dict)

    def parts(
        self, features: np.ndarray, retrieved: np.ndarray | None, names: Sequence[str] = PARTS
    ) -> dict[str, np.ndarray]:
        """Predictions of the parts `names`, by name: (spots, rank) each.

        `features` (spots, components) are from `pca`; `retrieved` (spots, rank) are the bank's scores, averaged over
        each spot's neighbours.
        """
        makes = {
            RETRIEVAL: lambda: retrieved,
            RIDGE: lambda: self.ridge.predict(features),
            KERNEL: lambda: self.kernel.predict(features),
        }
        return {name: makes[name]() for name in names}

    def combine(self, parts: Mapping[str, np.ndarray], kind: str) -> np.ndarray:
        """Combine the parts into predicted scores: (spots, rank) float32; `kind` is "ensemble" or a part's name."""
        if kind == "ensemble":
            return self.ensemble.combine(parts)
        return (parts[kind] * self.ensemble.component_weights).astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays to store."""
        return arrays_of("pca", self.pca) | arrays_of("ridge", self.ridge) | arrays_of("kernel", self.kernel)

    def facts(self) -> dict[str, Any]:
        """Plain values to store."""
        return {"kernel_rate": self.kernel.rate, "ensemble": self.ensemble.to_dict(), "record": dict(self.record)}

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Head:
        """Inverse of `arrays` and `facts`."""
        return cls(
            FeaturePCA(**arrays_under("pca", arrays)),
            Ridge(**arrays_under("ridge", arrays)),
            KernelRidge(**arrays_under("kernel", arrays), rate=facts["kernel_rate"]),
            Ensemble.from_dict(facts["ensemble"]),
            facts["record"],
        )
