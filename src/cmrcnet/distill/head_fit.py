"""Fit a student's head: a line that is solved for, and a bend that is learnt, both no further than validation slides
say.

The error is the mean squared error of the scores. The gene basis is orthonormal, so this is the squared error of the
expression, summed over the genes: those that vary most count most, and they are the ones that can be predicted at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch.nn.functional import mse_loss

from cmrcnet.errors import Diverged
from cmrcnet.heads.ridge import PENALTIES, Ridge, ridge_path
from cmrcnet.models.student import StudentHead

HIDDEN = 256
EPOCHS = 40
"""Passes over the locations, at most. The rate does not fall, so that fewer passes are the beginning of more."""
EPOCHS_UNSEEN, PENALTY_UNSEEN = 10, 0.1
"""What is taken where there is one slide only, and nothing can be held in."""
GROUPS = 3
_RATE, _DECAY, _BATCH = 1e-3, 1e-2, 256


@dataclass(frozen=True, eq=False)
class Exercise:
    """What a head is fitted to: the locations of one lesson.

    Parameters
    ----------
    unit : str
        Exercises of one unit are held in together.
    features : numpy.ndarray, shape (locations, components), float32
    scores : numpy.ndarray, shape (locations, rank), float32
    """

    unit: str
    features: np.ndarray
    scores: np.ndarray


def fit_head(exercises: Sequence[Exercise], seed: int) -> tuple[StudentHead, dict[str, Any]]:
    """Choose the penalty of the line and the epochs of the bend on validation units, then fit both on all.

    Parameters
    ----------
    exercises : sequence of Exercise
    seed : int

    Returns
    -------
    head : StudentHead
    facts : dict
        What was chosen, and the share of the teacher's variance that validation units were given, plain values.

    Raises
    ------
    Diverged
    """
    features = np.concatenate([each.features for each in exercises])
    scores = np.concatenate([each.scores for each in exercises])
    unit_of = np.repeat([each.unit for each in exercises], [len(each.features) for each in exercises])
    groups = _groups(sorted(set(unit_of.tolist())))
    penalty, epochs, explained = PENALTY_UNSEEN, EPOCHS_UNSEEN, None
    if groups:
        inside = [np.isin(unit_of, group) for group in groups]
        penalty = _best_penalty(features, scores, inside)
        curve = np.zeros(EPOCHS + 1)
        for held in inside:
            line = _line(features[~held], scores[~held], penalty)
            look = (features[held], scores[held])
            curve += _train(features[~held], scores[~held], line, EPOCHS, seed, look)[1]
        epochs = int(curve.argmin())
        spread = sum(float(((scores[held] - scores[~held].mean(axis=0)) ** 2).sum()) for held in inside)
        explained = 1 - float(curve[epochs]) / max(spread, 1e-12)
    head, _ = _train(features, scores, _line(features, scores, penalty), epochs, seed, None)
    facts = {"penalty": penalty, "epochs": epochs, "validation_groups": len(groups), "validation_variance": explained}
    return head, facts | {"locations": len(features), "hidden": HIDDEN, "rank": int(scores.shape[1])}


def head_scores(head: StudentHead, features: np.ndarray) -> np.ndarray:
    """What a head says of reduced features (locations, components): (locations, rank) float32."""
    with torch.inference_mode():
        return head(torch.from_numpy(features)).numpy()


def _groups(units: Sequence[str]) -> list[list[str]]:
    """Units that are left out together; none where there is one unit only."""
    dealt = [list(units[start::GROUPS]) for start in range(min(GROUPS, len(units)))]
    return dealt if len(dealt) > 1 else []


@threadpool_limits.wrap(limits=1, user_api="blas")  # several threads may differ in the last bit, and so may two runs
def _best_penalty(features: np.ndarray, scores: np.ndarray, inside: Sequence[np.ndarray]) -> float:
    errors = np.zeros(len(PENALTIES))
    for held in inside:
        for number, line in enumerate(ridge_path(features[~held], scores[~held])):
            errors[number] += float(((line.predict(features[held]) - scores[held]) ** 2).sum())
    return float(PENALTIES[int(errors.argmin())])


@threadpool_limits.wrap(limits=1, user_api="blas")
def _line(features: np.ndarray, scores: np.ndarray, penalty: float) -> Ridge:
    return ridge_path(features, scores, [penalty])[0]


def _train(
    features: np.ndarray,
    scores: np.ndarray,
    line: Ridge,
    epochs: int,
    seed: int,
    look: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[StudentHead, list[float]]:
    """Learn the bend; with `look`, the sum of squared errors there before and after each epoch."""
    unit = max(float(np.sqrt(np.mean((scores - line.predict(features)) ** 2))), 1e-6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = StudentHead(features.shape[1], scores.shape[1], HIDDEN)
    with torch.no_grad():
        head.scale.fill_(unit)
        head.linear.weight.copy_(torch.from_numpy(line.weights.T / unit))
        head.linear.bias.copy_(torch.from_numpy(line.offset / unit))
    inputs, wanted = torch.from_numpy(features), torch.from_numpy(scores / np.float32(unit))
    with torch.no_grad():
        rest = wanted - head.linear(inputs)
    steps = torch.optim.AdamW(head.residual.parameters(), lr=_RATE, weight_decay=_DECAY)
    shuffle = torch.Generator().manual_seed(seed)
    seen = [] if look is None else [_squared_error(head, look)]
    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(len(inputs), generator=shuffle).split(_BATCH):
            loss = mse_loss(head.residual(inputs[rows]), rest[rows])
            if not torch.isfinite(loss):
                raise Diverged(epoch)
            steps.zero_grad()
            loss.backward()
            steps.step()
        if look is not None:
            seen.append(_squared_error(head, look))
    return head.eval().requires_grad_(False), seen


def _squared_error(head: StudentHead, look: tuple[np.ndarray, np.ndarray]) -> float:
    features, scores = look
    return float(((head_scores(head, features) - scores).astype(np.float64) ** 2).sum())
