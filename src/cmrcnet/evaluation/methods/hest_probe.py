"""HEST-Bench's probe, with its own penalty."""

from __future__ import annotations

import numpy as np

from cmrcnet.evaluation.methods.baselines import COMPONENTS, Linear
from cmrcnet.evaluation.methods.frozen_features import PooledFeatures
from cmrcnet.evaluation.methods.method import TrainingData
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import Slide


class HestProbe:
    """Last layer of the encoder, one patch a spot, mean token, PCA to 256, ridge with HEST-Bench's penalty.

    Source: HEST-1k (Jaume et al., NeurIPS 2024, arXiv 2406.16192). Its benchmark reduces to 256 components and takes
    the penalty ``100 / (components * genes)``, without an intercept, for 50 genes (README of the HEST library; issue
    144 there). That is hardly any penalty.

    Differs from the original: the features are standardised before the PCA; an intercept is fitted, so that the level
    of a gene is right (Pearson does not feel it); every gene is predicted, the number of genes in the penalty staying
    that of the scored set; the folds are those of the run.
    """

    name = "hest-probe"
    about = "HEST-Bench's probe: last layer, one patch, PCA-256, ridge with its own penalty 100 / (components x genes)"

    def fit(self, training: TrainingData) -> Linear:
        """Fit every gene on all training spots."""
        shape = training.expression.shape[0], last_layer_width(training)
        penalty = hest_penalty(min(COMPONENTS, shape[1], shape[0] - 1), training.config.evaluation.set_size)
        return Linear(training, penalty, {"penalty": penalty}, last_layer)


def hest_penalty(components: int, genes: int) -> float:
    """``100 / (components * genes)``, as HEST-Bench takes it."""
    return 100 / (components * genes)


def last_layer(features: PooledFeatures, slide: Slide, spots: Spots) -> np.ndarray:
    """Mean token of the encoder's last output, one patch a spot: (spots, dim) float32."""
    return features.last_layer(slide, spots)


def last_layer_width(training: TrainingData) -> int:
    """Length of the last layer's mean token."""
    section = training.cohort.read(training.cohort.sections[0])
    return last_layer(training.features, section.slide, section.spots).shape[1]
