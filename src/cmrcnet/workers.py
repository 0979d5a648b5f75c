"""Run tasks in worker processes: of this machine, or of a Ray cluster.

A worker calls `setup` once and the function that it returns for each task, so that a model or a cohort is loaded once a
worker. Both are pickled. Local workers are spawned, so that no state of this process (threads, GPU, random generators)
is copied into them; an interrupt ends them, and when this process is killed they end by themselves. Ray workers are
actors. A worker that is lost is replaced, and costs the others nothing: on Ray, where most often its node was lost, its
task is run again by another; on this machine, where most often its task ended it, the task is given up. It is
one thing: one loop over the tasks, whatever runs them.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import multiprocessing.reduction
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from cmrcnet.errors import BadOption, CmrcnetError, CmrcnetWarning, MissingExtra, WorkerDied

log = logging.getLogger("cmrcnet")

ForkingPickler: Any = multiprocessing.reduction.ForkingPickler

Workers = int | Literal["auto"]
Setup = Callable[[], Callable[[Any], Any]]

WORKER_BYTES = 1_500_000_000
"""Memory that one worker is expected to need: torch, the counts of a cohort, one method."""
TRIES = 3
"""Times that a task is begun whose Ray worker is lost before it is given up."""
_NONE = object()
_LOOK_S = 1.0
"""Longest wait without a look at signals: before Python 3.14 a wait on Windows does not see Ctrl-C."""
_PATIENCE_S = 5.0
"""Time that a terminated worker gets to remove its temporary folders."""


@dataclass(frozen=True)
class WorkerOptions:
    """Where tasks run.

    Examples
    --------
    >>> WorkerOptions("local", 4).count(tasks=2)
    2
    >>> WorkerOptions("rey").engine
    Traceback (most recent call last):
    ...
    cmrcnet.errors.BadOption: engine-workers is 'rey'; wanted local, ray, or ray://HOST:PORT.
    """

    engine: str = "local"
    """local: processes of this machine. ray: a Ray cluster that this machine belongs to, or else one of this machine
    alone, GPUs included. ray://HOST:PORT: a cluster elsewhere."""
    workers: Workers = 1
    """Number of workers. auto: one for each core, limited by half of the memory; on Ray one for each GPU of the
    cluster, or for each core where it has none."""

    def __post_init__(self) -> None:
        if self.engine not in ("local", "ray") and not self.engine.startswith("ray://"):
            raise BadOption("engine-workers", self.engine, "local, ray, or ray://HOST:PORT")
        if self.workers != "auto" and not (type(self.workers) is int and self.workers >= 1):
            raise BadOption("workers", self.workers, want="a number of workers, 1 or more, or auto")

    def count(self, tasks: int) -> int:
        """Number of workers, not more than tasks, and at least one."""
        if self.workers != "auto":
            wanted = self.workers
        elif self.engine != "local":
            resources = connect_ray(self.engine).cluster_resources()
            wanted = int(resources.get("GPU", 0) or resources.get("CPU", 1))
        else:
            try:
                memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
            except (AttributeError, ValueError, OSError):
                memory = 8 * WORKER_BYTES
            wanted = min(cores(), memory // WORKER_BYTES)
        return max(1, min(wanted, tasks))


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def why_not_picklable(*values: object) -> str:
    """Why values cannot be sent to a worker; empty where they can."""
    try:
        ForkingPickler.dumps(values)
    except Exception as error:  # pickle has many ways to fail
        return str(error).splitlines()[0]
    return ""


def run_in_workers(
    tasks: Iterable[Any], setup: Setup, *, count: int, engine: str = "local", name_of: Callable[[Any], str] = str
) -> Iterator[tuple[Any, Any]]:
    """Run tasks in workers, and yield each with its result, or with the error that it raised, when it is finished.

    The result of a task that ended its worker is a `WorkerDied`; the others go on. On Ray the task is begun `TRIES`
    times before.

    Parameters
    ----------
    tasks : iterable
        Taken one by one when a worker is free.
    setup : callable
        Called once in each worker; what it returns is called with a task. A warning of the package is issued again
        here.
    count : int
        Workers, from `WorkerOptions.count`.
    engine : str
        As in `WorkerOptions`.
    name_of : callable
        Name of a task for error messages.

    Raises
    ------
    WorkerDied, BadOption
        No worker can be started: on this machine, or on Ray.
    """
    kind = _LocalWorkers(setup) if engine == "local" else _RayWorkers(setup, count, engine)
    for task, answer in _run_tasks(tasks, kind, count, name_of):
        for sentence in answer.warnings:
            warnings.warn(sentence, CmrcnetWarning, stacklevel=2)
        if answer.trace:
            answer.result.add_note(answer.trace)
        yield task, answer.result


@dataclass(frozen=True)
class _Answer:
    """What a worker returns for a task; an error is a result."""

    result: Any
    warnings: list[str] = field(default_factory=list)
    trace: str = ""
    """Of an error, which loses its own on the way."""


def _set_up(setup: Setup) -> Callable[[Any], Any]:
    """What `setup` returns; or, where it fails, what raises its error for every task."""
    try:
        return setup()
    except Exception as error:
        problem = error

        def fail(_task: Any) -> Any:
            raise problem

        return fail


def _answer(run: Callable[[Any], Any], task: Any) -> _Answer:
    trace = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", CmrcnetWarning)
        try:
            result = run(task)
        except Exception as error:
            trace = f"In a worker process:\n{traceback.format_exc()}"
            result = RuntimeError(str(error)) if why_not_picklable(error) else error
    return _Answer(result, [str(each.message) for each in caught if issubclass(each.category, CmrcnetWarning)], trace)


class _Workers(Protocol):
    """One kind of worker."""

    tries: int
    """Times that a task is begun whose worker is lost before it is given up."""

    def start(self) -> tuple[Any, Future]:
        """Start a worker; the future is done when it can be given tasks."""
        ...

    def begin(self, worker: Any, task: Any) -> Future[_Answer]:
        """Give a worker a task; `BrokenProcessPool` where it has ended meanwhile."""
        ...

    def why_lost(self, worker: Any, error: BaseException) -> str:
        """Say how a worker was lost, and end what is left of it; empty where the error is not about the worker."""
        ...

    def no_start(self, why: str) -> CmrcnetError:
        """The error of a run for which no worker can be started."""
        ...

    def end(self, workers: list[Any], *, at_once: bool) -> None:
        """End workers, also in the middle of a task, or after the one that each is at."""
        ...


def _run_tasks(
    tasks: Iterable[Any], kind: _Workers, count: int, name_of: Callable[[Any], str]
) -> Iterator[tuple[Any, _Answer]]:
    waiting = iter(tasks)
    again: list[tuple[Any, int]] = []  # tasks whose worker was lost, and how often they were begun
    idle: list[Any] = []
    starting: dict[Future, Any] = {}
    running: dict[Future, tuple[Any, Any, int]] = {}
    failed = 0  # starts in succession
    complete = False

    def start() -> None:
        worker, ready = kind.start()
        starting[ready] = worker

    try:
        for _ in range(count):
            start()
        while True:
            while idle:
                task, tries = again.pop() if again else (next(waiting, _NONE), 0)
                if task is _NONE:
                    break
                worker = idle.pop()
                try:
                    running[kind.begin(worker, task)] = worker, task, tries + 1
                except BrokenProcessPool:
                    again.append((task, tries))
                    start()
            if not running and idle and not again:
                break
            for future in wait([*starting, *running], _LOOK_S, FIRST_COMPLETED).done:
                problem = future.exception()
                if future in starting:
                    worker = starting.pop(future)
                    failed = 0 if problem is None else failed + 1
                    if problem is None:
                        idle.append(worker)
                        continue
                    why = kind.why_lost(worker, problem) or str(problem)
                    if failed < TRIES * count:
                        start()
                    elif not (idle or running or starting):
                        raise kind.no_start(why)
                    continue
                worker, task, tries = running.pop(future)
                if problem is None:
                    idle.append(worker)
                    yield task, future.result()
                elif not (why := kind.why_lost(worker, problem)):
                    raise problem
                else:
                    start()
                    if tries < kind.tries:
                        again.append((task, tries))
                        log.warning("warning: the worker of %s was lost (%s); it is run again", name_of(task), why)
                    else:
                        how = why if tries == 1 else f"lost {tries} times; {why}"
                        yield task, _Answer(WorkerDied(name_of(task), how))
        complete = True
    finally:
        kind.end([*starting.values(), *(worker for worker, _, _ in running.values())], at_once=True)
        kind.end(idle, at_once=not complete)


# --- this machine ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _LocalWorker:
    pool: ProcessPoolExecutor
    """Of one process: where several share a pool, one that dies takes the others with it."""
    process: Any
    """That process; None where it ended before it could be looked up."""


class _LocalWorkers:
    """Processes of this machine."""

    tries = 1

    def __init__(self, setup: Setup) -> None:
        self._context = multiprocessing.get_context("spawn")
        # pickled here, where a failure is an error and not a dead worker
        self._arguments = bytes(ForkingPickler.dumps(setup)), log.getEffectiveLevel()

    def start(self) -> tuple[_LocalWorker, Future]:
        before = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(1, self._context, _start_worker, self._arguments)
        ready = pool.submit(_set_up_worker)
        process = next(iter(set(multiprocessing.active_children()) - before), None)
        return _LocalWorker(pool, process), ready

    def begin(self, worker: _LocalWorker, task: Any) -> Future[_Answer]:
        return worker.pool.submit(_run_task, task)

    def why_lost(self, worker: _LocalWorker, error: BaseException) -> str:
        if not isinstance(error, BrokenProcessPool | SystemExit):
            return ""
        worker.pool.shutdown(wait=True)  # it joins the process, so that its exit code is known
        if isinstance(error, SystemExit):  # raised by the task, or by the handler of a signal from outside
            return f"exit code {error.args[0] if error.args else 0}"  # pickling by some libraries drops `code`
        return f"exit code {getattr(worker.process, 'exitcode', None)}"

    def no_start(self, why: str) -> WorkerDied:
        return WorkerDied("the first task", why)

    def end(self, workers: list[_LocalWorker], *, at_once: bool) -> None:
        for worker in workers:
            worker.pool.shutdown(wait=False, cancel_futures=True)
        processes = [worker.process for worker in workers if worker.process is not None]
        for process in processes:
            if at_once and process.is_alive():
                process.terminate()
        for process in processes:
            process.join(_PATIENCE_S if at_once else None)
            if process.is_alive():
                process.kill()
                process.join()


_payload: bytes
_run: Callable[[Any], Any]


def _start_worker(payload: bytes, level: int) -> None:
    global _payload
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that temporary folders are removed
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.getLogger("cmrcnet").setLevel(max(level, logging.WARNING))
    sys.path.append(str(Path.cwd()))  # a method of the user's own may lie there
    _payload = payload


def _set_up_worker() -> None:
    global _run
    _run = _set_up(lambda: ForkingPickler.loads(_payload)())


def _run_task(task: Any) -> _Answer:
    return _answer(_run, task)


def _end_with_parent() -> None:
    """End this worker when its parent has ended, however that came."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(_PATIENCE_S)
    os._exit(128 + signal.SIGTERM)


# --- Ray -------------------------------------------------------------------------------------------------------------


def connect_ray(engine: str) -> Any:
    """Return Ray, connected to the cluster of an engine (see `WorkerOptions`).

    Raises
    ------
    MissingExtra, BadOption
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtra("ray", f"--engine-workers {engine}", "'cmrcnet[cluster]'") from error
    if not ray.is_initialized():
        address = None if engine == "ray" else engine
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that is started here
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.WARNING, include_dashboard=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            why = str(error).strip().splitlines()[-1]
            raise BadOption("engine-workers", engine, f"the address of a running Ray cluster ({why})") from error
    return ray


class _RayWorker:
    """An actor: what `setup` returned, and its answers."""

    def __init__(self, setup: Setup, level: int) -> None:
        logging.getLogger("cmrcnet").setLevel(max(level, logging.WARNING))
        self._run = _set_up(setup)

    def ready(self) -> None:
        """Return when the actor has started."""

    def run(self, task: Any) -> _Answer:
        """Run one task."""
        return _answer(self._run, task)


class _RayWorkers:
    """Actors of a Ray cluster."""

    tries = TRIES

    def __init__(self, setup: Setup, count: int, engine: str) -> None:
        self._ray, self._engine = connect_ray(engine), engine
        gpus = gpus_each(int(self._ray.cluster_resources().get("GPU", 0)), count)
        self._kind, self._setup = self._ray.remote(num_cpus=1, num_gpus=gpus)(_RayWorker), self._ray.put(setup)

    def start(self) -> tuple[Any, Future]:
        actor = self._kind.remote(self._setup, log.getEffectiveLevel())
        return actor, actor.ready.remote().future()  # it may wait for room in the cluster

    def begin(self, worker: Any, task: Any) -> Future[_Answer]:
        return worker.run.remote(task).future()

    def why_lost(self, worker: Any, error: BaseException) -> str:
        if not is_loss(error):
            return ""
        self.end([worker], at_once=True)  # one that is cut off may be alive, and must not go on beside the next
        return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"

    def no_start(self, why: str) -> BadOption:
        return BadOption("engine-workers", self._engine, f"a cluster whose nodes can start a worker ({why})")

    def end(self, workers: list[Any], *, at_once: bool) -> None:
        for actor in workers:
            self._ray.kill(actor)


def is_loss(error: BaseException) -> bool:
    """Whether an error of Ray tells that an actor, its node or its answer was lost; not one that the task raised."""
    from ray.exceptions import RayError, RayTaskError, TaskCancelledError

    return isinstance(error, RayError) and not isinstance(error, RayTaskError | TaskCancelledError)


def gpus_each(gpus: int, workers: int) -> float:
    """Number of GPUs that each worker asks for, so that all workers fit: 1, or the part of one that it shares.

    An actor that asks for none sees none, also on a machine that has some. Ray counts in steps of 0.0001.

    Examples
    --------
    >>> gpus_each(4, 3), gpus_each(4, 6), gpus_each(1, 6), gpus_each(0, 6)
    (1, 0.5, 0.1666, 0)
    """
    if gpus == 0 or workers <= gpus:
        return min(gpus, 1)
    return math.floor(10_000 / math.ceil(workers / gpus)) / 10_000
