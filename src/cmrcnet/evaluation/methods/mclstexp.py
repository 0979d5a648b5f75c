"""mclSTExp: spots of a section as words of a sentence, with learned positions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from cmrcnet.evaluation.methods.baseline_inputs import View
from cmrcnet.evaluation.methods.method import TrainingData
from cmrcnet.evaluation.methods.retrieval_weights import top_k
from cmrcnet.evaluation.methods.training_loop import Schedule
from cmrcnet.evaluation.methods.two_towers import DROPOUT, EMBEDDING, TowerPredictor, fit_towers
from cmrcnet.models.cmrcnet import ProjectionHead
from cmrcnet.models.losses import contrastive_loss

K = 50
TEMPERATURE = 0.1
HEADS = 4
STEP_UM = 100.0
STEPS = 128
"""Locations that an axis knows: 100 um apart, 6.4 mm to either side of the section's middle; beyond it the last one."""


class MclSTExp:
    """A transformer over the section's spots on the expression side, contrast with the image side, weighted retrieval.

    Source: Min et al., "Multimodal contrastive learning for spatial gene expression prediction using histology
    images", Briefings in Bioinformatics 2024, arXiv 2407.08216.

    Differs from the original: the image encoder is the run's frozen one (PCA-256), where mclSTExp trains a
    DenseNet-121 too; positions are micrometres from the section's middle in steps of 100 um, not array indices; one
    transformer layer; a batch is one section; cosines at temperature 0.1 with identity targets; the 50 most similar
    spots are weighted by ``exp(cosine / 0.1)``; the epoch is chosen on a validation unit.
    """

    name = "mclstexp"
    about = "after mclSTExp (Min et al. 2024): transformer over spots with learned positions, contrast, weighted top 50"

    def fit(self, training: TrainingData) -> TowerPredictor:
        """Train both sides and build the bank."""
        return fit_towers(
            training, SpotSentence, top_k(K, TEMPERATURE), by_section=True, schedule=Schedule(most_epochs=30)
        )


class SpotSentence(nn.Module):
    """``head(transformer(W s + p_x + p_y))`` over the spots of a section, beside a head on the image features.

    Parameters
    ----------
    dim, genes : int
        Length of a spot's features, and number of genes read.
    """

    def __init__(self, dim: int, genes: int) -> None:
        super().__init__()
        self.image_head = ProjectionHead(dim, EMBEDDING, DROPOUT)
        self.word = nn.Linear(genes, EMBEDDING)
        self.across, self.down = nn.Embedding(STEPS, EMBEDDING), nn.Embedding(STEPS, EMBEDDING)
        for table in (self.across, self.down):
            nn.init.normal_(table.weight, std=0.02)
        self.spots = nn.TransformerEncoderLayer(
            EMBEDDING, HEADS, 2 * EMBEDDING, DROPOUT, "gelu", batch_first=True, norm_first=True
        )
        self.gene_head = ProjectionHead(EMBEDDING, EMBEDDING, DROPOUT)

    def image(self, view: View, rows: Tensor) -> Tensor:
        """Image embeddings at some rows: (rows, 256)."""
        return self.image_head(view.features[rows])

    def gene(self, view: View, rows: Tensor, expression: Tensor) -> Tensor:
        """Gene embeddings of some rows, which see the other rows of their section: (rows, 256)."""
        across, down = torch.from_numpy(steps_of(view.location_um[rows.numpy()])).unbind(dim=1)
        words = self.word(expression) + self.across(across) + self.down(down)
        section_of = view.section_of[rows.numpy()]
        out = torch.zeros_like(words)
        for name in dict.fromkeys(section_of):
            members = torch.from_numpy(np.flatnonzero(section_of == name))
            out = out.index_copy(0, members, self.spots(words[members][None])[0])
        return self.gene_head(out)

    def loss(self, image: Tensor, gene: Tensor) -> Tensor:
        """Cosines over the temperature, each pair its own target."""
        return contrastive_loss(image, gene, temperature=TEMPERATURE, similarity="cosine", targets="identity")


def steps_of(location_um: np.ndarray) -> np.ndarray:
    """Which learned place each coordinate takes: (spots, 2) int64, 0 to 127."""
    return np.clip(np.round(location_um / STEP_UM) + STEPS // 2, 0, STEPS - 1).astype(np.int64)
