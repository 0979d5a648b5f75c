"""Loki: an average over all training spots, weighted by similarity."""

from __future__ import annotations

from torch import Tensor

from cmrcnet.evaluation.methods.method import TrainingData
from cmrcnet.evaluation.methods.retrieval_weights import all_by_similarity
from cmrcnet.evaluation.methods.two_towers import HeadTowers, TowerPredictor, fit_towers
from cmrcnet.models.losses import contrastive_loss

TEMPERATURE = 0.1


class Loki:
    """Every training spot counts by its cosine similarity to the patch, in a contrastively trained space.

    Source: Chen et al., "A visual-omics foundation model to bridge histopathology with spatial transcriptomics",
    Nature Methods 2025, doi 10.1038/s41592-025-02707-1 (the prediction of Loki on OmiCLIP).

    Differs from the original: OmiCLIP was trained on 2.2 million pairs from elsewhere, with expression written as a
    sentence of gene names; here the space is learnt inside the fold, by two projection heads on the run's frozen
    features (PCA-256) and on expression, with identity targets at temperature 0.1. The similarity is between the
    patch and the measured expression. Negative similarities count as 0, so that the weights are shares.
    """

    name = "loki"
    about = "after Loki (Chen et al. 2025): all training spots, weighted by similarity in a space trained in the fold"

    def fit(self, training: TrainingData) -> TowerPredictor:
        """Train both heads and build the bank."""
        return fit_towers(training, ClipTowers, all_by_similarity)


class ClipTowers(HeadTowers):
    """Both heads under the loss of CLIP: cosines over the temperature, each pair its own target."""

    def loss(self, image: Tensor, gene: Tensor) -> Tensor:
        """See `cmrcnet.models.losses`."""
        return contrastive_loss(image, gene, temperature=TEMPERATURE, similarity="cosine", targets="identity")
