"""Published baselines that retrieve (BLEEP, mclSTExp, Loki): two contrastively trained towers, measured spots averaged.

The gene tower reads up to 1,000 genes (`genes_learnt`), each minus its training mean. The bank holds the full
expression, so every gene is predicted.

The file is one thing: retrieving baselines, which differ in their towers, loss and weights only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cmrcnet.evaluation import Sparse
from cmrcnet.evaluation.methods.baseline_training import (
    BaselineInputs,
    Schedule,
    SpotInputs,
    genes_learnt,
    train_baseline,
)
from cmrcnet.evaluation.methods.baselines import hvg_of
from cmrcnet.evaluation.methods.method import FoldData, Location, Prediction
from cmrcnet.models.cmrcnet import ProjectionHead
from cmrcnet.models.losses import contrastive_loss

QUERIES_AT_A_TIME = 256

Weigh = Callable[[np.ndarray], np.ndarray]
"""Takes similarities (queries, bank), gives weights of the same shape."""


def top_k(similarity: np.ndarray, k: int, temperature: float | None = None) -> np.ndarray:
    """Weights of the k most similar (all, in a smaller bank): even, or by ``exp(similarity / temperature)``."""
    kept = min(k, similarity.shape[1])
    ids = np.argsort(-similarity, axis=1, kind="stable")[:, :kept]
    chosen = np.take_along_axis(similarity, ids, axis=1)
    value = np.ones_like(chosen) if temperature is None else np.exp((chosen - chosen[:, :1]) / temperature)
    weights = np.zeros_like(similarity)
    np.put_along_axis(weights, ids, value / value.sum(axis=1, keepdims=True), axis=1)
    return weights


def all_by_similarity(similarity: np.ndarray) -> np.ndarray:
    """Weights of all spots, by similarity; those below 0 get none. Even where none is above 0."""
    positive = np.maximum(similarity, 0)
    total = positive.sum(axis=1, keepdims=True)
    even = np.full_like(positive, 1 / positive.shape[1])
    return np.where(total > 0, positive / np.where(total > 0, total, 1), even)


def averaged(queries: np.ndarray, bank: np.ndarray, expression: Sparse | np.ndarray, weigh: Weigh) -> np.ndarray:
    """The expression of a bank, averaged for each query by its cosine similarities: (queries, genes) float32.

    Embeddings are (queries, dim) and (bank, dim), of any length; the expression is (bank, genes).
    """
    lengths = (np.linalg.norm(each, axis=1, keepdims=True) for each in (queries, bank))
    queries, bank = (each / np.where(n > 0, n, 1) for each, n in zip((queries, bank), lengths, strict=True))
    found = []
    for start in range(0, len(queries), QUERIES_AT_A_TIME):
        weights = weigh(queries[start : start + QUERIES_AT_A_TIME] @ bank.T)
        # With the expression sparse, its transpose takes the dense weights from the left.
        found.append(np.asarray((expression.T @ weights.T).T, np.float32))
    return np.concatenate(found)


EMBEDDING = 256
DROPOUT = 0.1
K = 50
"""Spots that BLEEP and mclSTExp average."""
TEMPERATURE = 0.1
"""Of the cosines in mclSTExp and Loki; BLEEP takes dot products at temperature 1."""
CLIP = partial(contrastive_loss, temperature=TEMPERATURE, similarity="cosine", targets="identity")
"""Loss of pairs of image and gene embeddings: cosines over the temperature, each pair its own target."""


class Towers(nn.Module):
    """A projection head on the image features (length `dim`), another on the expression."""

    def __init__(self, dim: int, genes: int) -> None:
        super().__init__()
        self.image_head = ProjectionHead(dim, EMBEDDING, DROPOUT)
        self.gene_head = ProjectionHead(genes, EMBEDDING, DROPOUT)

    def image(self, inputs: SpotInputs, rows: Tensor) -> Tensor:
        """Image embeddings at some rows: (rows, 256)."""
        return self.image_head(inputs.features[rows])

    def gene(self, inputs: SpotInputs, rows: Tensor, expression: Tensor) -> Tensor:
        """Gene embeddings of some rows, given their expression (rows, genes): (rows, 256)."""
        return self.gene_head(expression)


@dataclass(frozen=True, eq=False)
class Contrast:
    """Two towers and the pairs that they may learn from, the training `rows`: a `Trainable`."""

    network: Towers
    inputs: SpotInputs
    expression: Tensor  # (spots, genes learnt), minus the mean over `rows`
    rows: np.ndarray
    hvg: np.ndarray  # (spots, HVG)
    weigh: Weigh
    contrast: Callable[[Tensor, Tensor], Tensor]

    def loss(self, rows: np.ndarray) -> Tensor:
        """Mean contrast of the pairs."""
        at = torch.from_numpy(rows)
        image, gene = self.network.image(self.inputs, at), self.network.gene(self.inputs, at, self.expression[at])
        return self.contrast(image, gene).mean()

    def bank(self) -> np.ndarray:
        """Gene embeddings of the rows learnt from: (rows, 256)."""
        at = torch.from_numpy(self.rows)
        with torch.no_grad():
            return self.network.gene(self.inputs, at, self.expression[at]).numpy()

    def guess(self, rows: np.ndarray) -> np.ndarray:
        """The HVG, retrieved from the rows learnt from."""
        with torch.no_grad():
            queries = self.network.image(self.inputs, torch.from_numpy(rows)).numpy()
        return averaged(queries, self.bank(), self.hvg[self.rows], self.weigh)


@dataclass(frozen=True)
class TowerMethod:
    """A method: two towers, trained in contrast, and measured spots averaged by `weigh`.

    `build` takes the width of a spot's features and the number of genes read; `contrast` the image and gene embeddings
    of a batch of pairs.
    """

    name: str
    about: str
    build: Callable[[int, int], Towers]
    weigh: Weigh
    schedule: Schedule = field(default_factory=Schedule)
    contrast: Callable[[Tensor, Tensor], Tensor] = CLIP
    inputs: Callable[[FoldData], BaselineInputs] = BaselineInputs

    def fit(self, training: FoldData) -> FittedTowers:
        """Train both towers and build the bank of the training spots' expression."""
        inputs, columns, hvg = self.inputs(training), genes_learnt(training), hvg_of(training)
        expression = torch.from_numpy(np.asarray(training.expression[:, columns].todense(), np.float32))

        def make(rows: np.ndarray) -> Contrast:
            centred = expression - expression[rows].mean(dim=0)
            network = self.build(inputs.width, len(columns))
            return Contrast(network, inputs.training, centred, rows, hvg, self.weigh, self.contrast)

        learnt = train_baseline(training, make, self.schedule)
        record = {**learnt.record, "genes_learnt": len(columns)}
        trained = learnt.trainable
        return FittedTowers(
            training.genes, training.expression, inputs, trained.network, trained.bank(), self.weigh, record
        )


