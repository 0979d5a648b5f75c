"""Read HDF5 files in a child process first: damage that makes the HDF5 library crash ends the child only.

A flipped bit in the metadata of a file can make the library leave its memory. The child opens the file, follows every
group and reads every attribute, all text and the other datasets up to `READ_BYTES` each. It is started once, serves
many files, and is started anew after it has died.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cmrcnet.errors import BadInput
from cmrcnet.storage.child_process import ChildProcess, serve_lines

MOST_SECONDS, BYTES_A_SECOND = 15.0, 10 << 20
"""A file that takes longer to read than this, and its size at this speed, is broken."""
READ_BYTES = 16 << 20
MOST_TEXTS = 50_000_000
"""Most entries of a dataset of texts that are read."""

_process = ChildProcess("from cmrcnet.readers import h5_probe, sparse_files; h5_probe.serve(sparse_files.h5_fault)")
atexit.register(_process.end)
_lock = threading.Lock()
_known_sound: set[tuple[str, int, int]] = set()
"""Files (path, size, time of last change) that the child has read."""


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
        try:
            _process.ask(json.dumps(identity[0]), MOST_SECONDS + state.st_size / BYTES_A_SECOND)
        except ChildProcessError as error:
            why = f"the process that tried to read it {error}; the file is damaged"
            raise BadInput(path, what, why) from error
        _known_sound.add(identity)


def serve(check: Callable[[Any, bool], object]) -> None:
    """In the child: answer each path when its file has been read."""

    def answer(line: str) -> str:
        with contextlib.suppress(Exception):  # any error that Python sees is met again, and named, by the caller
            _read_all(Path(json.loads(line)), check)
        return "done"

    serve_lines(answer)


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
