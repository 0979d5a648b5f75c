"""Run tasks in worker processes: of this machine, or of a Ray cluster.

A worker calls `setup` once and the function that it returns for each task, so that a model or a cohort is loaded once a
worker. Both are pickled. Local workers are spawned, so that no state of this process (threads, GPU, random generators)
is copied into them; an interrupt ends them, and when this process is killed they end by themselves. Ray workers are
actors: one that is lost with its node is replaced, and its task is run again by another.
"""

from __future__ import annotations

import logging
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
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cmrcnet.errors import BadOption, CmrcnetWarning, MissingExtra, WorkerDied

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue

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
"""Time between two looks at local workers that do not answer."""
_PATIENCE_S = 5.0
"""Time that a terminated worker gets to remove its temporary folders."""
_ENDED_BY_US = (0, None, -signal.SIGTERM, 128 + signal.SIGTERM)


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
    WorkerDied
        A local worker ended without a result. On Ray that is the result of the one task whose worker was lost `TRIES`
        times.
    """
    if engine == "local":
        found = _run_locally(tasks, setup, count, name_of)
    else:
        found = _run_on_ray(tasks, setup, count, name_of, engine)
    for task, answer in found:
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


# --- this machine ----------------------------------------------------------------------------------------------------


def _run_locally(
    tasks: Iterable[Any], setup: Setup, count: int, name_of: Callable[[Any], str]
) -> Iterator[tuple[Any, _Answer]]:
    context = multiprocessing.get_context("spawn")
    started = context.SimpleQueue()
    before = set(multiprocessing.active_children())
    payload = bytes(ForkingPickler.dumps(setup))  # here, where a failure is an error and not a dead worker
    pool = ProcessPoolExecutor(count, context, _start_worker, (payload, log.getEffectiveLevel(), started))
    waiting, running = iter(tasks), dict[Future, Any]()
    processes: set[Any] = set()
    complete = False
    try:
        while True:
            for task in islice(waiting, count - len(running)):
                running[pool.submit(_run_task, task, name_of(task))] = task
            processes |= set(multiprocessing.active_children()) - before
            if not running:
                break
            done = wait(running, _LOOK_S, FIRST_COMPLETED).done
            if not done and _dead(processes):  # the pool does not watch a worker that it starts while it waits
                raise BrokenProcessPool
            for future in done:
                yield running.pop(future), future.result()
        complete = True
    except BrokenProcessPool:
        dead = _dead(processes)
        _end(processes)
        pool.shutdown(wait=True, cancel_futures=True)  # it joins the processes, so that their exit codes are known
        names = {}
        while not started.empty():
            names |= [started.get()]
        dead = dead or _dead(processes) or list(processes)
        raise WorkerDied(names.get(dead[0].pid, "a task"), dead[0].exitcode) from None
    finally:
        pool.shutdown(wait=complete, cancel_futures=True)
        _end(processes)


def _dead(processes: Iterable[Any]) -> list[Any]:
    """Those that have ended, and not by us."""
    return [process for process in processes if process.exitcode not in _ENDED_BY_US]


def _end(processes: Iterable[Any]) -> None:
    for process in processes:
        if process.is_alive():
            process.terminate()
    for process in processes:
        process.join(_PATIENCE_S)
        if process.is_alive():
            process.kill()
            process.join()


_run: Callable[[Any], Any]
_started: SimpleQueue


def _start_worker(payload: bytes, level: int, started: SimpleQueue) -> None:
    global _run, _started
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that temporary folders are removed
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.getLogger("cmrcnet").setLevel(max(level, logging.WARNING))
    sys.path.append(str(Path.cwd()))  # a method of the user's own may lie there
    _run, _started = _set_up(lambda: ForkingPickler.loads(payload)()), started


def _run_task(task: Any, name: str) -> _Answer:
    _started.put((os.getpid(), name))
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


def _run_on_ray(
    tasks: Iterable[Any], setup: Setup, count: int, name_of: Callable[[Any], str], engine: str
) -> Iterator[tuple[Any, _Answer]]:
    ray = connect_ray(engine)
    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= count else 0
    kind, shared = ray.remote(num_cpus=1, num_gpus=gpus)(_RayWorker), ray.put(setup)
    waiting = iter(tasks)
    again: list[tuple[Any, int]] = []  # tasks whose worker was lost, and how often they were begun
    idle: list[Any] = []
    starting: dict[Future, Any] = {}
    running: dict[Future, tuple[Any, Any, int]] = {}
    failed = 0  # starts in succession

    def start() -> None:
        actor = kind.remote(shared, log.getEffectiveLevel())
        starting[actor.ready.remote().future()] = actor  # it may wait for room in the cluster

    try:
        for _ in range(count):
            start()
        while True:
            while idle:
                task, tries = again.pop() if again else (next(waiting, _NONE), 0)
                if task is _NONE:
                    break
                actor = idle.pop()
                running[actor.run.remote(task).future()] = actor, task, tries + 1
            if not running and idle and not again:
                break
            for future in wait([*starting, *running], return_when=FIRST_COMPLETED).done:
                if future in starting:
                    actor = starting.pop(future)
                    problem = future.exception()
                    failed = 0 if problem is None else failed + 1
                    if problem is None:
                        idle.append(actor)
                    elif failed < TRIES * count:  # its node was lost meanwhile
                        start()
                    else:
                        why = str(problem).strip().splitlines()[-1]
                        raise BadOption("engine-workers", engine, f"a cluster whose nodes can start a worker ({why})")
                    continue
                actor, task, tries = running.pop(future)
                try:
                    answer = future.result()
                except ray.exceptions.RayActorError:
                    start()
                    if tries < TRIES:
                        again.append((task, tries))
                        log.warning("warning: the worker of %s was lost; it is run again", name_of(task))
                        continue
                    answer = _Answer(WorkerDied(name_of(task), f"lost {TRIES} times"))
                else:
                    idle.append(actor)
                yield task, answer
    finally:
        for actor in [*idle, *starting.values(), *(actor for actor, _, _ in running.values())]:
            ray.kill(actor)
