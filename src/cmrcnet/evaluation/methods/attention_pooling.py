"""Regions and slides as bags of locations, pooled by attention in place of their mean; measured rows are retrieved.

The image embedding of a row is ``head(sum_l a_l x_l)`` over its locations' features x, with the gated attention of
Ilse, Tomczak and Welling (ICML 2018), ``a = softmax(w (tanh(V x) * sigmoid(U x)))``, learnt with the contrast of image
and table. It starts as the mean: w is 0. A row of one location is that location.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from cmrcnet.evaluation.methods.baseline_training import BaselineInputs, Schedule, SpotInputs
from cmrcnet.evaluation.methods.baselines import standardised_pca
from cmrcnet.evaluation.methods.method import FoldData, Location
from cmrcnet.evaluation.methods.retrieval_baselines import TEMPERATURE, K, TowerMethod, Towers, top_k
from cmrcnet.slides.section import Spots

WIDTH = 32
"""Of the attention."""


@dataclass(frozen=True, eq=False)
class Bags(SpotInputs):
    """Rows with the features of their locations: `locations` (locations, dim) float32, row after row."""

    locations: Tensor
    first: np.ndarray  # (rows + 1,): location at which each row begins, and their number

    def of_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Locations of some rows, (rows, most locations, dim), and which of them are there."""
        bags = [self.locations[self.first[row] : self.first[row + 1]] for row in rows.tolist()]
        lengths = torch.tensor([len(bag) for bag in bags])
        return pad_sequence(bags, batch_first=True), torch.arange(int(lengths.max())) < lengths[:, None]


class BagInputs(BaselineInputs):
    """Inputs as of every network here, of locations too: standardised and reduced as the means of rows are."""

    def __init__(self, training: FoldData) -> None:
        parts = [(section.slide, section.spots) for section in training.cohort]
        found = [training.features.of(slide, one_by_one(spots)) for slide, spots in parts]
        self._of_locations = standardised_pca(np.concatenate(found), training.seed)
        super().__init__(training)
        counts = np.concatenate([np.diff(spots.first_location) for _, spots in parts])
        self.training = self._bags(self.training, np.concatenate(found), np.concatenate([[0], np.cumsum(counts)]))
        self.width = self.training.locations.shape[1]

    def of(self, location: Location) -> Bags:
        """Inputs at a location."""
        found = location.features.of(location.slide, one_by_one(location.spots))
        return self._bags(super().of(location), found, location.spots.first_location)

    def _bags(self, means: SpotInputs, locations: np.ndarray, first: np.ndarray) -> Bags:
        reduced = torch.from_numpy(self._of_locations.transform(locations).astype(np.float32))
        return Bags(means.features, means.location_um, means.section_of, reduced, first)


def one_by_one(spots: Spots) -> Spots:
    """The locations of regions or slides as spots of their own."""
    located = spots.location_px
    return Spots(tuple(map(str, range(len(located)))), located, spots.diameter_um)


class AttentionTowers(Towers):
    """Two projection heads, the image's behind gated attention over the locations of a row."""

    def __init__(self, dim: int, genes: int) -> None:
        super().__init__(dim, genes)
        self.tanh, self.gate = nn.Linear(dim, WIDTH), nn.Linear(dim, WIDTH)
        self.weight = nn.Linear(WIDTH, 1, bias=False)
        nn.init.zeros_(self.weight.weight)

    def image(self, inputs: SpotInputs, rows: Tensor) -> Tensor:
        """Image embeddings at some rows: (rows, 256)."""
        assert isinstance(inputs, Bags)
        locations, there = inputs.of_rows(rows)
        raw = self.weight(torch.tanh(self.tanh(locations)) * torch.sigmoid(self.gate(locations))).squeeze(-1)
        attention = torch.softmax(raw.masked_fill(~there, -torch.inf), dim=1)
        return self.image_head((attention.unsqueeze(-1) * locations).sum(dim=1))


ATTENTION_POOLING = TowerMethod(
    "attention-pooling",
    "gated attention over the locations of a region or slide, contrast, weighted top 50 measured rows",
    AttentionTowers,
    partial(top_k, k=K, temperature=TEMPERATURE),
    Schedule(most_epochs=120, evaluate_every=6),
    inputs=BagInputs,
)
"""For tables with one row a region or slide; with one row a location it is a plain pair of towers, and so it is not
among the methods that run by default: ``--methods cmrcnet.evaluation.methods.attention_pooling:ATTENTION_POOLING``."""
