"""Fit a student's head: a linear map in closed form and a residual network by AdamW, both chosen on validation groups.

The loss is the mean squared error of the scores. The gene basis is orthonormal, so this is the squared error of the
expression, summed over genes; genes with high variance weigh most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch.nn.functional import mse_loss

from cmrcnet.distill.distillation_set import DistillationSet, TeacherOutputs, teacher_outputs
from cmrcnet.heads.ridge import PENALTIES, ridge_path
from cmrcnet.models.student import StudentHead
from cmrcnet.models.trained_model import TrainedModel
from cmrcnet.retrieval.bank import ReferenceBank
from cmrcnet.training.loop import train_epochs

HIDDEN = 256
EPOCHS = 40
"""Epochs of the residual, at most. The learning rate is constant, so that fewer epochs are the beginning of more."""
DEFAULT_EPOCHS, DEFAULT_PENALTY = 10, 0.1
"""Used where there is one group only, so that none can be left out for validation."""
FOLDS = 3
_LEARNING_RATE, _WEIGHT_DECAY, _BATCH = 1e-3, 1e-2, 256


@dataclass(frozen=True, eq=False)
class HeadData:
    """Inputs and targets of a student's head at the locations of one distillation set."""

    group: str
    """Data of one group are left out for validation together."""
    features: np.ndarray
    """(locations, components) float32: student features."""
    scores: np.ndarray
    """(locations, rank) float32: teacher scores."""


def fit_student(
    model: TrainedModel, bank: ReferenceBank, sets: Sequence[DistillationSet], seed: int
) -> tuple[TeacherOutputs, StudentHead, dict[str, Any]]:
    """Predict the sets with the teacher and fit a head to the predictions; returns as `fit_student_head`."""
    outputs = teacher_outputs(model, bank, sets, seed)
    data = [
        HeadData(each.group, each.student_features, scores) for each, scores in zip(sets, outputs.scores, strict=True)
    ]
    return outputs, *fit_student_head(data, seed)


def fit_student_head(data: Sequence[HeadData], seed: int) -> tuple[StudentHead, dict[str, Any]]:
    """Choose the ridge penalty and the number of epochs on validation groups, then fit on all data.

    Returns the head and, as plain values, the choices and the share of the teacher's variance that is explained on
    validation groups.
    """
    features = np.concatenate([each.features for each in data])
    scores = np.concatenate([each.scores for each in data])
    group_of = np.repeat([each.group for each in data], [len(each.features) for each in data])
    names = sorted(set(group_of.tolist()))
    folds = [np.isin(group_of, names[start::FOLDS]) for start in range(min(FOLDS, len(names)))] if names[1:] else []
    penalty, epochs, explained = DEFAULT_PENALTY, DEFAULT_EPOCHS, None
    if folds:
        penalty = _best_penalty(features, scores, folds)
        error = np.zeros(EPOCHS + 1)
        for validation in folds:
            held_out = (features[validation], scores[validation])
            error += _train(features[~validation], scores[~validation], penalty, EPOCHS, seed, held_out)[1]
        epochs = int(error.argmin())
        total = sum(float(((scores[held] - scores[~held].mean(axis=0)) ** 2).sum()) for held in folds)
        explained = 1 - float(error[epochs]) / max(total, 1e-12)
    head, _ = _train(features, scores, penalty, epochs, seed, None)
    facts = {"penalty": penalty, "epochs": epochs, "validation_folds": len(folds), "validation_variance": explained}
    return head, facts | {"locations": len(features), "hidden": HIDDEN, "rank": int(scores.shape[1])}


@threadpool_limits.wrap(limits=1, user_api="blas")  # several threads can differ in the last bit from run to run
def _best_penalty(features: np.ndarray, scores: np.ndarray, folds: Sequence[np.ndarray]) -> float:
    errors = np.zeros(len(PENALTIES))
    for held in folds:
        for number, fit in enumerate(ridge_path(features[~held], scores[~held])):
            errors[number] += float(((fit.predict(features[held]) - scores[held]) ** 2).sum())
    return float(PENALTIES[int(errors.argmin())])


def _train(
    features: np.ndarray,
    scores: np.ndarray,
    penalty: float,
    epochs: int,
    seed: int,
    held_out: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[StudentHead, list[float]]:
    """Train the residual of a ridge; with `held_out`, return its summed squared errors before and after each epoch."""
    with threadpool_limits(limits=1, user_api="blas"):
        start = ridge_path(features, scores, [penalty])[0]
    scale = max(float(np.sqrt(np.mean((scores - start.predict(features)) ** 2))), 1e-6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = StudentHead(features.shape[1], scores.shape[1], HIDDEN)
    with torch.no_grad():
        head.scale.fill_(scale)
        head.linear.weight.copy_(torch.from_numpy(start.weights.T / scale))
        head.linear.bias.copy_(torch.from_numpy(start.offset / scale))
    inputs, wanted = torch.from_numpy(features), torch.from_numpy(scores / np.float32(scale))
    with torch.no_grad():
        rest = wanted - head.linear(inputs)
    optimizer = torch.optim.AdamW(head.residual.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    shuffle = torch.Generator().manual_seed(seed)
    errors = []

    def measure(*_: object) -> bool:
        if held_out is not None:
            residual = head.scores(held_out[0]) - held_out[1]
            errors.append(float((residual.astype(np.float64) ** 2).sum()))
        return False

    measure()
    train_epochs(
        head,
        optimizer,
        lambda _: torch.randperm(len(inputs), generator=shuffle).split(_BATCH),
        lambda rows: mse_loss(head.residual(inputs[rows]), rest[rows]),
        range(epochs),
        after_epoch=measure,
    )
    return head.eval().requires_grad_(False), errors
