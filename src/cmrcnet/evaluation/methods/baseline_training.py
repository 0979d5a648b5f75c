"""What published baselines are trained with: inputs, neighbourhoods, and the choice of the number of epochs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cmrcnet.errors import BadOption, ShapeMismatch
from cmrcnet.evaluation.methods.baselines import hvg_of, section_pearson, standardised_pca
from cmrcnet.evaluation.methods.method import FoldData, Location
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import Slide, known_scale
from cmrcnet.training.loop import train_epochs


@dataclass(frozen=True, eq=False)
class SpotInputs:
    """Spots of one section or more, ready for a network."""

    features: Tensor  # (spots, dim) float32: frozen features, standardised and rotated (see `BaselineInputs`)
    location_um: np.ndarray  # (spots, 2) float64: x, y from the mean of the section's spots, in micrometres
    section_of: np.ndarray  # (spots,): section name of each row

    @cached_property
    def neighbours(self) -> tuple[Tensor, Tensor]:
        """Ids (int64) and presence (bool) of the neighbours of each spot: see `find_neighbours`."""
        ids, present = find_neighbours(self.location_um, self.section_of)
        return torch.from_numpy(ids), torch.from_numpy(present)

    @cached_property
    def location_mm(self) -> Tensor:
        """`location_um` in millimetres: (spots, 2) float32."""
        return torch.from_numpy(self.location_um / 1000).float()

    @cached_property
    def sections(self) -> tuple[np.ndarray, ...]:
        """Rows of each section, in order of first appearance."""
        return tuple(np.flatnonzero(self.section_of == name) for name in dict.fromkeys(self.section_of))


class BaselineInputs:
    """Inputs of a network at any location: features standardised, then PCA to 256, as for `ridge`.

    Both are fitted on the features of all training spots; features know no expression, so validation spots may take
    part. The width of a network's input is thus the same for every encoder, and what it sees is what ridge sees.
    """

    def __init__(self, training: FoldData) -> None:
        self._pca = standardised_pca(training.pooled, training.seed)
        locations = [_location_um(section.slide, section.spots) for section in training.cohort]
        self.training = SpotInputs(self._inputs(training.pooled), np.concatenate(locations), training.section_of)
        self.width = self.training.features.shape[1]

    def of(self, location: Location) -> SpotInputs:
        """Inputs at a location."""
        section_of = np.full(len(location.spots), location.section)
        return SpotInputs(self._inputs(location.pooled()), _location_um(location.slide, location.spots), section_of)

    def _inputs(self, pooled: np.ndarray) -> Tensor:
        return torch.from_numpy(self._pca.transform(pooled).astype(np.float32))


def _location_um(slide: Slide, spots: Spots) -> np.ndarray:
    return (spots.centre_px - spots.centre_px.mean(axis=0)) * known_scale(slide)


RADIUS_UM = 300.0
"""Reaches the eight neighbours at 200 um pitch (first-generation arrays) and about three rings at 100 um (Visium)."""

MOST = 24
"""Neighbours kept for one spot, the nearest."""


def find_neighbours(
    location_um: np.ndarray, section_of: np.ndarray, *, radius_um: float = RADIUS_UM, most: int = MOST
) -> tuple[np.ndarray, np.ndarray]:
    """Find each spot's neighbours within a radius, in its own section (x, y in that section's frame).

    Returns
    -------
    ids : numpy.ndarray, shape (spots, widest), int64
        Rows of the neighbours, nearest first, the spot itself not among them; filled up with the spot itself.
    present : numpy.ndarray, shape (spots, widest), bool
        Which entries of `ids` are neighbours.
    """
    from scipy.spatial import KDTree

    if not radius_um > 0 or most < 1:
        raise BadOption("radius_um, most", (radius_um, most), "a radius above 0 and one neighbour or more")
    if location_um.shape != (len(section_of), 2):
        raise ShapeMismatch("location_um", want=(len(section_of), 2), got=location_um.shape)
    ids = np.tile(np.arange(len(section_of))[:, None], (1, most))
    present = np.zeros(ids.shape, bool)
    for name in dict.fromkeys(section_of):
        rows = np.flatnonzero(section_of == name)
        asked = min(most + 1, len(rows))
        tree: Any = KDTree(location_um[rows])
        distance, near = tree.query(
            location_um[rows], k=np.arange(1, asked + 1), distance_upper_bound=np.nextafter(radius_um, np.inf)
        )
        for own, (row, far, members) in enumerate(zip(rows, distance, near, strict=True)):
            kept = members[np.isfinite(far) & (members != own)][:most]
            ids[row, : len(kept)], present[row, : len(kept)] = rows[kept], True
    widest = max(1, int(present.sum(axis=1).max(initial=0)))
    return ids[:, :widest], present[:, :widest]


MOST_GENES = 1000


def genes_learnt(training: FoldData, most: int = MOST_GENES) -> np.ndarray:
    """Columns of `training.expression` that a network learns: the HVG, the HEG, then the panel, up to `most`.

    The HVG always come first and are always in. Shape (genes,), int64.
    """
    column = {gene: i for i, gene in enumerate(training.genes)}
    sets = [*training.sets["HVG"], *training.sets["HEG"], *training.panel.genes]
    wanted = list(dict.fromkeys(column[gene] for gene in sets if gene in column))
    return np.array(wanted[: max(most, len(training.sets["HVG"]))], np.int64)


_VALIDATION, _BATCHES = 0x41, 0x42
"""Set the draws of one seed apart."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Epochs, batches and AdamW's rates of a training."""

    most_epochs: int = 45  # of the search; also how many are trained when nothing can be held out for validation
    evaluate_every: int = 3  # epochs between two evaluations at the validation group
    patience: int = 3  # evaluations without a better score after which the search stops
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    batch_size: int | None = 128  # spots of a batch, about: batches are of equal size; None: a batch is one section

    def batches(self, rows: np.ndarray, section_of: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """One epoch of rows, in random order: batches of equal size, or sections (of `section_of`, by row)."""
        if self.batch_size is not None:
            return np.array_split(rng.permutation(rows), max(1, round(len(rows) / self.batch_size)))
        sections = [rows[section_of[rows] == name] for name in dict.fromkeys(section_of[rows])]
        return [sections[i] for i in rng.permutation(len(sections))]


class Trainable(Protocol):
    """A network and the training rows that it may learn from."""

    network: nn.Module

    def loss(self, rows: np.ndarray) -> Tensor:
        """Loss of a batch of rows."""
        ...

    def guess(self, rows: np.ndarray) -> np.ndarray:
        """Predict the training HVG at rows of the training data, learnt from or not: (rows, HVG)."""
        ...


@dataclass(frozen=True, eq=False)
class TrainedBaseline:
    """Outcome of `train_baseline`."""

    trainable: Any  # a `Trainable`, trained on all rows
    searcher: Any  # the one of the search, at its best epoch; None when no group could be held out
    inside: np.ndarray  # (spots,) bool: rows that the searcher learnt from
    record: dict[str, Any]  # `validation` (the group), `validation_scores` (epoch, HVG Pearson) and `epochs`


def train_baseline(training: FoldData, make: Callable[[np.ndarray], Any], schedule: Schedule) -> TrainedBaseline:
    """Choose the number of epochs on one validation training group, then train on all rows for as many.

    `make` builds an untrained `Trainable` from the rows that it may learn from, with torch's generator seeded.
    """
    groups = list(dict.fromkeys(training.group_of))
    everything = np.arange(len(training.group_of))
    epochs, evaluations, searcher, validation = schedule.most_epochs, [], None, "nothing"
    inside = np.ones(len(everything), bool)
    if len(groups) > 1:
        rng = np.random.default_rng([training.seed, _VALIDATION])
        validation = str(groups[int(rng.integers(len(groups)))])
        inside = training.group_of != validation
        truth, of_row = hvg_of(training)[~inside], training.section_of[~inside]
        searcher, evaluations = _train(
            *(training, make, everything[inside], schedule, epochs),
            score=lambda trainable: section_pearson(truth, trainable.guess(everything[~inside]), of_row),
        )
        epochs = max(evaluations, key=lambda pair: pair[1])[0]
    trainable, _ = _train(training, make, everything, schedule, epochs)
    scores = [[epoch, round(score, 5)] for epoch, score in evaluations]
    record = {"validation": validation, "validation_scores": scores, "epochs": epochs}
    return TrainedBaseline(trainable, searcher, inside, record)


def _train(
    training: FoldData,
    make: Callable[[np.ndarray], Any],
    rows: np.ndarray,
    schedule: Schedule,
    epochs: int,
    score: Callable[[Trainable], float] | None = None,
) -> tuple[Any, list[tuple[int, float]]]:
    """Train for some epochs; with `score`, stop early and return to the best."""
    rng = np.random.default_rng([training.seed, _BATCHES])
    evaluations: list[tuple[int, float]] = []
    with torch.random.fork_rng(devices=[]):  # dropout and initial weights draw from torch's own generator
        torch.manual_seed(training.seed)
        trainable = make(rows)
        network = trainable.network
        best = copy.deepcopy(network.state_dict())

        def after_epoch(epoch: int, losses: Tensor) -> bool:
            nonlocal best
            if score is None or (epoch % schedule.evaluate_every and epoch != epochs):
                return False
            network.eval()
            evaluations.append((epoch, score(trainable)))
            scores = [value for _, value in evaluations]
            if scores[-1] > max(scores[:-1], default=-np.inf):
                best = copy.deepcopy(network.state_dict())
            return len(scores) - 1 - int(np.argmax(scores)) >= schedule.patience

        train_epochs(
            network,
            torch.optim.AdamW(network.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay),
            lambda _: schedule.batches(rows, training.section_of, rng),
            trainable.loss,
            range(epochs),
            after_epoch=after_epoch,
        )
    if evaluations:
        network.load_state_dict(best)
    network.eval()
    return trainable, evaluations
