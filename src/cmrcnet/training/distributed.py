"""Train on several devices of this machine: distributed data parallel (DDP) by Fabric, a process for each device.

Each process (rank) computes its part of every batch, and all compute the loss of the whole batch
(`module.BatchShare`), so that negatives come from all of it. Order, augmentation and masks are drawn for the whole
batch, from the seeds of one process: without dropout the gradients are those of one process, up to rounding. Dropout
is drawn by each rank from a seed of its own. The data are collected before and the heads are fitted after, in this
process; rank 0 alone validates and writes.
"""

from __future__ import annotations

import copy
import logging
import os
import re
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy

from cmrcnet.config import Config
from cmrcnet.errors import BadOption
from cmrcnet.features.device import Precision
from cmrcnet.models.image_encoder import ImageEncoder
from cmrcnet.training.checkpoint import Checkpoints
from cmrcnet.training.data import TrainingData, steps_in
from cmrcnet.training.loop import CrossSearch, History, TrainContext, search_and_refit
from cmrcnet.training.validation import ValidationSplit
from cmrcnet.workers import cores, run_in_workers, why_not_picklable

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger

log = logging.getLogger("cmrcnet")

FABRIC_PRECISION: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "float32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}
_LOST = re.compile("gloo|nccl|connection", re.IGNORECASE)
"""In the error of a rank whose exchange with the others was cut."""
_PATIENCE_S = 60.0
"""Such a rank waits so long to be ended with the others: this process tells which rank has died."""

Outcome = tuple[dict[str, np.ndarray], History, int, CrossSearch | None]
"""Weights of the module that is kept, and the rest of what `search_and_refit` returns."""


def require_devices(devices: int, name: str, device: torch.device) -> None:
    """Refuse a number of devices that this machine does not have.

    Parameters
    ----------
    devices : int
        Processes to train in.
    name : str
        `train.device`.
    device : torch.device
        What it stands for.

    Raises
    ------
    BadOption
    """
    most = {"cuda": torch.cuda.device_count(), "cpu": cores()}.get(device.type, 1)
    what = {"cuda": "GPU", "cpu": "core"}.get(device.type, "GPU") + ("" if most == 1 else "s")
    if type(devices) is not int or not 1 <= devices <= most:
        raise BadOption("devices", devices, f"1 to {most}: this machine has {most} {what} to train on")
    if devices > 1 and ":" in name:
        raise BadOption("train.device", name, f"auto or {device.type}, to train on {devices} devices")


@dataclass(frozen=True, eq=False)
class Ranks:
    """A training on several devices, as it is sent to the process of each; what a worker sets up by calling it.

    Parameters
    ----------
    count : int
        Devices.
    device : str
        Their kind: cuda or cpu.
    make_encoder : callable
        Gives the encoder of a config.
    level : int
        Of the log of rank 0.

    The others are those of `TrainContext` and `search_and_refit`.
    """

    count: int
    device: str
    precision: Precision
    config: Config
    data: TrainingData
    splits: tuple[ValidationSplit, ...]
    make_encoder: Callable[[Config], ImageEncoder]
    prefix: int | None
    checkpoints: Checkpoints | None
    identity: Mapping[str, str]
    resume: bool
    logger: Logger | None
    level: int

    def train(self) -> Outcome:
        """Train in one process for each device. An error of one ends all.

        Raises
        ------
        WorkerDied
            A process ended without a result.
        BadOption
            A batch has fewer pairs than there are devices, or the logger cannot be sent to another process.
        """
        size = self.config.train.batch_size
        for split in self.splits or (ValidationSplit.nothing(len(self.data)),):
            least = len(split.rest) // steps_in(len(split.rest), size)
            if least < self.count:
                raise BadOption("devices", self.count, f"{least} at most, the pairs in the smallest batch")
        if why := why_not_picklable(self.logger):
            raise BadOption("logger", self.logger, f"one that can be sent to another process ({why})")
        found: Outcome | None = None
        with tempfile.TemporaryDirectory(prefix="cmrcnet-", ignore_cleanup_errors=True) as folder:
            tasks = [(rank, f"{folder}/meeting") for rank in range(self.count)]
            answers: Any = run_in_workers(
                tasks, self, count=self.count, name_of=lambda task: f"rank {task[0]} of the training"
            )
            with closing(answers):
                for _, answer in answers:
                    if isinstance(answer, BaseException):
                        raise answer
                    found = answer if found is None else found
        assert found is not None
        return found

    def __call__(self) -> Callable[[tuple[int, str]], Outcome | None]:
        """Return what trains as a rank; rank 0 gives the outcome."""
        return self._train_as

    def _train_as(self, task: tuple[int, str]) -> Outcome | None:
        rank, meeting = task
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # also while it waits for others; it has no temporary folders
        if rank == 0:
            logging.basicConfig(format="%(message)s")
            log.setLevel(self.level)
        else:
            warnings.simplefilter("ignore")  # each would say the same
        try:
            fabric = self._join(rank, meeting)
            encoder = self.make_encoder(self.config)
            trained = self.config.model.train_encoder
            context = TrainContext(
                config=self.config,
                data=self.data,
                fabric=fabric,
                encoder=(lambda: copy.deepcopy(encoder)) if trained else (lambda: encoder),
                prefix=self.prefix,
                checkpoints=self.checkpoints,
                identity=self.identity,
            )
            module, history, epoch, search = search_and_refit(context, self.splits, self.resume)
        except RuntimeError as error:
            if _LOST.search(str(error)):
                time.sleep(_PATIENCE_S)
            raise
        torch.distributed.destroy_process_group()
        if rank > 0:
            return None
        return {name: value.cpu().numpy() for name, value in module.state_dict().items()}, history, epoch, search

    def _join(self, rank: int, meeting: str) -> Fabric:
        """Meet the other ranks."""
        os.environ["LOCAL_RANK"] = str(rank)  # tells Fabric that the processes are there already
        backend, devices = ("nccl", list(range(self.count))) if self.device == "cuda" else ("gloo", self.count)
        if self.device == "cuda":
            torch.cuda.set_device(rank)
        else:
            torch.set_num_threads(max(1, cores() // self.count))
        torch.distributed.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=self.count)
        fabric = Fabric(
            accelerator=self.device,
            devices=devices,
            strategy=DDPStrategy(),
            precision=FABRIC_PRECISION[self.precision],
            plugins=[LightningEnvironment()],
            loggers=self.logger if rank == 0 else None,
        )
        fabric.launch()
        return fabric
