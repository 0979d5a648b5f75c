"""Run studies: features first, then every task that is not done, side by side where cores allow."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING

from cmrcnet.evaluation.protocol.experiment import FoldPlanner, Key, Study, Task
from cmrcnet.evaluation.protocol.fold_runner import Bench, features_name
from cmrcnet.evaluation.protocol.pool import run_here, run_in_workers, sendable
from cmrcnet.evaluation.protocol.run_folder import Part
from cmrcnet.evaluation.protocol.threads import Workers, choose_workers
from cmrcnet.progress import metered
from cmrcnet.slides.section import Cohort

if TYPE_CHECKING:
    from cmrcnet.storage.cache import TokenCache

log = logging.getLogger("cmrcnet")


def run_studies(
    studies: Sequence[Study], cohort: Cohort, cache: TokenCache, workers: Workers = 1
) -> Iterator[tuple[int, dict[Key, Part], float]]:
    """Run every task of the studies, and give each study's parts when it is whole.

    Parameters
    ----------
    studies : sequence of Study
        They share workers, features and plans.
    cohort : Cohort
    cache : TokenCache
    workers : int or "auto"

    Yields
    ------
    number : int
        The study's place.
    parts : dict
        In the order of `Study.keys`.
    features_s : float
        Seconds that computing its frozen features took before.

    Raises
    ------
    BadOption, WorkerDied
    """
    parts = [study.finished() for study in studies]
    todo = sum(len(study.keys) - len(done) for study, done in zip(studies, parts, strict=True))
    count = choose_workers(workers, todo)
    bench = Bench(cohort, cache)
    planner = FoldPlanner(bench.cohort)
    luggage = None
    if count > 1:
        luggage = sendable(cohort, cache, [method for study in studies for method in study.methods])
    seconds = _warm(studies, parts, bench)
    for number, study in enumerate(studies):
        if len(parts[number]) == len(study.keys):
            _plan(study, planner)
            yield number, _ordered(study, parts[number]), seconds[number]
    line = chain.from_iterable(
        study.tasks(number, planner, tuple(parts[number])) for number, study in enumerate(studies)
    )
    if luggage is None:
        results = run_here(line, bench)
    else:
        log.info("%d tasks in %d processes", todo, count)
        results = run_in_workers(line, luggage, count)
    with metered("evaluate", todo, "tasks") as meter, closing(results):
        for task, part in results:
            parts[task.study][task.key] = part
            _say(task, part, several=len(studies) > 1)
            meter.advance(note=task.name)
            study = studies[task.study]
            if len(parts[task.study]) == len(study.keys):
                _plan(study, planner)
                yield task.study, _ordered(study, parts[task.study]), seconds[task.study]


def _warm(studies: Sequence[Study], parts: Sequence[dict[Key, Part]], bench: Bench) -> list[float]:
    """Seconds for the features of each study. A config that trains its encoder may never ask for frozen features."""
    seconds, seen = [], set()
    for study, done in zip(studies, parts, strict=True):
        start = time.monotonic()
        name = features_name(study.config)
        if len(done) < len(study.keys) and not study.config.model.train_encoder and name not in seen:
            bench.warm(study.config)
            seen.add(name)
        seconds.append(time.monotonic() - start)
    return seconds


def _plan(study: Study, planner: FoldPlanner) -> None:
    """Plan the folds of which nothing was to be run, for what `run.json` says of them."""
    for fold in study.folds:
        if fold.name not in study.plans:
            study.plans[fold.name] = planner.plan(study.config, fold, study.scored)


def _ordered(study: Study, parts: dict[Key, Part]) -> dict[Key, Part]:
    return {key: parts[key] for key in study.keys}


def _say(task: Task, part: Part, several: bool) -> None:
    hvg = part.scores[(part.scores.gene_set == "HVG") & (part.scores.metric == "pearson")]["value"].mean()
    cell = f"cell {task.study + 1}, " if several else ""
    log.info("%s%s: HVG Pearson %.3f (%.0f s)", cell, task.name, hvg, part.seconds)
