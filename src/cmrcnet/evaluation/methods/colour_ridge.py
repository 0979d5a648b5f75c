"""Ridge on plain colour: what the stain alone tells."""

from __future__ import annotations

import numpy as np

from cmrcnet.evaluation.methods.baselines import Linear, choose_penalty
from cmrcnet.evaluation.methods.frozen_features import PooledFeatures
from cmrcnet.evaluation.methods.method import TrainingData
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import Slide


class ColourRidge:
    """Ridge on 54 colour statistics of each patch (`colour.colour_statistics`); a network must beat it.

    Source: none; a control of ours. The penalty is chosen on validation units, as for `ridge`.
    """

    name = "colour-ridge"
    about = (
        "ridge on the patch's colour only (mean, deviation, histogram of each channel), penalty "
        "chosen on validation units"
    )

    def fit(self, training: TrainingData) -> Linear:
        """Choose the penalty, then fit every gene."""
        penalty, tried = choose_penalty(training, colour)
        return Linear(training, penalty, {"penalty": penalty, "validation_pearson": tried}, colour)


def colour(features: PooledFeatures, slide: Slide, spots: Spots) -> np.ndarray:
    """Colour statistics of each spot's patch: (spots, 54) float32."""
    return features.colour(slide, spots)
