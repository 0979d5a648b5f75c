"""One array in one file: written whole or not at all, opened as a memory map, checked for damage.

The file is a plain ``.npy`` (any numpy reads it) with a 12-byte tail: the bytes ``cmrcnet1`` and a CRC-32 of the
numbers. A file that was truncated, changed or made for another shape is reported as absent, so that it is computed
again.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cmrcnet.errors import BadInput
from cmrcnet.storage.atomic import atomic_file

_MARK = b"cmrcnet1"
_TAIL = len(_MARK) + 4
_CHECKED_AT_A_TIME = 1 << 24

_known_whole: set[tuple[str, int, int]] = set()
"""Files (path, size, time of last change) whose CRC-32 this process has already checked."""


def write_array(path: Path, shape: tuple[int, ...], dtype: np.dtype, blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Write blocks that follow each other along the first axis, and open what was written.

    Several processes may write the same file: each writes a temporary file, and the last to finish wins. An error or
    an interrupt leaves nothing behind.

    Raises
    ------
    NoSpace, Unwritable
    BadInput
        The file does not hold what was written to it.
    """
    dtype = np.dtype(dtype)
    with atomic_file(path) as tmp:
        crc, rows = 0, 0
        with tmp.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
            np.lib.format.write_array_header_1_0(file, header)
            for block in blocks:
                body = np.ascontiguousarray(block, dtype).reshape(-1).view(np.uint8).data
                file.write(body)
                crc = zlib.crc32(body, crc)
                rows += len(block)
            if rows != shape[0]:
                raise RuntimeError(f"{path.name}: {rows} rows written, {shape[0]} promised")
            file.write(_MARK + struct.pack("<I", crc))
        # Mapped before it is renamed: from then on another process may remove it, which a map survives (except on
        # Windows, where a mapped file can be neither renamed nor removed).
        written = open_array(tmp, shape, dtype) if os.name == "posix" else None
    if written is None:
        written = open_array(path, shape, dtype)
    if written is None:
        raise BadInput(path, "the array that was just written to it", "the file does not hold what was written")
    return written


def open_array(path: Path, shape: tuple[int, ...] | None, dtype: np.dtype, *, check: bool = True) -> np.ndarray | None:
    """Map an array, or None when the file is absent, damaged, or of another shape or type.

    Parameters
    ----------
    shape : tuple of int or None
        Expected shape; None takes any.
    check : bool
        Read everything once and compare the checksum; without it only the length is checked.

    Returns
    -------
    numpy.memmap (numpy.ndarray when it has no elements) or None
        Read-only.
    """
    try:
        status = path.stat()
        with path.open("rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                return None
            found, fortran, kind = np.lib.format.read_array_header_1_0(file)
            start = file.tell()
            body = math.prod(found) * kind.itemsize
            if fortran or kind != np.dtype(dtype) or (shape is not None and found != tuple(shape)):
                return None
            if status.st_size != start + body + _TAIL:
                return None
            if check and not _is_whole(file, (str(path), status.st_size, status.st_mtime_ns), start, body):
                return None
        if body == 0:
            return np.empty(found, kind)
        return np.memmap(path, kind, mode="r", offset=start, shape=found)
    except (OSError, ValueError):  # ValueError: not an .npy header
        return None


def _is_whole(file, identity: tuple[str, int, int], start: int, body: int) -> bool:
    """Whether the checksum of the numbers is right; computed once in a process."""
    if identity in _known_whole:
        return True
    file.seek(start)
    crc, left = 0, body
    while left > 0:
        piece = file.read(min(left, _CHECKED_AT_A_TIME))
        if not piece:
            return False
        crc, left = zlib.crc32(piece, crc), left - len(piece)
    whole = file.read() == _MARK + struct.pack("<I", crc)
    if whole:
        _known_whole.add(identity)
    return whole
