"""Every training unit held in once: the epoch that is best over all, and what is retrieved for spots not trained on."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from cmrcnet.training.history import Course
from cmrcnet.training.loop import Job, train_phase
from cmrcnet.training.validate import Look, Looker
from cmrcnet.training.validation_split import ValidationSplit

log = logging.getLogger("cmrcnet")


@dataclass(frozen=True, eq=False)
class CrossSearch:
    """The outcome of a search over every unit.

    Parameters
    ----------
    splits : tuple of ValidationSplit
    epoch : int
        Passes over the training spots, best on the mean over units.
    score : float or None
        That mean.
    retrieved : numpy.ndarray or None, shape (pairs, rank), float32
        For each pair, the scores retrieved at that epoch by the network that had not seen its unit.
    spread, similarity : numpy.ndarray or None, shapes (pairs, rank) and (pairs,), float32
        Deviation of the neighbours' scores, and mean cosine to them; together with `retrieved`.
    """

    splits: tuple[ValidationSplit, ...]
    epoch: int
    score: float | None
    retrieved: np.ndarray | None
    spread: np.ndarray | None = None
    similarity: np.ndarray | None = None


def cross_search(job: Job, splits: tuple[ValidationSplit, ...], course: Course) -> CrossSearch:
    """Train once without each unit, and look at it as training goes on.

    Parameters
    ----------
    job : Job
    splits : tuple of ValidationSplit
    course : Course
        Grows by a row an epoch and unit, and notes the best epoch.
    """
    config, every = job.config.train, job.config.train.validate_every
    looks: dict[int, list[Look]] = {}
    quiet = Job(job.config, job.pairs, job.n_genes, job.fabric, job.encoder, job.prefix, None, job.identity)
    for split in splits:
        seen: list[tuple[int, Look]] = []
        looker = Looker(job.pairs, split, job.config, job.fabric)
        train_phase(
            quiet,
            "search",
            split.rest,
            config.epochs,
            course,
            looker=looker,
            look_every=every,
            choose=False,
            keep_best=False,
            resumed=None,
            seen=seen,
        )
        for epoch, look in seen:
            looks.setdefault(epoch, []).append(look)
    means = {epoch: _mean(course, these) for epoch, these in sorted(looks.items())}
    known = {epoch: score for epoch, score in means.items() if score is not None}
    epoch = max(known, key=lambda each: known[each]) if known else config.epochs
    course.best_epoch, course.best_score = epoch, known.get(epoch)
    retrieved = spread = similarity = None
    if job.pairs.scores is not None and epoch in looks:
        retrieved, spread = np.zeros_like(job.pairs.scores), np.zeros_like(job.pairs.scores)
        similarity = np.zeros(len(job.pairs), np.float32)
        for split, look in zip(splits, looks[epoch], strict=True):
            retrieved[split.ids], spread[split.ids] = look.retrieved, look.spread
            similarity[split.ids] = look.similarity
    log.info("Epoch %d is best over %d groups of validation units.", epoch, len(splits))
    return CrossSearch(splits, epoch, known.get(epoch), retrieved, spread, similarity)


def _mean(course: Course, looks: list[Look]) -> float | None:
    """Mean over the units' looks, where any is defined."""
    values = [look.pearson if course.select_by == "pearson" else look.objective for look in looks]
    known = [value for value in values if value is not None]
    if not known:
        return None
    return float(np.mean(known)) * (1 if course.select_by == "pearson" else -1)
