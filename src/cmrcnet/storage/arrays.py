"""Arrays on disk: one in one file, written whole or not at all; and checks of a sparse matrix from any file.

The file is a plain ``.npy`` (any numpy reads it) with a 12-byte tail: the bytes ``cmrcnet2`` and a CRC-32 of the file's
name, its header and its numbers. A file that was truncated, changed, renamed or made for another shape is reported as
absent, so that it is computed again.

SciPy trusts the indices of a sparse matrix: one that points outside makes it read or write foreign memory.
"""

from __future__ import annotations

import math
import os
import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from cmrcnet.errors import BadInput, MissingInput
from cmrcnet.storage.atomic import atomic_file

MARK = b"cmrcnet2"
TAIL = len(MARK) + 4
_CHECKED_AT_A_TIME = 1 << 24
_MAPPED_FROM = 1 << 16
"""Bytes from which an array is mapped; a smaller one is read, because each map holds a file handle."""
_HEADER = re.compile(
    rb"\{'descr': '([<>|][biufc]\d{1,2})', 'fortran_order': False, 'shape': \(((?:\d{1,18}, ?)*(?:\d{1,18})?)\), \} *\n"
)
"""What numpy writes for our arrays; anything else is damage, and is not parsed as Python."""

_known_whole: set[tuple[str, int, int, int]] = set()
"""Files (path, size, time of last change, inode) whose CRC-32 this process has already checked."""

LARGEST_SHAPE = np.iinfo(np.int32).max
"""Most rows or columns of a sparse matrix."""


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
        rows = 0
        with tmp.open("wb") as file:
            head = BytesIO()
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
            np.lib.format.write_array_header_1_0(head, header)
            crc = zlib.crc32(head.getvalue(), zlib.crc32(path.name.encode()))
            file.write(head.getvalue())
            for block in blocks:
                body = np.ascontiguousarray(block, dtype).reshape(-1).view(np.uint8).data
                file.write(body)
                crc = zlib.crc32(body, crc)
                rows += len(block)
            if rows != shape[0]:
                raise RuntimeError(f"{path.name}: {rows} rows written, {shape[0]} promised")
            file.write(MARK + struct.pack("<I", crc))
        # Mapped before it is renamed: from then on another process may remove it, which a map survives (except on
        # Windows, where a mapped file can be neither renamed nor removed).
        written = open_array(tmp, shape, dtype, name=path.name) if os.name == "posix" else None
    if isinstance(written, np.memmap):
        written.filename = str(path.absolute())  # where it lies from now on
    if written is None:
        written = open_array(path, shape, dtype)
    if written is None:
        raise BadInput(path, "the array that was just written to it", "the file does not hold what was written")
    return written


def open_array(
    path: Path, shape: tuple[int, ...] | None, dtype: np.dtype, *, check: bool = True, name: str = ""
) -> np.ndarray | None:
    """Map an array, or None when the file is absent, damaged, or of another name, shape or type.

    Parameters
    ----------
    shape : tuple of int or None
        Expected shape; None takes any.
    check : bool
        Read everything once and compare the checksum; without it only the length is checked.
    name : str
        Name under which it was written; the path's own when left out.

    Returns
    -------
    numpy.ndarray or None
        Read-only; mapped from the file, but for a small one, which is read.

    Raises
    ------
    OSError
        The operating system refuses to open a file that is there: no permission, too many open files.
    """
    if not path.is_file():  # absent, or a pipe, which would wait for ever
        return None
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            head, found, kind = _read_header(file)
            start = len(head)
            body = math.prod(found) * kind.itemsize
            if kind != np.dtype(dtype) or (shape is not None and found != tuple(shape)):
                return None
            if status.st_size != start + body + TAIL:
                return None
            identity = (str(path), status.st_size, status.st_mtime_ns, status.st_ino)
            if check and identity not in _known_whole:
                if not _is_whole(file, zlib.crc32(head, zlib.crc32((name or path.name).encode())), start, body):
                    return None
                _known_whole.add(identity)
            if body < _MAPPED_FROM:
                file.seek(start)
                return np.frombuffer(file.read(body), kind).reshape(found) if body else np.empty(found, kind)
            return np.memmap(file, kind, mode="r", offset=start, shape=found)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):  # ValueError: not our header
        return None


