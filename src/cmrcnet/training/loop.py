"""The training loop: the only place where weights change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cmrcnet.config import Config, TrainConfig
from cmrcnet.errors import Diverged
from cmrcnet.models.image_encoder import ImageEncoder
from cmrcnet.progress import Meter, metered
from cmrcnet.training.batches import epoch_batches, on_device, steps_in
from cmrcnet.training.checkpoint import Checkpoints, TrainingState
from cmrcnet.training.data import Pairs
from cmrcnet.training.history import Course
from cmrcnet.training.module import Learner, new_learner
from cmrcnet.training.validate import Look, Looker

if TYPE_CHECKING:
    from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer

PHASES = ("search", "refit")
"""search: find the epoch on validation spots (or train to the last epoch); refit: train on all for that many epochs."""


@dataclass(frozen=True, eq=False)
class Job:
    """What both phases of a training share.

    Parameters
    ----------
    config : Config
    pairs : Pairs
    n_genes : int
    fabric : lightning_fabric.Fabric
    encoder : callable
        Gives the encoder with the weights that training starts from.
    prefix : int or None
        Tokens before the grid, when samples are turned at random; None: no augmentation.
    checkpoints : Checkpoints or None
    identity : mapping of str to str
        What the run was started with, by fingerprint.
    """

    config: Config
    pairs: Pairs
    n_genes: int
    fabric: Fabric
    encoder: Callable[[], ImageEncoder]
    prefix: int | None
    checkpoints: Checkpoints | None
    identity: Mapping[str, str]


def train_phase(
    job: Job,
    phase: str,
    ids: np.ndarray,
    epochs: int,
    course: Course,
    *,
    looker: Looker,
    look_every: int,
    choose: bool,
    keep_best: bool,
    resumed: TrainingState | None,
    seen: list[tuple[int, Look]] | None = None,
) -> Learner:
    """Train from seeded weights on the pairs `ids` for `epochs` epochs.

    Parameters
    ----------
    job : Job
    phase : {"search", "refit"}
    ids : array of int
    epochs : int
    course : Course
        Grows by a row an epoch.
    looker : Looker
    look_every : int
        Epochs between two looks; the last epoch is always looked at.
    choose : bool
        Let the looks choose the best epoch.
    keep_best : bool
        Give back the weights of the best epoch, not of the last.
    resumed : TrainingState or None
        Where this phase was, if it was interrupted.
    seen : list, optional
        Gets every (epoch, look).

    Returns
    -------
    Learner

    Raises
    ------
    Diverged
    """
    config = job.config.train
    learner = new_learner(job.config, job.pairs, ids, job.n_genes, job.encoder())
    optimizer = torch.optim.AdamW(
        [p for p in learner.parameters() if p.requires_grad], lr=config.learning_rate, weight_decay=config.weight_decay
    )
    model, stepper = job.fabric.setup(learner, optimizer)
    weights = _Weights(learner, optimizer, config)
    done = 0
    if resumed is not None:
        weights.restore(resumed.tensors)
        done = resumed.epoch

    steps = steps_in(len(ids), config.batch_size)
    label = "train" if phase == "search" else "refit"
    with metered(label, (epochs - done) * steps, "steps") as meter:
        for epoch in range(done, epochs):
            with _seeded(config.seed, phase, epoch, job.fabric.device) as (rng, masks):
                row = one_epoch(job, model, stepper, optimizer, weights, ids, epoch, rng, masks, meter)
                row = {"phase": phase, "epoch": epoch + 1, "pairs": len(ids), **row}
                if (epoch + 1) % look_every == 0 or epoch + 1 == epochs:
                    look = looker.look(weights.evaluated)
                    row |= look.to_dict()
                    if seen is not None:
                        seen.append((epoch + 1, look))
                    if choose and course.consider(epoch + 1, look) and keep_best:
                        weights.keep_best()
            course.history.append(row)
            meter.advance(0, _note(row))
            job.fabric.log_dict({f"{phase}/{k}": v for k, v in row.items() if isinstance(v, float)}, step=epoch + 1)
            _keep_state(job, phase, epoch + 1, epochs, course, weights)
    return weights.final(keep_best)


def one_epoch(
    job: Job,
    model: _FabricModule,
    stepper: _FabricOptimizer,
    optimizer: torch.optim.Optimizer,
    weights: _Weights,
    ids: np.ndarray,
    epoch: int,
    rng: np.random.Generator,
    masks: torch.Generator,
    meter: Meter,
) -> dict[str, Any]:
    """The loop itself: gather, forward, backward, clip, step. Gives the epoch's mean losses."""
    config = job.config.train
    steps = steps_in(len(ids), config.batch_size)
    sums = torch.zeros(4, dtype=torch.float64)
    waiting: list[tuple[Tensor, int]] = []  # read once an epoch: reading a loss makes a GPU wait
    model.train()
    for step, batch in enumerate(epoch_batches(job.pairs, ids, config.batch_size, rng)):
        inputs, expression = on_device(job.fabric, *batch, job.prefix)
        rate = learning_rate(config, (epoch + step / steps) / config.epochs)
        for group in optimizer.param_groups:
            group["lr"] = rate
        total, contrastive, reconstruction, *_ = model(inputs, expression, masks)
        job.fabric.backward(total)
        if config.clip_norm > 0:
            job.fabric.clip_gradients(model, stepper, max_norm=config.clip_norm, error_if_nonfinite=False)
        stepper.step()
        optimizer.zero_grad()
        weights.average()
        waiting.append((torch.stack([total, contrastive, reconstruction]).detach(), len(expression)))
        meter.advance()
    for losses, size in waiting:
        values = losses.double().cpu()
        sums += torch.cat([values, values[1:2] / math.log(max(size, 2))]) * size
    if not torch.isfinite(sums).all():
        raise Diverged(epoch + 1)
    loss, contrastive, reconstruction, over_ln = (sums / len(ids)).tolist()
    return {
        "learning_rate": rate,
        "loss": loss,
        "contrastive": contrastive,
        "reconstruction": reconstruction,
        "loss_over_ln_batch": over_ln,
    }


