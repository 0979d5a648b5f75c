"""The training loop: the only place where weights change, for CMRCNet and for everything else that is trained.

`train_epochs` is the loop itself. `train_phase` runs it for CMRCNet: seeded epochs, a moving average of the weights,
validation, checkpoints. `cross_search` runs a phase once without each validation group, `search_and_refit` both phases.
The file is one thing: the loop and the ways in which CMRCNet runs it.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cmrcnet.config import Config, TrainConfig
from cmrcnet.errors import CmrcnetWarning, Diverged
from cmrcnet.models.image_encoder import ImageEncoder
from cmrcnet.progress import metered
from cmrcnet.training.checkpoint import Checkpoints, TrainingState
from cmrcnet.training.data import TrainingData, epoch_batches, steps_in
from cmrcnet.training.module import BatchShare, TrainingModule, new_training_module, on_device
from cmrcnet.training.validation import ValidationResult, ValidationSplit, Validator

log = logging.getLogger("cmrcnet")

PHASES = ("search", "refit")
"""search: find the epoch on validation spots (or train to the last epoch); refit: train on all for that many epochs."""

Batch = TypeVar("Batch")


def train_epochs(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Callable[[int], Iterable[Batch]],
    loss: Callable[[Batch], Tensor | tuple[Tensor, ...]],
    epochs: Iterable[int],
    *,
    learning_rate: Callable[[int, int], float] | None = None,
    backward: Callable[[Tensor], None] = Tensor.backward,
    clip: Callable[[], object] | None = None,
    step: Callable[[], object] | None = None,
    after_step: Callable[[], None] | None = None,
    after_epoch: Callable[[int, Tensor], bool] | None = None,
) -> None:
    """Train a module: forward, backward, clip, step, batch by batch, until the epochs are over or stopped.

    Parameters
    ----------
    module : torch.nn.Module
        Put into training mode at the start of every epoch.
    batches : callable
        Batches of an epoch, by its number.
    loss : callable
        Loss of a batch, or several of which the first is minimised.
    epochs : iterable of int
        Numbers of the epochs, from 0.
    learning_rate : callable, optional
        Rate by epoch and step, both from 0; the optimizer's own when left out.
    backward, clip, step : callable, optional
        In place of ``Tensor.backward``, nothing and ``optimizer.step``: those of `lightning_fabric.Fabric`.
    after_step : callable, optional
        Called after every step.
    after_epoch : callable, optional
        Called with the number of finished epochs and the losses of the epoch, shape (batches, losses), float64 on the
        CPU. True stops the training: validation and early stopping go here.

    Raises
    ------
    Diverged
        A loss is not finite.
    """
    for epoch in epochs:
        module.train()
        losses: list[Tensor] = []  # read once an epoch: reading a loss makes a GPU wait
        for number, batch in enumerate(batches(epoch)):
            if learning_rate is not None:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(epoch, number)
            found = loss(batch)
            each = found if isinstance(found, tuple) else (found,)
            backward(each[0])
            if clip is not None:
                clip()
            optimizer.step() if step is None else step()
            optimizer.zero_grad()
            losses.append(torch.stack(each).detach())
            if after_step is not None:
                after_step()
        seen = torch.stack(losses).cpu().double()
        if not torch.isfinite(seen).all():
            raise Diverged(epoch + 1)
        if after_epoch is not None and after_epoch(epoch + 1, seen):
            return


def cosine_rate(config: TrainConfig, progress: float) -> float:
    """Cosine from `learning_rate` to `final_learning_rate` (SGDR without restarts, Loshchilov and Hutter 2017).

    `progress` is the share of `config.epochs` that is done, 0 to 1. A refit that stops early follows the same curve.
    """
    low, high = config.final_learning_rate, config.learning_rate
    return low + (high - low) * (1 + math.cos(math.pi * progress)) / 2


@dataclass
class History:
    """What each epoch gave, and which was best: plain values, so that a checkpoint can keep it."""

    select_by: Literal["pearson", "objective"]
    """What the best epoch is best in."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """One entry an epoch, by name."""
    best_epoch: int | None = None
    """Epochs behind the best validation score so far; the earliest of equals. None before any is defined."""
    best_score: float | None = None

    def consider(self, epoch: int, result: ValidationResult) -> bool:
        """Note the epoch if it is the best yet, and tell whether it is."""
        score = result.score(self.select_by)
        if score is None or (self.best_score is not None and score <= self.best_score):
            return False
        self.best_epoch, self.best_score = epoch, score
        return True

    def last_reading(self, phase: str, epoch: int) -> dict[str, Any] | None:
        """The last row of a phase, up to an epoch, on which the collapse meter was read."""
        rows = [row for row in self.rows if row["phase"] == phase and row["epoch"] <= epoch and "meter_k" in row]
        return rows[-1] if rows else None


@dataclass(frozen=True, eq=False)
class TrainContext:
    """What all phases of a training share."""

    config: Config
    data: TrainingData
    fabric: Fabric
    encoder: Callable[[], ImageEncoder]
    """Gives the encoder with the weights that training starts from."""
    prefix: int | None
    """Tokens before the grid, when samples are augmented; None: no augmentation."""
    checkpoints: Checkpoints | None
    identity: Mapping[str, str]
    """What the run was started with, by fingerprint."""


def train_phase(
    context: TrainContext,
    phase: str,
    ids: np.ndarray,
    epochs: int,
    history: History,
    *,
    validator: Validator,
    validate_every: int,
    choose: bool = False,
    keep_best: bool = False,
    resumed: TrainingState | None = None,
    results: dict[int, list[ValidationResult]] | None = None,
) -> TrainingModule:
    """Train CMRCNet from seeded weights on the spots `ids` for `epochs` epochs.

    Every epoch seeds its own generators from the config's seed, the phase and its number, so that a resumed run draws
    as an uninterrupted one does. The state of torch's global generators is restored afterwards.

    Parameters
    ----------
    phase : {"search", "refit"}
    history : History
        Grows by a row an epoch.
    validate_every : int
        Epochs between validations; the last epoch is always validated.
    choose : bool
        Let validation choose the best epoch.
    keep_best : bool
        Give back the weights of the best epoch, not of the last.
    resumed : TrainingState or None
        Where this phase was, if it was interrupted.
    results : dict, optional
        Gets every validation, under its number of epochs.
    """
    config, fabric, data = context.config.train, context.fabric, context.data
    module, rank = new_training_module(context.config, data, ids, context.encoder()), fabric.global_rank
    optimizer = torch.optim.AdamW(
        [p for p in module.parameters() if p.requires_grad], lr=config.learning_rate, weight_decay=config.weight_decay
    )
    model, stepper = fabric.setup(module, optimizer)
    weights = TrainingWeights(module, optimizer, config)
    done = 0
    if resumed is not None:
        weights.restore(resumed.tensors)
        done = resumed.epoch
    steps = steps_in(len(ids), config.batch_size)
    masks = torch.Generator()
    sizes = [len(part) for part in np.array_split(ids, steps)]
    shares = [BatchShare(fabric, size) if fabric.world_size > 1 else None for size in sizes]

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor, BatchShare | None]]:
        order, mask, dropout = np.random.SeedSequence([config.seed, PHASES.index(phase), epoch]).spawn(3)
        torch.manual_seed(_number(dropout.spawn(rank)[-1] if rank else dropout))  # each rank drops units of its own
        masks.manual_seed(_number(mask))
        draw = np.random.default_rng(order)
        parts = epoch_batches(data, ids, config.batch_size, draw, rank, fabric.world_size)
        for batch, share in zip(parts, shares, strict=True):
            yield *on_device(fabric, *batch, context.prefix), share

    def loss(batch: tuple[Tensor, Tensor, BatchShare | None]) -> tuple[Tensor, ...]:
        inputs, expression, share = batch
        return model(inputs, expression, masks, share)[:3]

    def rate(epoch: int, step: int) -> float:
        within = step / steps if config.schedule_by == "step" else 0.0
        return cosine_rate(config, (epoch + within) / config.epochs)

    def after_step() -> None:
        weights.average()
        meter.advance()

    def after_epoch(epoch: int, losses: Tensor) -> bool:
        row = {"phase": phase, "epoch": epoch, "pairs": len(ids), "learning_rate": optimizer.param_groups[0]["lr"]}
        row |= mean_losses(losses, sizes)
        if epoch % validate_every == 0 or epoch == epochs:
            # one rank decides for all: kernels may round differently elsewhere
            result = fabric.broadcast(validator.validate(weights.evaluated) if fabric.is_global_zero else None)
            assert result is not None
            row |= result.to_dict()
            if results is not None:
                results.setdefault(epoch, []).append(result)
            if choose and history.consider(epoch, result) and keep_best:
                weights.keep_best()
        history.rows.append(row)
        pearson = row.get("validation_pearson")
        noted = "" if pearson is None else f", validation Pearson {pearson:.3f}"
        meter.advance(0, f"epoch {epoch}, loss {row['loss']:.3f}{noted}")
        fabric.log_dict({f"{phase}/{k}": v for k, v in row.items() if isinstance(v, float)}, step=epoch)
        if context.checkpoints is not None and fabric.is_global_zero:
            context.checkpoints.write_log(history.rows)
            if context.checkpoints.is_due() or epoch == epochs:
                facts = {"history": vars(history), "precision": fabric.strategy.precision.state_dict()}
                context.checkpoints.save(TrainingState(phase, epoch, facts, weights.tensors()), context.identity)
        return False

    device = fabric.device
    with (
        metered("train" if phase == "search" else "refit", (epochs - done) * steps, "steps") as meter,
        torch.random.fork_rng(devices=[device.index or 0] if device.type == "cuda" else []),
    ):
        train_epochs(
            model,
            optimizer,
            batches,
            loss,
            range(done, epochs),
            learning_rate=rate,
            backward=fabric.backward,
            clip=partial(fabric.clip_gradients, model, stepper, max_norm=config.clip_norm, error_if_nonfinite=False)
            if config.clip_norm > 0
            else None,
            step=stepper.step,
            after_step=after_step,
            after_epoch=after_epoch,
        )
    return weights.final(keep_best)


@dataclass(frozen=True, eq=False)
class CrossSearch:
    """Outcome of a search over every validation split."""

    splits: tuple[ValidationSplit, ...]
    epoch: int
    """Passes over the training spots, best on the mean over splits."""
    score: float | None
    """That mean."""
    retrieved: np.ndarray | None = None
    """(spots, rank) float32: scores retrieved at that epoch by the network trained without the spot's group."""
    neighbour_std: np.ndarray | None = None
    """(spots, rank) float32: deviation of the neighbours' scores, together with `retrieved`."""
    similarity: np.ndarray | None = None
    """(spots,) float32: mean cosine to the neighbours, together with `retrieved`."""


