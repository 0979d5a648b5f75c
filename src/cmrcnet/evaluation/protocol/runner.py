"""Run experiments: features first, then every task that is not done, in this process or in several.

Workers are spawned, so that no state of this process (threads, GPU, random generators) is copied into them. An error
in a worker is raised here as itself and stops the others; an interrupt ends them; when this process is killed they end
by themselves. Finished results are in the run folder by then.

A sum over many threads is added up in another order than over one, so the last digits depend on their number. Tasks
on a CPU therefore run with one thread each, whatever the number of workers: results are then bit-identical. Only a
config that trains its encoder gets all cores (a task of hours); there the last digits may depend on the number.

The file is one thing: how tasks are distributed over processes.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.reduction
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cmrcnet.config import Config
from cmrcnet.errors import BadOption, CmrcnetWarning, WorkerDied
from cmrcnet.evaluation.protocol.experiment import Experiment, FoldPlanner, Key, MethodRun, Task, TaskList
from cmrcnet.evaluation.protocol.fold_runner import FoldRunner, features_name
from cmrcnet.evaluation.protocol.run_folder import FoldResult
from cmrcnet.progress import metered
from cmrcnet.slides.section import Cohort

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue

    from cmrcnet.storage.cache import TokenCache

log = logging.getLogger("cmrcnet")

Workers = int | Literal["auto"]

ForkingPickler: Any = multiprocessing.reduction.ForkingPickler

WORKER_BYTES = 1_500_000_000
"""Memory that one worker is expected to need: torch, the counts of a cohort, one method."""
_PATIENCE_S = 5.0
"""Time that a terminated worker gets to remove its temporary folders."""
_ENDED_BY_US = (0, None, -signal.SIGTERM, 128 + signal.SIGTERM)


def run_experiments(
    experiments: Sequence[Experiment], cohort: Cohort, cache: TokenCache, workers: Workers = 1
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
    count = choose_workers(workers, todo)
    payload = None
    if count > 1:
        payload = pickled((cohort, cache), [method for each in experiments for method in each.methods])
    tasks = TaskList(experiments, results, count if payload is not None else 1)
    count = min(count, len(tasks)) if payload is not None else 1
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
        assert payload is not None
        log.info("%d tasks in %d processes", len(tasks), count)
        found: Any = run_in_workers(planned, payload, count)
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
            runner.compute_features(each.config)
            seen.add(name)
        seconds.append(time.monotonic() - start)
    return seconds


def run_here(tasks: Iterable[Task], runner: FoldRunner) -> Iterator[tuple[MethodRun, FoldResult]]:
    """Run tasks one after another in this process, with the threads that a worker would have."""
    for task in tasks:
        with limited_threads(threads_of_task(task[0].experiment.config, 1)):
            yield from runner.run(task)


def run_in_workers(tasks: Iterable[Task], payload: bytes, workers: int) -> Iterator[tuple[MethodRun, FoldResult]]:
    """Run tasks in spawned worker processes, and yield their results as they are finished.

    Tasks are taken one by one when a worker is free; the payload is cohort and cache, from `pickled`. Raises
    `WorkerDied`.
    """
    context = multiprocessing.get_context("spawn")
    started = context.SimpleQueue()
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, context, _start_worker, (payload, workers, log.getEffectiveLevel(), started))
    waiting, running = iter(tasks), dict[Future, Task]()
    processes: set[Any] = set()
    names: dict[int, str] = {}
    complete = False
    try:
        while True:
            running |= {pool.submit(_run_task, task): task for task in islice(waiting, workers - len(running))}
            processes |= set(multiprocessing.active_children()) - before
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                for sentence in (answer := future.result())["warnings"]:
                    warnings.warn(sentence, CmrcnetWarning, stacklevel=2)
                while not started.empty():
                    names |= [started.get()]
                if "error" in answer:
                    answer["error"].add_note(answer["trace"])
                    raise answer["error"]
                yield from zip(task, answer["results"], strict=True)
        complete = True
    except BrokenProcessPool:
        pool.shutdown(wait=True, cancel_futures=True)  # it joins the processes, so that their exit codes are known
        while not started.empty():
            names |= [started.get()]
        dead = [process for process in processes if process.exitcode not in _ENDED_BY_US] or list(processes)
        raise WorkerDied(names.get(dead[0].pid, "a task"), dead[0].exitcode) from None
    finally:
        pool.shutdown(wait=complete, cancel_futures=True)
        _end(processes)


def pickled(payload: object, methods: Iterable[object]) -> bytes | None:
    """Pickle what a worker needs, cohort and cache; None where it, or a method, cannot be pickled."""
    try:
        ForkingPickler.dumps(list(methods))
        return bytes(ForkingPickler.dumps(payload))
    except Exception as error:  # pickle has many ways to fail, and one process gives the same results
        log.info("One process is used: %s", str(error).splitlines()[0])
        return None


def choose_workers(asked: Workers, tasks: int) -> int:
    """Choose the number of processes, not more than tasks; `BadOption` for less than one.

    auto: one for each core, limited by half of the memory.
    """
    if asked == "auto":
        try:
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        except (AttributeError, ValueError, OSError):
            memory = 8 * WORKER_BYTES
        return max(1, min(cores(), tasks, memory // WORKER_BYTES))
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise BadOption("workers", asked, want="a number of processes, 1 or more, or auto")
    return max(1, min(asked, tasks))


def threads_of_task(config: Config, workers: int) -> int:
    """Return the number of threads that one task computes with."""
    return max(1, cores() // workers) if config.model.train_encoder else 1


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """Limit the threads of numerical libraries, and restore the former limit afterwards."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        torch.set_num_threads(before)


def _end(processes: Iterable[Any]) -> None:
    for process in processes:
        if process.is_alive():
            process.terminate()
    for process in processes:
        process.join(_PATIENCE_S)
        if process.is_alive():
            process.kill()
            process.join()


# --- in a worker -----------------------------------------------------------------------------------------------------

_runner: FoldRunner
_workers: int
_started: SimpleQueue


def _start_worker(payload: bytes, workers: int, level: int, started: SimpleQueue) -> None:
    global _runner, _workers, _started
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that temporary folders are removed
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.getLogger("cmrcnet").setLevel(max(level, logging.WARNING))
    sys.path.append(str(Path.cwd()))  # a method of the user's own may lie there
    _runner, _workers, _started = FoldRunner(*ForkingPickler.loads(payload), share=workers), workers, started


def _run_task(task: Task) -> dict[str, Any]:
    answer: dict[str, Any] = {"results": []}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", CmrcnetWarning)
        try:
            with limited_threads(threads_of_task(task[0].experiment.config, _workers)):
                _started.put((os.getpid(), task[0].name))
                for following, (_, result) in zip((*task[1:], None), _runner.run(task), strict=True):
                    answer["results"].append(result)
                    if following is not None:
                        _started.put((os.getpid(), following.name))
        except Exception as error:
            answer |= {"error": error, "trace": f"In a worker process:\n{traceback.format_exc()}"}
            try:
                ForkingPickler.loads(ForkingPickler.dumps(error))
            except Exception:
                answer["error"] = RuntimeError(answer["trace"])
    answer["warnings"] = [str(each.message) for each in caught if issubclass(each.category, CmrcnetWarning)]
    return answer


def _end_with_parent() -> None:
    """End this worker when its parent has ended, however that came."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(_PATIENCE_S)
    os._exit(128 + signal.SIGTERM)
