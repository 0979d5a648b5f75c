"""BLEEP: soft contrastive targets, top-k retrieval."""

from __future__ import annotations

from torch import Tensor

from cmrcnet.evaluation.methods.method import TrainingData
from cmrcnet.evaluation.methods.retrieval_weights import top_k
from cmrcnet.evaluation.methods.two_towers import HeadTowers, TowerPredictor, fit_towers
from cmrcnet.models.losses import contrastive_loss

K = 50
TEMPERATURE = 1.0


class Bleep:
    """Two projection heads, dot products at temperature 1, soft targets; mean of the 50 most similar spots.

    Source: Xie et al., "Spatially Resolved Gene Expression Prediction from Histology Images via Bi-modal Contrastive
    Learning", NeurIPS 2023, arXiv 2306.01859.

    Differs from the original: the image encoder is the run's frozen one (PCA-256), where BLEEP trains a ResNet-50 too;
    the gene side reads at most 1,000 genes of the training sections, minus their means, and no batch correction is
    fitted (BLEEP's has seen the test section); the epoch is chosen on a validation unit, not on random spots.
    """

    name = "bleep"
    about = "after BLEEP (Xie et al. 2023): projection heads on frozen features, soft targets, mean of the top 50 spots"

    def fit(self, training: TrainingData) -> TowerPredictor:
        """Train both heads and build the bank."""
        return fit_towers(training, BleepTowers, top_k(K))


class BleepTowers(HeadTowers):
    """Both heads under BLEEP's loss: dot products, soft targets, their transpose for the second direction."""

    def loss(self, image: Tensor, gene: Tensor) -> Tensor:
        """See `cmrcnet.models.losses`."""
        return contrastive_loss(
            image, gene, temperature=TEMPERATURE, similarity="dot", targets="soft", second_targets="transpose"
        )
