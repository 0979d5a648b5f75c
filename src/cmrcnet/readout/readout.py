"""The fitted readout of a model: reduced features in, expression scores out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cmrcnet.readout.blend import Blend
from cmrcnet.readout.kernel import KernelRidge
from cmrcnet.readout.reduction import Reduction
from cmrcnet.readout.ridge import Ridge

RETRIEVAL, RIDGE, KERNEL = "retrieval", "ridge", "kernel"


@dataclass(frozen=True, eq=False)
class Readout:
    """Everything between the tokens of a spot and its predicted expression scores, but for the bank.

    Parameters
    ----------
    reduction : Reduction
    ridge : Ridge
    kernel : KernelRidge
    blend : Blend
        Of retrieval, ridge and kernel.
    record : dict
        What was chosen and how it did on held-in units, plain values.
    """

    reduction: Reduction
    ridge: Ridge
    kernel: KernelRidge
    blend: Blend
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
        kind : {"retrieval", "ridge", "kernel", "blend"}
        """
        if kind == "blend":
            return self.blend.combine(parts)
        return (parts[kind] * self.blend.taper).astype(np.float32)

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
        return {"kernel_rate": self.kernel.rate, "blend": self.blend.to_dict(), "record": dict(self.record)}

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Readout:
        """The opposite of `arrays` and `facts`."""
        return cls(
            Reduction(arrays["reduction.mean"], arrays["reduction.directions"]),
            Ridge(arrays["ridge.weights"], arrays["ridge.offset"]),
            KernelRidge(
                arrays["kernel.landmarks"], arrays["kernel.weights"], arrays["kernel.offset"], facts["kernel_rate"]
            ),
            Blend.from_dict(facts["blend"]),
            facts["record"],
        )
