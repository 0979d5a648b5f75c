"""Ridge on an encoder that has learnt nothing: what the architecture alone gives."""

from __future__ import annotations

import numpy as np

from cmrcnet.evaluation.methods.baselines import Linear, choose_penalty
from cmrcnet.evaluation.methods.frozen_features import PooledFeatures
from cmrcnet.evaluation.methods.method import TrainingData
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import Slide


class UntrainedEncoder:
    """Ridge on the config's encoder and blocks with random weights (seeded); what training the encoder earned is above.

    Source: none; a control of ours. The penalty is chosen on validation units, as for `ridge`.
    """

    name = "untrained-encoder"
    about = "ridge on the same encoder with random weights, penalty chosen on validation units"

    def fit(self, training: TrainingData) -> Linear:
        """Choose the penalty, then fit every gene."""
        penalty, tried = choose_penalty(training, untrained)
        return Linear(training, penalty, {"penalty": penalty, "validation_pearson": tried}, untrained)


def untrained(features: PooledFeatures, slide: Slide, spots: Spots) -> np.ndarray:
    """Features of the untrained encoder: (spots, dim) float32."""
    return features.untrained(slide, spots)