@dataclass(frozen=True, eq=False)
class FittedTowers:
    """Trained towers, and the bank of training spots: embeddings (spots, 256) and expression (spots, genes)."""

    genes: tuple[str, ...]
    expression: Sparse
    inputs: BaselineInputs
    network: Towers
    bank: np.ndarray
    weigh: Weigh
    record: dict[str, Any]

    def predict(self, location: Location) -> Prediction:
        """Every gene, averaged over measured spots."""
        with torch.no_grad():
            queries = self.network.image(self.inputs.of(location), torch.arange(len(location.spots))).numpy()
        return Prediction(self.genes, averaged(queries, self.bank, self.expression, self.weigh))


BLEEP = TowerMethod(
    "bleep",
    "after BLEEP (Xie et al. 2023): projection heads on frozen features, soft targets, mean of the top 50 spots",
    Towers,
    partial(top_k, k=K),
    contrast=partial(
        contrastive_loss, temperature=1.0, similarity="dot", targets="soft", second_targets="transpose"
    ),  # the transpose: soft targets of the second direction
)
"""Two projection heads, dot products at temperature 1, soft targets; mean of the 50 most similar spots.

Source: Xie et al., "Spatially Resolved Gene Expression Prediction from Histology Images via Bi-modal Contrastive
Learning", NeurIPS 2023, arXiv 2306.01859.

Differs from the original: the image encoder is the run's frozen one (PCA-256), where BLEEP trains a ResNet-50 too;
the gene side reads at most 1,000 genes of the training sections, minus their means, and no batch correction is
fitted (BLEEP's has seen the test section); the epoch is chosen on a validation group, not on random spots.
"""


