"""HEST-Bench's features with a penalty that was chosen."""

from __future__ import annotations

from cmrcnet.evaluation.methods.baselines import Linear, choose_penalty
from cmrcnet.evaluation.methods.hest_probe import last_layer
from cmrcnet.evaluation.methods.method import TrainingData


class PatchRidge:
    """The features of `hest-probe` (last layer, one patch), with the penalty chosen on validation units, as for
    `ridge`.

    Source: HEST-1k (Jaume et al., NeurIPS 2024, arXiv 2406.16192). Differs from its probe in the penalty, and in what
    `HestProbe` differs in.
    """

    name = "patch-ridge"
    about = "ridge on the encoder's last layer, one patch (HEST-Bench's features), penalty chosen on validation units"

    def fit(self, training: TrainingData) -> Linear:
        """Choose the penalty, then fit every gene."""
        penalty, tried = choose_penalty(training, last_layer)
        return Linear(training, penalty, {"penalty": penalty, "validation_pearson": tried}, last_layer)
