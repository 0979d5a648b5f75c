"""Ridge on an encoder that has learnt nothing: what the architecture alone gives."""

from __future__ import annotations

import numpy as np

from cmrcnet.evaluation.baselines import Linear, choose_penalty
from cmrcnet.evaluation.features import PooledFeatures
from cmrcnet.evaluation.methods import TrainingData
from cmrcnet.tissue.slide import Slide
from cmrcnet.tissue.spots import Spots


class UntrainedEncoder:
    """Ridge on the recipe's encoder and blocks with random weights (seeded); what training the encoder earned is above.

    Source: none; a control of ours. The penalty is chosen on held-in units, as for `ridge`.
    """

    name = "untrained-encoder"
    about = "ridge on the same encoder with random weights, penalty chosen on held-in units"

    def fit(self, training: TrainingData) -> Linear:
        """Choose the penalty, then fit every gene."""
        penalty, tried = choose_penalty(training, untrained)
        return Linear(training, penalty, {"penalty": penalty, "held_in_pearson": tried}, untrained)


def untrained(features: PooledFeatures, slide: Slide, spots: Spots) -> np.ndarray:
    """Features of the untrained encoder: (spots, dim) float32."""
    return features.untrained(slide, spots)
