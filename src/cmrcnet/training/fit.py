"""Train CMRCNet on the sections given, and on nothing else: one loop over Lightning Fabric.

The course of a training: some training sections are held in and the rest trained on; the epoch whose retrieval is best
on the held-in ones is chosen; then, with `train.refit`, the network is trained again from the start on all sections
for that many epochs. Every epoch seeds its own generators from the recipe's seed, the phase and the epoch's number,
so that a run that was interrupted and resumed ends with the same weights, bit for bit on a CPU.
"""

from __future__ import annotations

import logging
import math
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cmrcnet.encoding.device import choose_device, choose_precision
from cmrcnet.encoding.encode import encode_patches
from cmrcnet.encoding.patch_store import PatchStore
from cmrcnet.encoding.token_cache import TokenCache
from cmrcnet.errors import CmrcnetWarning, Diverged, TooFew
from cmrcnet.expression.gene_sets import gene_sets
from cmrcnet.expression.panel import GenePanel, choose_panel
from cmrcnet.fingerprint import fingerprint
from cmrcnet.model.encoder_registry import create_image_encoder
from cmrcnet.model.image_encoder import ImageEncoder
from cmrcnet.model.provenance import Provenance
from cmrcnet.model.trained_model import TrainedModel
from cmrcnet.progress import metered
from cmrcnet.recipe import Recipe
from cmrcnet.tissue.section import Cohort, Section
from cmrcnet.training.batches import epoch_batches, steps_in
from cmrcnet.training.checkpoint import Checkpoints, TrainingState
from cmrcnet.training.course import Course
from cmrcnet.training.held_in import HeldIn, choose_held_in
from cmrcnet.training.learner import Learner, new_learner
from cmrcnet.training.look import Looker
from cmrcnet.training.pairs import Pairs, read_pairs

if TYPE_CHECKING:
    from lightning_fabric.loggers import Logger

log = logging.getLogger("cmrcnet")

_PHASES = {"search": 0, "refit": 1}
_FABRIC_PRECISION = {"float32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
