"""A child process that tries files whose reading may crash a process, and is started anew after it died."""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

MEMORY_BYTES = 16 << 30
"""Address space of a child, where the system can limit it."""
PATIENCE = 10.0
"""Seconds of the clock that a child gets for each second of processor time: a busy machine or a slow disk is no fault
of a file. Where the system cannot limit processor time, the clock alone counts."""


class ChildProcess:
    """A Python process that runs `serve_files`. The first file starts it, it serves many, and it ends with this one.

    Parameters
    ----------
    code : str
        What it runs, with the search path of modules of this process.
    """

    def __init__(self, code: str) -> None:
        self.code = code
        self._child: subprocess.Popen[str] | None = None
        self._owner = 0
        self._lock = threading.Lock()
        self._sound: set[tuple[str, int, int]] = set()  # path, size, time of last change
        atexit.register(self.end)

    def try_file(self, path: Path, seconds: float) -> str:
        """What the child says against a file; "" for a sound one, which is tried once.

        Raises
        ------
        ChildProcessError
            The child ended without an answer, or took more processor time than `seconds`: a phrase that goes on
            "the process ...".
        OSError
        """
        state = path.stat()
        identity = (str(path.resolve()), state.st_size, state.st_mtime_ns)
        with self._lock:
            if identity in self._sound:
                return ""
            sentence = json.loads(self._ask(path, seconds))
            if not sentence:
                self._sound.add(identity)
            return sentence

    def _ask(self, path: Path, seconds: float) -> str:
        """Answer to one file."""
        if self._child is None or self._owner != os.getpid():  # the child of a process is not that of its fork
            code = f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); {self.code}"
            self._child = subprocess.Popen(
                [sys.executable, "-c", code, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="ascii",
            )
            self._owner = os.getpid()
        child, answer = self._child, ""
        timer = threading.Timer(PATIENCE * seconds, child.kill)
        timer.start()
        try:
            with contextlib.suppress(OSError):  # it died before
                print(json.dumps([str(path), seconds]), file=child.stdin, flush=True)
                answer = child.stdout.readline() if child.stdout else ""
        finally:
            late = not timer.is_alive()
            timer.cancel()
        if not answer:
            self.end()
            if late:
                raise ChildProcessError(f"took longer than {PATIENCE * seconds:.0f} s")
            if child.returncode == -getattr(signal, "SIGXCPU", 0):
                raise ChildProcessError(f"took longer than {seconds:.0f} s of processor time")
            raise ChildProcessError(f"ended with code {child.returncode}")
        return answer

    def end(self) -> None:
        """End the child, if this process has one."""
        child, self._child = self._child, None
        if child is not None and self._owner == os.getpid():
            child.kill()
            child.communicate()


def serve_files(fault: Callable[[Path], str]) -> None:
    """In the child: answer each path on standard input by its fault; what libraries print goes nowhere."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    _limit("RLIMIT_AS", MEMORY_BYTES, MEMORY_BYTES)
    for line in sys.stdin:
        path, seconds = json.loads(line)
        _limit("RLIMIT_CPU", math.ceil(time.process_time() + seconds))
        print(json.dumps(fault(Path(path))), file=answers, flush=True)


def _limit(name: str, soft: int, hard: int | None = None) -> None:
    """Limit this process; a hard limit that is left out stays. Windows has no limits, others may refuse one."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        which = getattr(resource, name)
        resource.setrlimit(which, (soft, resource.getrlimit(which)[1] if hard is None else hard))