HEADS = 4
STEP_UM = 100.0
STEPS = 128
"""Locations that an axis knows: 100 um apart, 6.4 mm to either side of the section's middle; beyond it the last one."""


class SpotSentence(Towers):
    """``head(transformer(W s + p_x + p_y))`` over the spots of a section, beside a head on the image features."""

    def __init__(self, dim: int, genes: int) -> None:
        nn.Module.__init__(self)  # the heads are drawn in the order below
        self.image_head = ProjectionHead(dim, EMBEDDING, DROPOUT)
        self.word = nn.Linear(genes, EMBEDDING)
        self.across, self.down = nn.Embedding(STEPS, EMBEDDING), nn.Embedding(STEPS, EMBEDDING)
        for table in (self.across, self.down):
            nn.init.normal_(table.weight, std=0.02)
        self.spots = nn.TransformerEncoderLayer(
            EMBEDDING, HEADS, 2 * EMBEDDING, DROPOUT, "gelu", batch_first=True, norm_first=True
        )
        self.gene_head = ProjectionHead(EMBEDDING, EMBEDDING, DROPOUT)

    def gene(self, inputs: SpotInputs, rows: Tensor, expression: Tensor) -> Tensor:
        """Gene embeddings of some rows, from the other rows of their section too: (rows, 256)."""
        across, down = torch.from_numpy(steps_of(inputs.location_um[rows.numpy()])).unbind(dim=1)
        words = self.word(expression) + self.across(across) + self.down(down)
        section_of = inputs.section_of[rows.numpy()]
        out = torch.zeros_like(words)
        for name in dict.fromkeys(section_of):
            members = torch.from_numpy(np.flatnonzero(section_of == name))
            out = out.index_copy(0, members, self.spots(words[members][None])[0])
        return self.gene_head(out)


def steps_of(location_um: np.ndarray) -> np.ndarray:
    """Index of the learned position of each coordinate: (spots, 2) int64, 0 to 127."""
    return np.clip(np.round(location_um / STEP_UM) + STEPS // 2, 0, STEPS - 1).astype(np.int64)


MCLSTEXP = TowerMethod(
    "mclstexp",
    "after mclSTExp (Min et al. 2024): transformer over spots with learned positions, contrast, weighted top 50",
    SpotSentence,
    partial(top_k, k=K, temperature=TEMPERATURE),
    Schedule(most_epochs=30, batch_size=None),
)
"""A transformer over the section's spots on the expression side, contrast with the image side, weighted retrieval.

Source: Min et al., "Multimodal contrastive learning for spatial gene expression prediction using histology
images", Briefings in Bioinformatics 2024, arXiv 2407.08216.

Differs from the original: the image encoder is the run's frozen one (PCA-256), where mclSTExp trains a
DenseNet-121 too; positions are micrometres from the section's middle in steps of 100 um, not array indices; one
transformer layer; a batch is one section; cosines at temperature 0.1 with identity targets; the 50 most similar
spots are weighted by ``exp(cosine / 0.1)``, where its code weighs the 200 nearest by the inverse square of their L1
distance; the epoch is chosen on a validation group.
"""

LOKI = TowerMethod(
    "loki",
    "after Loki (Chen et al. 2025): all training spots, weighted by similarity in a space trained in the fold",
    Towers,
    all_by_similarity,
)
"""Every training spot counts by its cosine similarity to the patch, in a contrastively trained space.

Source: Chen et al., "A visual-omics foundation model to bridge histopathology with spatial transcriptomics",
Nature Methods 2025, doi 10.1038/s41592-025-02707-1 (the prediction of Loki on OmiCLIP).

Differs from the original: OmiCLIP was trained on 2.2 million pairs from elsewhere, with expression written as a
sentence of gene names; here the space is learnt inside the fold, by two projection heads on the run's frozen
features (PCA-256) and on expression, with identity targets at temperature 0.1. The similarity is between the
patch and the measured expression. Negative similarities count as 0, so that the weights are shares.
"""
