"""Run tasks in several processes. Every process works on a bench of its own; parts come back as they are finished.

Workers are spawned, so that no state of this process (threads, GPU, random generators) is copied into them. An error
travels back with its sentence and stops the others; an interrupt ends them; when this process is killed they end by
themselves. What they have finished is in the run folder by then.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterable, Iterator
from multiprocessing import connection, get_context, parent_process
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmrcnet.errors import CmrcnetWarning, WorkerDied
from cmrcnet.evaluation.protocol.experiment import Task
from cmrcnet.evaluation.protocol.fold_runner import Bench
from cmrcnet.evaluation.protocol.run_folder import Part
from cmrcnet.evaluation.protocol.threads import limited_threads, threads_of_task
from cmrcnet.retrieval.store import remove_temporary_stores
from cmrcnet.slides.section import Cohort

if TYPE_CHECKING:
    from cmrcnet.storage.cache import TokenCache

log = logging.getLogger("cmrcnet")

_PATIENCE_S = 5.0
"""A worker that was asked to end gets this long to put away what it holds."""


def run_here(tasks: Iterable[Task], bench: Bench, workers: int = 1) -> Iterator[tuple[Task, Part]]:
    """Run tasks one after another in this process, with the threads that a worker would have."""
    for task in tasks:
        with limited_threads(threads_of_task(task.config, workers)):
            part = bench.run(task)
        yield task, part


def sendable(cohort: Cohort, cache: TokenCache | None, methods: Iterable[object]) -> bytes | None:
    """Cohort and cache as bytes that a worker can read; None where they, or a method, cannot be sent.

    Parameters
    ----------
    cohort : Cohort
    cache : TokenCache or None
    methods : iterable
        Looked at only.
    """
    try:
        ForkingPickler.dumps(list(methods))
        return bytes(ForkingPickler.dumps((cohort, cache)))
    except Exception as error:  # what cannot be sent says so in many ways, and one process does as well
        log.info("One process is used: %s", str(error).splitlines()[0])
        return None


def run_in_workers(tasks: Iterable[Task], luggage: bytes, workers: int) -> Iterator[tuple[Task, Part]]:
    """Run tasks in spawned workers, in the order given; two that must not meet (`Task.alone`) wait for each other.

    Parameters
    ----------
    tasks : iterable of Task
        Taken one by one when a worker is free.
    luggage : bytes
        From `sendable`.
    workers : int

    Yields
    ------
    task, part
        As they are finished.

    Raises
    ------
    WorkerDied
    """
    line = _Line(tasks)
    crew: list[_Worker] = []
    try:
        for _ in range(workers):
            task = line.next()
            if task is None:
                break
            crew.append(_Worker(luggage, workers))
            crew[-1].start(task)
        while busy := [worker for worker in crew if worker.task is not None]:
            for worker in _ready(busy):
                task, part = worker.answer()
                line.done(task)
                yield task, part
            for worker in crew:
                if worker.task is None and (following := line.next()) is not None:
                    worker.start(following)
    finally:
        for worker in crew:
            worker.end()
        for worker in crew:
            worker.gone()


class _Line:
    """Tasks that wait, in order; those that may not meet a running one stand aside."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = iter(tasks)
        self._aside: list[Task] = []
        self._running: list[str] = []

    def next(self) -> Task | None:
        """The first task that may run now; None when there is none."""
        for task in self._aside:
            if task.alone not in self._running:
                self._aside.remove(task)
                return self._started(task)
        for task in self._tasks:
            if task.alone is None or task.alone not in self._running:
                return self._started(task)
            self._aside.append(task)
        return None

    def done(self, task: Task) -> None:
        """The task no longer keeps others from running."""
        if task.alone is not None:
            self._running.remove(task.alone)

    def _started(self, task: Task) -> Task:
        if task.alone is not None:
            self._running.append(task.alone)
        return task


class _Worker:
    """One process and the line to it."""

    def __init__(self, luggage: bytes, workers: int) -> None:
        context = get_context("spawn")
        self.line, theirs = context.Pipe()
        self.process = context.Process(
            target=_work, args=(theirs, workers, log.getEffectiveLevel()), name="cmrcnet worker", daemon=False
        )
        self.process.start()
        theirs.close()
        self.task: Task | None = None
        self._luggage: bytes | None = luggage

    def start(self, task: Task) -> None:
        """Give it something to do."""
        self.task = task
        try:
            if self._luggage is not None:
                self.line.send_bytes(self._luggage)
                self._luggage = None
            self.line.send(task)
        except OSError:  # it is gone; `answer` says so
            pass

    def answer(self) -> tuple[Task, Part]:
        """What it made of its task."""
        task = self.task
        assert task is not None
        try:
            kind, said, told = self.line.recv()
        except (EOFError, OSError):
            self.process.join(_PATIENCE_S)
            raise WorkerDied(task.name, self.process.exitcode) from None
        self.task = None
        for sentence in told:
            warnings.warn(sentence, CmrcnetWarning, stacklevel=2)
        if kind == "failed":
            error, where = said
            error.add_note(where)
            raise error
        return task, said

    def end(self) -> None:
        """Ask it to end."""
        self.line.close()
        if self.task is not None and self.process.is_alive():
            self.process.terminate()

    def gone(self) -> None:
        """Wait until it has ended, and end it when it does not."""
        self.process.join(_PATIENCE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _ready(busy: list[_Worker]) -> list[_Worker]:
    """Workers that have answered, or died."""
    lines = connection.wait([worker.line for worker in busy])
    return [worker for worker in busy if worker.line in lines]


def _work(line: connection.Connection, workers: int, level: int) -> None:
    """What a worker does: unpack, then answer task after task until the line is closed.

    It leaves by `os._exit`, once its frames are unwound and what they held is put away: taking down an interpreter that
    has loaded torch takes seconds.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # temporary folders are put away on the way out
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.getLogger("cmrcnet").setLevel(max(level, logging.WARNING))
    sys.path.append(str(Path.cwd()))  # a method of the user's own may lie there
    try:
        _answer_all(line, workers)
    except (EOFError, BrokenPipeError):
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    remove_temporary_stores()  # of the bank that is kept for the next task
    os._exit(status)


def _answer_all(line: connection.Connection, workers: int) -> None:
    cohort, cache = line.recv()
    bench = Bench(cohort, cache, share=workers)
    while True:
        line.send(_answer(bench, line.recv(), workers))


def _answer(bench: Bench, task: Task, workers: int) -> tuple[str, Any, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", CmrcnetWarning)
        try:
            with limited_threads(threads_of_task(task.config, workers)):
                kind, said = "done", bench.run(task)
        except Exception as error:
            kind, said = "failed", (_sendable_error(error), f"In a worker process:\n{traceback.format_exc()}")
    return kind, said, [str(each.message) for each in caught if issubclass(each.category, CmrcnetWarning)]


def _sendable_error(error: Exception) -> Exception:
    """The error itself where it can be sent and unpacked again, else its words."""
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:
        return RuntimeError(traceback.format_exc())
    return error


def _end_with_parent() -> None:
    """End this worker when its parent has ended, however that came."""
    parent = parent_process()
    if parent is None:
        return
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(_PATIENCE_S)
    os._exit(143)
