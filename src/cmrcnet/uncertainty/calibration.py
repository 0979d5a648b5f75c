"""Calibration of a model: what its training sections tell about the errors of its predictions.

It is fitted while the model is trained, stored beside the weights and applied to every prediction.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from cmrcnet.storage.arrays import arrays_of, arrays_under
from cmrcnet.uncertainty.conformal import ConformalIntervals, NonconformityScale
from cmrcnet.uncertainty.gene_reliability import GeneReliability
from cmrcnet.uncertainty.ood import OODDetector


@dataclass(frozen=True, eq=False)
class PredictionReliability:
    """Statistics of the validation predictions: error scale of locations, interval widths, reliability of genes.

    `component_power` (rank,) is the mean square loading of each expression component, for `nonconformity_features`;
    `intervals` are for the genes of `gene_reliability`, in their order.
    """

    nonconformity: NonconformityScale
    component_power: np.ndarray
    intervals: ConformalIntervals
    gene_reliability: GeneReliability


@dataclass(frozen=True, eq=False)
class Calibration:
    """Out-of-distribution detector (of the training images) and validation statistics of a model.

    `reliability` is None, and `why_not` says why, when there are no predictions of left-out groups: the config has no
    validation of each group in turn.
    """

    ood_detector: OODDetector | None
    reliability: PredictionReliability | None
    why_not: str = ""

    def arrays(self) -> dict[str, np.ndarray]:
        """All content as arrays by name; plain values are JSON in an array of bytes."""
        found: dict[str, np.ndarray] = {}
        facts: dict[str, Any] = {"why_not": self.why_not, "ood_detector": None, "reliability": None}
        if self.ood_detector is not None:
            found |= arrays_of("ood_detector", self.ood_detector)
            facts["ood_detector"] = self.ood_detector.to_dict()
        if self.reliability is not None:
            each = self.reliability
            found["component_power"] = each.component_power
            for name in ("nonconformity", "intervals", "gene_reliability"):
                found |= arrays_of(name, getattr(each, name))
            facts["reliability"] = {
                "intervals": each.intervals.facts,
                "gene_reliability": each.gene_reliability.facts,
                "genes": list(each.gene_reliability.genes),
            }
        found["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        return found

    @classmethod
    def restore(cls, arrays: dict[str, np.ndarray]) -> Calibration:
        """Inverse of `arrays`."""
        facts = json.loads(bytes(arrays["facts"]))
        detector = reliability = None
        if facts["ood_detector"] is not None:
            detector = OODDetector.restore(arrays_under("ood_detector", arrays), facts["ood_detector"])
        if facts["reliability"] is not None:
            known = facts["reliability"]
            reliability = PredictionReliability(
                NonconformityScale(**arrays_under("nonconformity", arrays)),
                arrays["component_power"],
                ConformalIntervals(**arrays_under("intervals", arrays), facts=known["intervals"]),
                GeneReliability(
                    tuple(known["genes"]), **arrays_under("gene_reliability", arrays), facts=known["gene_reliability"]
                ),
            )
        return cls(detector, reliability, facts["why_not"])