@dataclass(frozen=True)
class MappedArray:
    """Where a mapped array lies: what another process of this machine is sent in place of its numbers."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @classmethod
    def of(cls, array: np.ndarray) -> MappedArray | np.ndarray:
        """The place of an array that `open_array` has mapped; any other array itself."""
        file = array if isinstance(array, np.memmap) else array.base
        if not isinstance(file, np.memmap) or file.shape != array.shape or file.dtype != array.dtype:
            return array
        return cls(str(file.filename), array.shape, array.dtype)

    def open(self) -> np.ndarray:
        """Map it again.

        Raises
        ------
        MissingInput
            It was removed meanwhile.
        """
        found = open_array(Path(self.path), self.shape, self.dtype, check=False)
        if found is None:
            raise MissingInput(self.path, "The array", "it was removed while it was used; run again")
        return found


def _read_header(file: BinaryIO) -> tuple[bytes, tuple[int, ...], np.dtype]:
    """The bytes before the numbers, and the shape and type that they state: ValueError where we did not write them."""
    head = file.read(10)
    if head[:8] != b"\x93NUMPY\x01\x00" or len(head) < 10:
        raise ValueError("no header of ours")
    text = file.read(struct.unpack("<H", head[8:])[0])
    found = _HEADER.fullmatch(text)
    if found is None:
        raise ValueError("no header of ours")
    shape = tuple(int(each) for each in found[2].decode().split(",") if each.strip())
    try:
        return head + text, shape, np.dtype(found[1].decode())
    except TypeError as error:
        raise ValueError("no header of ours") from error


def _is_whole(file: BinaryIO, crc: int, start: int, body: int) -> bool:
    """Whether the checksum of the numbers is right, behind that of the name and the header."""
    file.seek(start)
    left = body
    while left > 0:
        piece = file.read(min(left, _CHECKED_AT_A_TIME))
        if not piece:
            return False
        crc, left = zlib.crc32(piece, crc), left - len(piece)
    return file.read() == MARK + struct.pack("<I", crc)


def sparse_fault(data, indices, indptr, shape: tuple[int, ...], *, by_row: bool) -> str | None:
    """Why three arrays make no compressed sparse matrix, or None.

    Parameters
    ----------
    data, indices, indptr : array
        NumPy arrays or memory maps, or HDF5 datasets, which are read in blocks.
    shape : tuple of int
        Rows, columns.
    by_row : bool
        Rows are compressed (CSR), not columns (CSC).

    Examples
    --------
    >>> sparse_fault(np.ones(2), np.array([0, 7]), np.array([0, 1, 2]), (2, 3), by_row=True)
    'an index is 7, outside 0 to 2'
    """
    if len(shape) != 2 or not all(0 <= n <= LARGEST_SHAPE for n in shape):
        return f"its shape is {tuple(shape)}; wanted two numbers from 0 to {LARGEST_SHAPE:,}"
    major, minor = shape if by_row else shape[::-1]
    for name, array, kinds in (("data", data, "biuf"), ("indices", indices, "iu"), ("indptr", indptr, "iu")):
        if len(array.shape) != 1 or array.dtype.kind not in kinds:
            return f"{name} has shape {array.shape} and type {array.dtype}; wanted a list of numbers"
    if indptr.shape[0] != major + 1:
        return f"indptr has {indptr.shape[0]} entries; wanted {major + 1}"
    if data.shape != indices.shape:
        return f"there are {data.shape[0]} values and {indices.shape[0]} indices"
    ends = np.asarray(indptr[:])
    if int(ends[0]) != 0 or int(ends[-1]) != indices.shape[0]:
        return f"indptr runs from {ends[0]} to {ends[-1]}; wanted 0 to {indices.shape[0]}"
    if (ends[1:] < ends[:-1]).any():
        return "indptr does not ascend"
    first, step = 0, 1 << 22
    while first < major:  # some rows (columns) at a time, `step` entries or one row
        last = max(first + 1, int(np.searchsorted(ends, ends[first] + step, side="right")) - 1)
        block = np.asarray(indices[int(ends[first]) : int(ends[last])])
        for extreme in (int(block.min()), int(block.max())) if len(block) else ():
            if not 0 <= extreme < minor:
                return f"an index is {extreme}, outside 0 to {minor - 1}"
        row = np.repeat(np.arange(last - first), np.diff(ends[first : last + 1]).astype(np.int64))
        place = row * minor + block.astype(np.int64)
        if (place[1:] <= place[:-1]).any():
            place.sort()
            if repeats := int((place[1:] == place[:-1]).sum()):
                return f"{repeats:,} entries repeat a row and column"
        first = last
    return None


Stored = TypeVar("Stored")


def arrays_of(prefix: str, part: Any) -> dict[str, np.ndarray]:
    """Arrays among the fields of a dataclass, named ``prefix.field`` to be stored together with those of others."""
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    return {f"{prefix}.{name}": value for name, value in values.items() if isinstance(value, np.ndarray)}


def arrays_under(prefix: str, arrays: Mapping[str, Stored]) -> dict[str, Stored]:
    """Inverse of `arrays_of`: the arrays (or tensors) under a prefix by the names of their fields."""
    start = f"{prefix}."
    return {name.removeprefix(start): values for name, values in arrays.items() if name.startswith(start)}
