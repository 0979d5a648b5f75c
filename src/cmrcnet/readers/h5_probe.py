"""Read HDF5 files in a child process first: damage that makes the HDF5 library crash ends the child only.

A flipped bit in the metadata of a file can make the library leave its memory. The child opens the file, follows every
group and reads every attribute, all text and the other datasets up to `READ_BYTES` each. It is started once, serves
many files, and is started anew after it has died.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cmrcnet.errors import BadInput

MOST_SECONDS, BYTES_A_SECOND = 15.0, 10 << 20
"""A file that takes longer to read than this, and its size at this speed, is broken."""
MEMORY_BYTES = 16 << 30
"""Address space of the child, where the system can limit it."""
READ_BYTES = 16 << 20
MOST_TEXTS = 50_000_000
"""Most entries of a dataset of texts that are read."""

_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from cmrcnet.readers import h5_probe, sparse_files; "
    "h5_probe.serve(sparse_files.h5_fault)"
)
_children: list[subprocess.Popen[str]] = []
_lock = threading.Lock()
_known_sound: set[tuple[str, int, int]] = set()
"""Files (path, size, time of last change) that the child has read."""


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_children.clear)  # the child of this process is not that of its fork


def probe_h5(path: Path, what: str) -> None:
    """Raise `BadInput` when reading an HDF5 file ends a child process; other faults are left to the caller.

    Parameters
    ----------
    what : str
        Kind of file, for the error.
    """
    state = path.stat()
    identity = (str(path.resolve()), state.st_size, state.st_mtime_ns)
    with _lock:
        if identity in _known_sound:
            return
        if not _children:
            arguments = [sys.executable, "-c", _CHILD, json.dumps(sys.path)]
            quiet: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            _children.append(subprocess.Popen(arguments, **quiet, text=True, encoding="ascii"))
            atexit.register(_end)
        child, answer = _children[0], ""
        timer = threading.Timer(MOST_SECONDS + state.st_size / BYTES_A_SECOND, child.kill)
        timer.start()
        try:
            with contextlib.suppress(OSError):  # it died before
                print(json.dumps(identity[0]), file=child.stdin, flush=True)
                answer = child.stdout.readline() if child.stdout else ""
        finally:
            timer.cancel()
        if not answer:
            _end()
            why = f"the process that tried to read it ended with code {child.returncode}; the file is damaged"
            raise BadInput(path, what, why)
        _known_sound.add(identity)


def _end() -> None:
    """End the child, if there is one."""
    while _children:
        child = _children.pop()
        child.kill()
        child.communicate()


def serve(check: Callable[[Any, bool], object]) -> None:
    """Read each file whose path comes on standard input, and answer when that is done."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no limits, others may refuse this one
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for line in sys.stdin:
        with contextlib.suppress(Exception):  # any error that Python sees is met again, and named, by the caller
            _read_all(Path(json.loads(line)), check)
        print("done", file=answers, flush=True)


def _read_all(path: Path, check: Callable[[Any, bool], object]) -> None:
    """Read attributes, text and small datasets of every group."""
    import h5py
    from h5py import h5o  # pyright: ignore[reportAttributeAccessIssue]  (compiled)

    with h5py.File(path, "r", locking=False) as file:
        with contextlib.suppress(Exception):
            check(file, True)  # the calls that follow in the caller, in their order
        waiting: list[Any] = [file]
        seen = set()
        while waiting:
            group = waiting.pop()
            for found in (group, *(group[key] for key in group if _is_hard(group, key))):
                with contextlib.suppress(Exception):
                    _ = dict(found.attrs)
                if hasattr(found, "nbytes"):
                    with contextlib.suppress(Exception):
                        if found.nbytes <= READ_BYTES or (found.dtype.kind == "O" and found.size <= MOST_TEXTS):
                            _ = found[()]
                elif found is not group:
                    address = h5o.get_info(found.id).addr
                    if address not in seen:  # a group may hold itself
                        seen.add(address)
                        waiting.append(found)


def _is_hard(group, key: str) -> bool:
    import h5py

    return isinstance(group.get(key, getlink=True), h5py.HardLink)
