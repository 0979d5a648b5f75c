"""Rivals that retrieve: an image tower and a gene tower, trained contrastively; measured spots are averaged.

The gene tower reads up to 1,000 genes (`genes_learnt`), each minus its training mean. The bank holds the full
expression, so every gene is predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cmrcnet.evaluation.methods.baseline_inputs import Sight, View
from cmrcnet.evaluation.methods.genes_learnt import genes_learnt
from cmrcnet.evaluation.methods.method import Location, Prediction, TrainingData
from cmrcnet.evaluation.methods.retrieval_weights import Weigh, averaged
from cmrcnet.evaluation.methods.training_loop import Schedule, learn, random_batches, section_batches
from cmrcnet.evaluation.methods.validation_choice import hvg_of
from cmrcnet.models.cmrcnet import ProjectionHead

EMBEDDING = 256
DROPOUT = 0.1
BATCH = 128


class Towers(Protocol):
    """The network of a retrieving rival (a `torch.nn.Module`)."""

    def image(self, view: View, rows: Tensor) -> Tensor:
        """Image embeddings at some rows: (rows, 256)."""
        ...

    def gene(self, view: View, rows: Tensor, expression: Tensor) -> Tensor:
        """Gene embeddings of some rows, given their expression (rows, genes): (rows, 256)."""
        ...

    def loss(self, image: Tensor, gene: Tensor) -> Tensor:
        """The contrastive loss of a batch of pairs."""
        ...


class HeadTowers(nn.Module):
    """A projection head on the features, another on the expression; subclasses say the loss.

    Parameters
    ----------
    dim, genes : int
        Length of a spot's features, and number of genes read.
    """

    def __init__(self, dim: int, genes: int) -> None:
        super().__init__()
        self.image_head = ProjectionHead(dim, EMBEDDING, DROPOUT)
        self.gene_head = ProjectionHead(genes, EMBEDDING, DROPOUT)

    def image(self, view: View, rows: Tensor) -> Tensor:
        """Image embeddings at some rows: (rows, 256)."""
        return self.image_head(view.features[rows])

    def gene(self, view: View, rows: Tensor, expression: Tensor) -> Tensor:
        """Gene embeddings of some rows: (rows, 256)."""
        return self.gene_head(expression)


class Contrast:
    """Two towers and the pairs that they may learn from: a `Learner`."""

    def __init__(
        self,
        network: Any,
        view: View,
        inputs: Tensor,
        rows: np.ndarray,
        hvg: np.ndarray,
        weigh: Weigh,
        by_section: bool,
    ) -> None:
        self.network, self._view, self._inputs = network, view, inputs
        self._rows, self._hvg, self._weigh, self._by_section = rows, hvg, weigh, by_section

    def batches(self, rng: np.random.Generator) -> Iterable[np.ndarray]:
        """About 128 random pairs, or one section, at a time."""
        if self._by_section:
            return section_batches(self._rows, self._view.section_of, rng)
        return random_batches(self._rows, BATCH, rng)

    def loss(self, rows: np.ndarray) -> Tensor:
        """The network's loss."""
        at = torch.from_numpy(rows)
        return self.network.loss(
            self.network.image(self._view, at), self.network.gene(self._view, at, self._inputs[at])
        )

    def bank(self) -> np.ndarray:
        """Gene embeddings of the rows learnt from: (rows, 256)."""
        at = torch.from_numpy(self._rows)
        with torch.no_grad():
            return self.network.gene(self._view, at, self._inputs[at]).numpy()

    def guess(self, rows: np.ndarray) -> np.ndarray:
        """The HVG, retrieved from the rows learnt from."""
        with torch.no_grad():
            queries = self.network.image(self._view, torch.from_numpy(rows)).numpy()
        return averaged(queries, self.bank(), self._hvg[self._rows], self._weigh)


def fit_towers(
    training: TrainingData,
    build: Callable[[int, int], Any],
    weigh: Weigh,
    *,
    by_section: bool = False,
    schedule: Schedule | None = None,
) -> TowerPredictor:
    """Train two towers and embed the training spots' expression.

    Parameters
    ----------
    training : TrainingData
    build : callable
        Takes the width of a spot's features and the number of genes read; gives `Towers`.
    weigh : callable
        See `retrieval_weights`.
    by_section : bool
        A batch is one section, in place of about 128 random pairs.
    schedule : Schedule, optional

    Returns
    -------
    TowerPredictor
    """
    sight, columns = Sight(training), genes_learnt(training)
    expression = torch.from_numpy(np.asarray(training.expression[:, columns].todense(), np.float32))
    hvg = hvg_of(training)

    def make(rows: np.ndarray) -> Contrast:
        inputs = expression - expression[rows].mean(dim=0)
        return Contrast(build(sight.width, len(columns)), sight.training, inputs, rows, hvg, weigh, by_section)

    learnt = learn(training, make, schedule or Schedule())
    record = {**learnt.record, "genes_learnt": len(columns)}
    return TowerPredictor(training, sight, learnt.learner.network, learnt.learner.bank(), weigh, record)


class TowerPredictor:
    """Trained towers, and the bank of training spots."""

    def __init__(
        self,
        training: TrainingData,
        sight: Sight,
        network: Any,
        bank: np.ndarray,
        weigh: Weigh,
        record: dict[str, Any],
    ) -> None:
        self.record = record
        self._genes, self._expression = training.genes, training.expression
        self._sight, self._network, self._bank, self._weigh = sight, network, bank, weigh

    def predict(self, place: Location) -> Prediction:
        """Every gene, averaged over measured spots."""
        view = self._sight.of(place)
        with torch.no_grad():
            queries = self._network.image(view, torch.arange(len(place.spots))).numpy()
        return Prediction(self._genes, averaged(queries, self._bank, self._expression, self._weigh))
