"""The one training loop of the rivals: AdamW, epochs chosen on a validation unit, then trained again on everything.

All of them run on the CPU: their inputs are a few hundred numbers a spot, and so their results are the same wherever
they run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from cmrcnet.errors import Diverged
from cmrcnet.evaluation.methods.method import TrainingData
from cmrcnet.evaluation.methods.validation_choice import hvg_of, section_pearson

_VALIDATION, _BATCHES = 0x41, 0x42
"""Set the draws of one seed apart."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long, and how fast.

    Parameters
    ----------
    most_epochs : int
        Epochs of the search, at most; also how many are trained when nothing can be held in.
    look_every : int
        Epochs between two looks at the validation unit.
    patience : int
        Looks without a better score after which the search stops.
    learning_rate, weight_decay : float
        Of AdamW.
    """

    most_epochs: int = 45
    look_every: int = 3
    patience: int = 3
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2


class Learner(Protocol):
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


AnyLearner = TypeVar("AnyLearner", bound=Learner)


@dataclass(frozen=True, eq=False)
class Learnt:
    """What `learn` hands back.

    Parameters
    ----------
    learner : Learner
        Trained on all rows.
    searcher : Learner or None
        The one of the search, at its best epoch; None when nothing could be held in.
    inside : numpy.ndarray, shape (spots,), bool
        Rows that the searcher learnt from.
    record : dict
    """

    learner: Any
    searcher: Any
    inside: np.ndarray
    record: dict[str, Any]


def learn(training: TrainingData, make: Callable[[np.ndarray], AnyLearner], schedule: Schedule) -> Learnt:
    """Choose the number of epochs on one validation training unit, then train on all rows for as many.

    Parameters
    ----------
    training : TrainingData
    make : callable
        Builds an untrained learner from the rows that it may learn from. Called with torch's generator seeded.
    schedule : Schedule

    Returns
    -------
    Learnt
        `record` has the validation unit, the looks (epoch and validation HVG Pearson), and the epochs.

    Raises
    ------
    Diverged
    """
    units = list(dict.fromkeys(training.unit_of))
    everything = np.arange(len(training.unit_of))
    epochs, looks, searcher, validation = schedule.most_epochs, [], None, "nothing"
    inside = np.ones(len(everything), bool)
    if len(units) > 1:
        rng = np.random.default_rng([training.seed, _VALIDATION])
        validation = str(units[int(rng.integers(len(units)))])
        inside = training.unit_of != validation
        truth, of_row = hvg_of(training)[~inside], training.section_of[~inside]

        def look(learner: Learner) -> float:
            return section_pearson(truth, learner.guess(everything[~inside]), of_row)

        searcher, looks = _train(make, everything[inside], schedule, schedule.most_epochs, training.seed, look)
        epochs = max(looks, key=lambda pair: pair[1])[0]
    learner, _ = _train(make, everything, schedule, epochs, training.seed, None)
    record = {"validation": validation, "looks": [[e, round(s, 5)] for e, s in looks], "epochs": epochs}
    return Learnt(learner, searcher, inside, record)


def _train(
    make: Callable[[np.ndarray], AnyLearner],
    rows: np.ndarray,
    schedule: Schedule,
    epochs: int,
    seed: int,
    look: Callable[[AnyLearner], float] | None,
) -> tuple[AnyLearner, list[tuple[int, float]]]:
    """Train for some epochs; with a `look`, stop when it has not been better for a while and go back to the best."""
    rng = np.random.default_rng([seed, _BATCHES])
    looks: list[tuple[int, float]] = []
    with torch.random.fork_rng(devices=[]):  # dropout and initial weights draw from torch's own generator
        torch.manual_seed(seed)
        learner = make(rows)
        network = learner.network
        step = torch.optim.AdamW(network.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
        best = copy.deepcopy(network.state_dict())
        for epoch in range(1, epochs + 1):
            network.train()
            for batch in learner.batches(rng):
                loss = learner.loss(batch)
                if not torch.isfinite(loss):
                    raise Diverged(epoch)
                step.zero_grad()
                loss.backward()
                step.step()
            if look is not None and (epoch % schedule.look_every == 0 or epoch == epochs):
                network.eval()
                looks.append((epoch, look(learner)))
                scores = [score for _, score in looks]
                if scores[-1] > max(scores[:-1], default=-np.inf):
                    best = copy.deepcopy(network.state_dict())
                if len(scores) - 1 - int(np.argmax(scores)) >= schedule.patience:
                    break
    if looks:
        network.load_state_dict(best)
    network.eval()
    return learner, looks


def random_batches(rows: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """The rows in a random order, cut into batches of about `size`, none much smaller than the others."""
    return np.array_split(rng.permutation(rows), max(1, round(len(rows) / size)))


def section_batches(rows: np.ndarray, section_of: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """The rows section by section, sections in a random order."""
    parts = [rows[section_of[rows] == name] for name in dict.fromkeys(section_of[rows])]
    return [parts[i] for i in rng.permutation(len(parts))]