def cross_search(context: TrainContext, splits: tuple[ValidationSplit, ...], history: History) -> CrossSearch:
    """Train once without each validation split, and choose the epoch that is best over all of them.

    Nothing is checkpointed: a search over every group takes seconds, and is repeated after an interruption. `history`
    grows by a row an epoch and split, and notes the best epoch.
    """
    config, data = context.config.train, context.data
    results: dict[int, list[ValidationResult]] = {}
    for split in splits:
        train_phase(
            replace(context, checkpoints=None),
            "search",
            split.rest,
            config.epochs,
            history,
            validator=Validator(data, split, context.config, context.fabric),
            validate_every=config.validate_every,
            results=results,
        )
    means: dict[int, float] = {}
    for epoch, found in sorted(results.items()):
        known = [score for score in (result.score(config.select_by) for result in found) if score is not None]
        if known:
            means[epoch] = float(np.mean(known))
    epoch = max(means, key=lambda each: means[each]) if means else config.epochs
    history.best_epoch, history.best_score = epoch, means.get(epoch)
    log.info("Epoch %d is best over %d validation splits.", epoch, len(splits))
    if data.scores is None or epoch not in results:
        return CrossSearch(splits, epoch, means.get(epoch))
    retrieved, deviation = np.zeros_like(data.scores), np.zeros_like(data.scores)
    similarity = np.zeros(len(data), np.float32)
    for split, result in zip(splits, results[epoch], strict=True):
        retrieved[split.ids], deviation[split.ids] = result.retrieved, result.neighbour_std
        similarity[split.ids] = result.similarity
    return CrossSearch(splits, epoch, means.get(epoch), retrieved, deviation, similarity)