def learning_rate(config: TrainConfig, progress: float) -> float:
    """Cosine from `learning_rate` to `final_learning_rate` (SGDR without restarts, Loshchilov and Hutter 2017).

    Parameters
    ----------
    config : TrainConfig
    progress : float
        Share of `config.epochs` that is done, 0 to 1. A refit that stops early follows the same curve.
    """
    low, high = config.final_learning_rate, config.learning_rate
    return low + (high - low) * (1 + math.cos(math.pi * progress)) / 2


class _Weights:
    """All tensors that a training consists of: weights, AdamW's moments, their moving average, the best so far."""

    def __init__(self, learner: Learner, optimizer: torch.optim.Optimizer, config: TrainConfig) -> None:
        self.learner, self.optimizer, self._used = learner, optimizer, config.ema_used
        self._average: AveragedModel | None = None
        if config.ema_decay > 0:
            self._average = AveragedModel(learner, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
        self._best: dict[str, Tensor] = {}

    @property
    def evaluated(self) -> Learner:
        """The learner that is looked at and kept: the averaged one, where it is used."""
        return self._average.module if self._average is not None and self._used else self.learner

    def average(self) -> None:
        """Let the moving average follow."""
        if self._average is not None:
            self._average.update_parameters(self.learner)

    def keep_best(self) -> None:
        """Note the present weights as the best."""
        self._best = {name: value.detach().cpu().clone() for name, value in self.evaluated.state_dict().items()}

    def final(self, best: bool) -> Learner:
        """The learner with the weights that are kept."""
        chosen = self.evaluated
        if best and self._best:
            chosen.load_state_dict(self._best)
        return chosen

    def tensors(self) -> dict[str, Tensor]:
        """Everything by name."""
        found = {f"learner.{name}": value for name, value in self.learner.state_dict().items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{number}.{name}": value for name, value in moments.items()}
        if self._average is not None:
            found |= {f"average.{name}": value for name, value in self._average.state_dict().items()}
        return found | {f"best.{name}": value for name, value in self._best.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The opposite of `tensors`."""
        parts: dict[str, dict[str, Tensor]] = {"learner": {}, "optimizer": {}, "average": {}, "best": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        self.learner.load_state_dict(parts["learner"])
        state = self.optimizer.state_dict()
        state["state"] = {}
        for name, value in parts["optimizer"].items():
            number, _, moment = name.partition(".")
            state["state"].setdefault(int(number), {})[moment] = value
        self.optimizer.load_state_dict(state)
        if self._average is not None:
            self._average.load_state_dict(parts["average"])
        self._best = parts["best"]


@contextmanager
def _seeded(
    seed: int, phase: str, epoch: int, device: torch.device
) -> Iterator[tuple[np.random.Generator, torch.Generator]]:
    """Seed everything that an epoch draws from, torch's own generators (dropout) too; they are put back after it.

    Gives the generator of order and turns, and that of the masks.
    """
    order, masks, dropout = np.random.SeedSequence([seed, PHASES.index(phase), epoch]).spawn(3)
    cards = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cards):
        torch.manual_seed(_number(dropout))
        yield np.random.default_rng(order), torch.Generator().manual_seed(_number(masks))


def _number(seed: np.random.SeedSequence) -> int:
    return int(seed.generate_state(1, np.uint64)[0] >> np.uint64(1))


def _keep_state(job: Job, phase: str, epoch: int, epochs: int, course: Course, weights: _Weights) -> None:
    """Write log and state; the state only when it is due, or the phase is finished."""
    if job.checkpoints is None:
        return
    job.checkpoints.write_log(course.history)
    if job.checkpoints.is_due() or epoch == epochs:
        facts = {"course": course.to_dict(), "precision": job.fabric.strategy.precision.state_dict()}
        job.checkpoints.save(TrainingState(phase, epoch, facts, weights.tensors()), job.identity)


def _note(row: dict[str, Any]) -> str:
    """What stands behind the bar."""
    note = f"epoch {row['epoch']}, loss {row['loss']:.3f}"
    if row.get("validation_pearson") is not None:
        note += f", validation Pearson {row['validation_pearson']:.3f}"
    return note
