"""CMRCNet without its reconstruction."""

from __future__ import annotations

from dataclasses import replace

from cmrcnet.evaluation.methods.method import Predictor, TrainingData
from cmrcnet.evaluation.methods.trained_cmrcnet import TrainedCMRCNet


class ContrastiveOnly:
    """The run's config with ``model.reconstruct: none``: contrastive training and retrieval, all else the same.

    After BLEEP's objective and retrieval (Xie et al., NeurIPS 2023, arXiv 2306.01859), with the config's own heads,
    geometry, temperature, targets and head; `bleep` is nearer to the original. The difference between `cmrcnet`
    and this row is what the reconstruction earns.
    """

    name = "contrastive-only"
    about = "CMRCNet without reconstruction, all else as in the config (BLEEP's kind of objective and retrieval)"

    def fit(self, training: TrainingData) -> Predictor:
        """Train as `cmrcnet` does, without the reconstruction."""
        config = training.config.override({"model.reconstruct": "none"})
        return TrainedCMRCNet().fit(replace(training, config=config))