def search_and_refit(
    context: TrainContext, splits: tuple[ValidationSplit, ...], resume: bool
) -> tuple[TrainingModule, History, int, CrossSearch | None]:
    """Train both phases.

    Returns
    -------
    module : TrainingModule
        What is kept.
    history : History
    epoch : int
        Epochs behind its weights.
    search : CrossSearch or None
        The search over groups, where there was one.
    """
    config, data, fabric = context.config.train, context.data, context.fabric
    nothing = ValidationSplit.nothing(len(data))
    each = bool(splits) and config.validation == "each"
    validation = splits[0] if splits and not each else nothing
    state = context.checkpoints.load(context.identity) if resume and context.checkpoints is not None else None
    history = History(config.select_by)
    if state is not None:
        history = History(**state.facts["history"])
        fabric.strategy.precision.load_state_dict(state.facts["precision"])
        log.info("Continuing after epoch %d of the %s phase.", state.epoch, state.phase)

    search, module = None, None
    refit = each or (config.refit and bool(validation))
    if each:  # repeated after an interruption: its rows are in the history already
        search = cross_search(context, splits, history if state is None else History(config.select_by))
        history.best_epoch = search.epoch
    elif state is None or state.phase == "search":
        module = train_phase(
            context,
            "search",
            validation.rest,
            config.epochs,
            history,
            validator=Validator(data, validation, context.config, fabric),
            validate_every=config.validate_every,
            choose=bool(validation),
            keep_best=bool(validation) and not refit,
            resumed=state,
        )
    epoch = history.best_epoch or config.epochs
    if validation and history.best_epoch is None:
        warnings.warn(
            f"No epoch could be chosen: the score on the validation {validation.name} was never defined (constant "
            "expression or predictions). The last epoch is kept.",
            CmrcnetWarning,
            stacklevel=3,
        )
    if refit:
        log.info("Training again on all %d spots for the chosen %d epochs.", len(data), epoch)
        module = train_phase(
            context,
            "refit",
            np.arange(len(data)),
            epoch,
            history,
            validator=Validator(data, nothing, context.config, fabric),
            validate_every=epoch,
            resumed=state if state is not None and state.phase == "refit" else None,
        )
    assert module is not None
    return module, history, epoch, search


