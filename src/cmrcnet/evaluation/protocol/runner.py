"""Run experiments: features first, then every task that is not done, in this process or in workers.

An error in a worker is raised here as itself and stops the others. Finished results are in the run folder by then.

A sum over many threads is added up in another order than over one, so the last digits depend on their number. Tasks
on a CPU therefore run with one thread each, whatever the number of workers: results are then bit-identical. Only a
config that trains its encoder gets all cores (a task of hours); there the last digits may depend on the number.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cmrcnet.config import Config
from cmrcnet.evaluation.protocol.experiment import Experiment, FoldPlanner, Key, MethodRun, Task, TaskList
from cmrcnet.evaluation.protocol.fold_runner import FoldRunner, features_name
from cmrcnet.evaluation.protocol.run_folder import FoldResult
from cmrcnet.features.device import limited_threads
from cmrcnet.progress import metered
from cmrcnet.slides.section import Cohort
from cmrcnet.workers import WorkerOptions, Workers, cores, run_in_workers, why_not_picklable

if TYPE_CHECKING:
    from cmrcnet.storage.cache import TokenCache

log = logging.getLogger("cmrcnet")


def run_experiments(
    experiments: Sequence[Experiment], cohort: Cohort, cache: TokenCache, workers: Workers | WorkerOptions
) -> Iterator[tuple[int, dict[Key, FoldResult], float]]:
    """Run every task of the experiments, and yield each experiment's results when it is complete.

    Experiments share workers, features, plans and trainings.

    Yields
    ------
    number : int
        Index of the experiment.
    results : dict
        In the order of `Experiment.keys`.
    features_s : float
        Seconds spent on computing its frozen features.
    """
    results = [experiment.finished() for experiment in experiments]
    todo = sum(len(each.keys) - len(done) for each, done in zip(experiments, results, strict=True))
    if not isinstance(workers, WorkerOptions):
        workers = WorkerOptions("local", workers)
    count = workers.count(todo)
    if count > 1 and (why := why_not_picklable(cohort, cache, [each.methods for each in experiments])):
        log.info("One process is used: %s", why)  # it gives the same results
        count = 1
    tasks = TaskList(experiments, results, count)
    count = min(count, len(tasks))
    runner = FoldRunner(cohort, cache)
    planner = FoldPlanner(runner.cohort)
    seconds = _compute_features(experiments, results, runner)

    def complete(number: int) -> Iterator[tuple[int, dict[Key, FoldResult], float]]:
        each = experiments[number]
        if len(results[number]) == len(each.keys):
            for fold in each.folds:
                each.plan(planner, fold)  # also folds of which nothing was run: run.json describes all
            yield number, {key: results[number][key] for key in each.keys}, seconds[number]

    for number, each in enumerate(experiments):
        if len(results[number]) == len(each.keys):
            yield from complete(number)
    planned = tasks.planned(planner)
    if count > 1:
        log.info("%d tasks for %d workers", len(tasks), count)
        found: Any = _by_workers(planned, _TaskRunner(cohort, cache, count), count, workers.engine)
    else:
        found = run_here(planned, runner)
    with metered("evaluate", todo, "results") as meter, closing(found):
        for run, result in found:
            results[run.number][run.key] = result
            hvg = result.scores[(result.scores.gene_set == "HVG") & (result.scores.metric == "pearson")]["value"].mean()
            trial = f"trial {run.number + 1}, " if len(experiments) > 1 else ""
            log.info("%s%s: HVG Pearson %.3f (%.0f s)", trial, run.name, hvg, result.seconds)
            meter.advance(note=run.name)
            yield from complete(run.number)


def _compute_features(
    experiments: Sequence[Experiment], results: Sequence[dict[Key, FoldResult]], runner: FoldRunner
) -> list[float]:
    """Seconds for the features of each experiment. A config that trains its encoder may never need frozen features."""
    seconds, seen = [], set()
    for each, done in zip(experiments, results, strict=True):
        start = time.monotonic()
        name = features_name(each.config)
        if len(done) < len(each.keys) and not each.config.model.train_encoder and name not in seen:
            features = runner.features(each.config)
            for section in runner.cohort:  # so that workers find them in the cache
                features.of(section.slide, section.spots)
            seen.add(name)
        seconds.append(time.monotonic() - start)
    return seconds


def run_here(tasks: Iterable[Task], runner: FoldRunner) -> Iterator[tuple[MethodRun, FoldResult]]:
    """Run tasks one after another in this process, with the threads that a worker would have."""
    for task in tasks:
        with limited_threads(threads_of_task(task[0].experiment.config, 1)):
            yield from runner.run(task)


def _by_workers(
    tasks: Iterable[Task], setup: _TaskRunner, count: int, engine: str
) -> Iterator[tuple[MethodRun, FoldResult]]:
    """Run tasks in workers, and yield their results as they are finished."""
    found = run_in_workers(
        tasks,
        setup,
        count=count,
        engine=engine,
        name_of=lambda task: task[0].name.replace(
            task[0].method.name, ", ".join(dict.fromkeys(run.method.name for run in task)), 1
        ),
    )
    for task, results in found:
        if isinstance(results, BaseException):
            raise results
        yield from zip(task, results, strict=True)


@dataclass(frozen=True)
class _TaskRunner:
    """What a worker sets up: a runner of tasks."""

    cohort: Cohort
    cache: TokenCache
    share: int
    """Workers that share a machine."""

    def __call__(self) -> Callable[[Task], list[FoldResult]]:
        runner = FoldRunner(self.cohort, self.cache, share=self.share)

        def run(task: Task) -> list[FoldResult]:
            with limited_threads(threads_of_task(task[0].experiment.config, self.share)):
                return [result for _, result in runner.run(task)]

        return run


def threads_of_task(config: Config, workers: int) -> int:
    """Return the number of threads that one task computes with."""
    return max(1, cores() // workers) if config.model.train_encoder else 1
