"""What published baselines are trained with: inputs, neighbourhoods, and one AdamW loop.

The file is one thing: what every published baseline needs besides its network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from cmrcnet.errors import BadOption, Diverged, ShapeMismatch
from cmrcnet.evaluation.methods.baselines import hvg_of, reduction, section_pearson
from cmrcnet.evaluation.methods.method import FoldData, Location
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import Slide, known_scale


@dataclass(frozen=True, eq=False)
class SpotInputs:
    """Spots of one section or more, ready for a network.

    Parameters
    ----------
    features : tensor, shape (spots, dim), float32
        Frozen features, standardised and rotated (see `BaselineInputs`).
    location_um : numpy.ndarray, shape (spots, 2), float64
        x, y from the mean of the section's spots, in micrometres.
    section_of : numpy.ndarray, shape (spots,)
        Section name of each row.
    """

    features: Tensor
    location_um: np.ndarray
    section_of: np.ndarray

    @cached_property
    def near(self) -> Neighbourhoods:
        """Spatial neighbours of each spot in its section."""
        return find_neighbourhoods(self.location_um, self.section_of)

    @cached_property
    def near_ids(self) -> Tensor:
        """(spots, widest) int64 of `near`."""
        return torch.from_numpy(self.near.ids)

    @cached_property
    def near_present(self) -> Tensor:
        """(spots, widest) bool of `near`."""
        return torch.from_numpy(self.near.present)

    @cached_property
    def location_mm(self) -> Tensor:
        """`location_um` in millimetres: (spots, 2) float32."""
        return torch.from_numpy(self.location_um / 1000).float()

    @cached_property
    def sections(self) -> tuple[np.ndarray, ...]:
        """Rows of each section, in order of first appearance."""
        return tuple(np.flatnonzero(self.section_of == name) for name in dict.fromkeys(self.section_of))


class BaselineInputs:
    """Turns locations into views, always alike: features standardised, then PCA to 256, as for `ridge`.

    Both are fitted on the features of all training spots; features know no expression, so validation spots may take
    part. The width of a network's input is thus the same for every encoder, and what it sees is what ridge sees.
    """

    def __init__(self, training: FoldData) -> None:
        self._reduce = reduction(training.pooled, training.seed)
        locations = [_location_um(section.slide, section.spots) for section in training.cohort]
        self.training = SpotInputs(self._seen(training.pooled), np.concatenate(locations), training.section_of)

    @property
    def width(self) -> int:
        """Length of a spot's features."""
        return self.training.features.shape[1]

    def of(self, location: Location) -> SpotInputs:
        """What is seen at a location."""
        section_of = np.full(len(location.spots), location.section)
        return SpotInputs(self._seen(location.pooled()), _location_um(location.slide, location.spots), section_of)

    def _seen(self, pooled: np.ndarray) -> Tensor:
        return torch.from_numpy(self._reduce.transform(pooled).astype(np.float32))


def _location_um(slide: Slide, spots: Spots) -> np.ndarray:
    return (spots.centre_px - spots.centre_px.mean(axis=0)) * known_scale(slide)


RADIUS_UM = 300.0
"""Reaches the eight neighbours at 200 um pitch (first-generation arrays) and about three rings at 100 um (Visium)."""

MOST = 24
"""Neighbours kept for one spot, the nearest."""


@dataclass(frozen=True, eq=False)
class Neighbourhoods:
    """Who lies near whom.

    Parameters
    ----------
    ids : numpy.ndarray, shape (spots, widest), int64
        Rows of the neighbours, nearest first, the spot itself not among them; filled up with the spot itself.
    present : numpy.ndarray, shape (spots, widest), bool
        Which entries of `ids` are neighbours.
    """

    ids: np.ndarray
    present: np.ndarray

    def __post_init__(self) -> None:
        if self.ids.shape != self.present.shape:
            raise ShapeMismatch("present", want=self.ids.shape, got=self.present.shape)