def mean_losses(losses: Tensor, sizes: list[int]) -> dict[str, float]:
    """Mean losses of an epoch over its pairs, by name.

    `losses` (batches, 3) are total, contrastive and reconstruction; `sizes` the pairs of each batch.
    """
    sums = torch.zeros(4, dtype=torch.float64)
    for values, size in zip(losses, sizes, strict=True):
        sums += torch.cat([values, values[1:2] / math.log(max(size, 2))]) * size
    names = ("loss", "contrastive", "reconstruction", "loss_over_ln_batch")
    return dict(zip(names, (sums / sum(sizes)).tolist(), strict=True))


def _number(seed: np.random.SeedSequence) -> int:
    return int(seed.generate_state(1, np.uint64)[0] >> np.uint64(1))


class TrainingWeights:
    """All tensors that a training consists of: weights, AdamW's moments, their moving average, the best so far."""

    def __init__(self, module: TrainingModule, optimizer: torch.optim.Optimizer, config: TrainConfig) -> None:
        self.module, self.optimizer, self._used = module, optimizer, config.ema_used
        self._average: AveragedModel | None = None
        if config.ema_decay > 0:
            self._average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
        self._best: dict[str, Tensor] = {}

    @property
    def evaluated(self) -> TrainingModule:
        """The module that is validated and kept: the averaged one, where it is used."""
        if self._average is None or not self._used:
            return self.module
        averaged = self._average.module
        assert isinstance(averaged, TrainingModule)
        return averaged

    def average(self) -> None:
        """Update the moving average."""
        if self._average is not None:
            self._average.update_parameters(self.module)

    def keep_best(self) -> None:
        """Store the present weights as the best."""
        self._best = {name: value.detach().cpu().clone() for name, value in self.evaluated.state_dict().items()}

    def final(self, best: bool) -> TrainingModule:
        """The module with the weights that are kept: the last, or with `best` the best where any were stored."""
        chosen = self.evaluated
        if best and self._best:
            chosen.load_state_dict(self._best)
        return chosen

    def tensors(self) -> dict[str, Tensor]:
        """Everything by name, as `restore` takes it."""
        found = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{number}.{name}": value for name, value in moments.items()}
        if self._average is not None:
            found |= {f"average.{name}": value for name, value in self._average.state_dict().items()}
        return found | {f"best.{name}": value for name, value in self._best.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `tensors` gave."""
        parts: dict[str, dict[str, Tensor]] = {"module": {}, "optimizer": {}, "average": {}, "best": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        self.module.load_state_dict(parts["module"])
        state = self.optimizer.state_dict()
        state["state"] = {}
        for name, value in parts["optimizer"].items():
            number, _, moment = name.partition(".")
            state["state"].setdefault(int(number), {})[moment] = value
        self.optimizer.load_state_dict(state)
        if self._average is not None:
            self._average.load_state_dict(parts["average"])
        self._best = parts["best"]