def find_neighbourhoods(
    location_um: np.ndarray, section_of: np.ndarray, *, radius_um: float = RADIUS_UM, most: int = MOST
) -> Neighbourhoods:
    """Find each spot's neighbours within a radius, in its own section.

    Parameters
    ----------
    location_um : array, shape (spots, 2)
        x, y of each centre in micrometres, in its section's own frame.
    section_of : array, shape (spots,)
        Section of each spot; spots of different sections are never neighbours.
    most : int
        Neighbours kept for one spot.

    Returns
    -------
    Neighbourhoods

    Raises
    ------
    BadOption, ShapeMismatch
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
    return Neighbourhoods(ids[:, :widest], present[:, :widest])


MOST_GENES = 1000


def genes_learnt(training: FoldData, most: int = MOST_GENES) -> np.ndarray:
    """Columns of `training.expression` that a network learns: the HVG, the HEG, then the panel, up to `most`.

    The HVG always come first and are always in.

    Returns
    -------
    numpy.ndarray, shape (genes,), int64
    """
    column = {gene: i for i, gene in enumerate(training.genes)}
    sets = [*training.sets["HVG"], *training.sets["HEG"], *training.panel.genes]
    wanted = list(dict.fromkeys(column[gene] for gene in sets if gene in column))
    return np.array(wanted[: max(most, len(training.sets["HVG"]))], np.int64)


_VALIDATION, _BATCHES = 0x41, 0x42
"""Set the draws of one seed apart."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long, and how fast.

    Parameters
    ----------
    most_epochs : int
        Epochs of the search, at most; also how many are trained when nothing can be held out for validation.
    evaluate_every : int
        Epochs between two evaluations at the validation group.
    patience : int
        Looks without a better score after which the search stops.
    learning_rate, weight_decay : float
        Of AdamW.
    """

    most_epochs: int = 45
    evaluate_every: int = 3
    patience: int = 3
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2


class Trainable(Protocol):
    """A network and the training rows that it may learn from."""

    network: nn.Module

    def batches(self, rng: np.random.Generator) -> Iterable[np.ndarray]:
        """Training rows, batch by batch: one epoch."""
        ...

    def loss(self, rows: np.ndarray) -> Tensor:
        """What a batch costs."""
        ...

    def guess(self, rows: np.ndarray) -> np.ndarray:
        """Predict the training HVG at rows of the training data, learnt from or not: (rows, HVG)."""
        ...


AnyTrainable = TypeVar("AnyTrainable", bound=Trainable)


@dataclass(frozen=True, eq=False)
class TrainedBaseline:
    """What `learn` hands back.

    Parameters
    ----------
    trainable : Trainable
        Trained on all rows.
    searcher : Trainable or None
        The one of the search, at its best epoch; None when no group could be held out.
    inside : numpy.ndarray, shape (spots,), bool
        Rows that the searcher learnt from.
    """

    trainable: Any
    searcher: Any
    inside: np.ndarray
    record: dict[str, Any]


def train_baseline(
    training: FoldData, make: Callable[[np.ndarray], AnyTrainable], schedule: Schedule
) -> TrainedBaseline:
    """Choose the number of epochs on one validation training group, then train on all rows for as many.

    Parameters
    ----------
    make : callable
        Builds an untrained trainable from the rows that it may learn from. Called with torch's generator seeded.

    Returns
    -------
    TrainedBaseline
        `record` has the validation group, `validation_scores` (epoch and validation HVG Pearson), and the epochs.

    Raises
    ------
    Diverged
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

        def evaluate_epoch(trainable: Trainable) -> float:
            return section_pearson(truth, trainable.guess(everything[~inside]), of_row)

        searcher, evaluations = _train(
            make, everything[inside], schedule, schedule.most_epochs, training.seed, evaluate_epoch
        )
        epochs = max(evaluations, key=lambda pair: pair[1])[0]
    trainable, _ = _train(make, everything, schedule, epochs, training.seed, None)
    record = {
        "validation": validation,
        "validation_scores": [[e, round(s, 5)] for e, s in evaluations],
        "epochs": epochs,
    }
    return TrainedBaseline(trainable, searcher, inside, record)


def _train(
    make: Callable[[np.ndarray], AnyTrainable],
    rows: np.ndarray,
    schedule: Schedule,
    epochs: int,
    seed: int,
    evaluate_epoch: Callable[[AnyTrainable], float] | None,
) -> tuple[AnyTrainable, list[tuple[int, float]]]:
    """Train for some epochs; with `evaluate_epoch`, stop early and return to the best."""
    rng = np.random.default_rng([seed, _BATCHES])
    evaluations: list[tuple[int, float]] = []
    with torch.random.fork_rng(devices=[]):  # dropout and initial weights draw from torch's own generator
        torch.manual_seed(seed)
        trainable = make(rows)
        network = trainable.network
        step = torch.optim.AdamW(network.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
        best = copy.deepcopy(network.state_dict())
        for epoch in range(1, epochs + 1):
            network.train()
            for batch in trainable.batches(rng):
                loss = trainable.loss(batch)
                if not torch.isfinite(loss):
                    raise Diverged(epoch)
                step.zero_grad()
                loss.backward()
                step.step()
            if evaluate_epoch is not None and (epoch % schedule.evaluate_every == 0 or epoch == epochs):
                network.eval()
                evaluations.append((epoch, evaluate_epoch(trainable)))
                scores = [score for _, score in evaluations]
                if scores[-1] > max(scores[:-1], default=-np.inf):
                    best = copy.deepcopy(network.state_dict())
                if len(scores) - 1 - int(np.argmax(scores)) >= schedule.patience:
                    break
    if evaluations:
        network.load_state_dict(best)
    network.eval()
    return trainable, evaluations


def random_batches(rows: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """The rows in a random order, cut into batches of about `size`, none much smaller than the others."""
    return np.array_split(rng.permutation(rows), max(1, round(len(rows) / size)))


def section_batches(rows: np.ndarray, section_of: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """The rows section by section, sections in a random order."""
    parts = [rows[section_of[rows] == name] for name in dict.fromkeys(section_of[rows])]
    return [parts[i] for i in rng.permutation(len(parts))]
