"""The seal of a prediction table on disk: by it a table that was damaged or changed is refused, and not read on.

The seal lies behind the HDF5 content, where HDF5 and AnnData do not look: what another program writes again has none,
and is read as it is. A table of up to `WHOLE` bytes is checked whole before HDF5 opens it. A larger one is checked
where it is read: its small parts at once, and of the large arrays each block of 256 locations x 128 genes
with the CRC-32 of its numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cmrcnet.errors import Damaged

if TYPE_CHECKING:
    import h5py

MARK = b"cmrcseal"
WHOLE = 1 << 28
"""Bytes up to which a table is checked whole, which takes a fraction of a second."""
BLOCK = (256, 128)
"""Locations x columns of a block; the HDF5 chunks of the large arrays."""
_TAIL = 8 + len(MARK)


def seal_table(path: Path) -> None:
    """Append the seal to a finished, closed table that has none.

    Raises
    ------
    OSError
    """
    import h5py

    size = path.stat().st_size
    seal: dict[str, Any] = {"format": 1, "bytes": size}
    if size <= WHOLE:
        seal["sha256"] = _digest(path, size)
    else:
        with h5py.File(path, "r", locking=False) as content:
            file: Any = content
            seal["blocks"] = {key: _sums(file[key], slice(0, len(file[key]))).tolist() for key in _large(file)}
            seal["rest"] = _rest(file)
    body = json.dumps(seal).encode()
    body += hashlib.sha256(body).digest()
    with path.open("ab") as file:
        file.write(body + len(body).to_bytes(8, "little") + MARK)
        file.flush()
        os.fsync(file.fileno())


class TableSeal:
    """The seal of a table, read and compared.

    Parameters
    ----------
    path : Path
        The table; a small one is compared whole now.

    Raises
    ------
    Damaged
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seal = _read(path) if path.is_file() else None
        self._checked: set[tuple[str, int, int]] = set()
        if self._seal is None:
            return
        if "sha256" in self._seal and _digest(path, self._seal["bytes"]) != self._seal["sha256"]:
            raise _changed(path)

    @property
    def is_large(self) -> bool:
        """Whether the table is still to be compared, where it is read."""
        return self._seal is not None and "blocks" in self._seal

    def check_rest(self, file: h5py.File) -> None:
        """Compare everything but the large arrays: `Damaged`."""
        if self._seal is not None and self.is_large and _rest(file) != self._seal["rest"]:
            raise _changed(self.path)

    def check(self, file: Any, key: str, rows: slice = slice(None), column: int | None = None) -> None:
        """Compare the blocks of a large array that some rows, or one column, lie in: `Damaged`."""
        if self._seal is None or key not in self._seal.get("blocks", {}):
            return
        wanted = np.asarray(self._seal["blocks"][key], np.uint32)
        start, stop, _ = rows.indices(len(file[key]))
        columns = range(wanted.shape[1]) if column is None else [column // BLOCK[1]]
        for block in range(start // BLOCK[0], -(-stop // BLOCK[0])):
            missing = [each for each in columns if (key, block, each) not in self._checked]
            if not missing:
                continue
            inside = slice(missing[0] * BLOCK[1], (missing[-1] + 1) * BLOCK[1])
            found = _sums(file[key], slice(block * BLOCK[0], (block + 1) * BLOCK[0]), inside)[0]
            if (found[[each - missing[0] for each in missing]] != wanted[block, missing]).any():
                raise _changed(self.path)
            self._checked |= {(key, block, each) for each in missing}

    def check_all(self, file: h5py.File) -> None:
        """Compare all of it: `Damaged`."""
        self.check_rest(file)
        for key in [] if self._seal is None else self._seal.get("blocks", {}):
            self.check(file, key)


def _read(path: Path) -> dict[str, Any] | None:
    """Content of the seal; None where there is none."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        if end < _TAIL:
            return None
        file.seek(-_TAIL, os.SEEK_END)
        tail = file.read()
        length = int.from_bytes(tail[:8], "little")
        if tail[8:] != MARK:
            return None
        if not 32 < length <= end - _TAIL:
            raise _changed(path)
        file.seek(end - _TAIL - length)
        body = file.read(length)
    if hashlib.sha256(body[:-32]).digest() != body[-32:]:
        raise _changed(path)
    seal = json.loads(body[:-32])
    if seal["bytes"] != end - _TAIL - length:
        raise _changed(path)
    return seal


def _changed(path: Path) -> Damaged:
    return Damaged(path, "it is not what cmrcnet wrote", "predict again, or take it from a copy")


def _digest(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (piece := file.read(min(size, 1 << 22))):
            digest.update(piece)
            size -= len(piece)
    return digest.hexdigest()


def _large(file: Any) -> Iterator[str]:
    """Names of the arrays with two dimensions that are written in blocks."""
    yield "X"
    for group in ("layers", "obsm"):
        yield from (f"{group}/{name}" for name in file[group] if getattr(file[group][name], "chunks", None))


def _sums(data: h5py.Dataset, rows: slice, columns: slice = slice(None)) -> np.ndarray:
    """CRC-32 of each block of some rows and columns: (blocks down, blocks across) uint32."""
    found = []
    for start in range(rows.start, min(rows.stop, len(data)), BLOCK[0]):
        values = data[start : start + BLOCK[0], columns]
        pieces = [values[:, left : left + BLOCK[1]] for left in range(0, values.shape[1], BLOCK[1])]
        found.append([zlib.crc32(np.ascontiguousarray(piece).data) for piece in pieces])
    return np.array(found, np.uint32)


def _rest(file: h5py.File) -> str:
    """Fingerprint of all names, attributes, types and shapes, and of the values of everything but the large arrays."""
    import h5py

    digest, large = hashlib.sha256(), set(_large(file))

    def visit(name: str, thing: h5py.HLObject) -> None:
        attributes = sorted((key, str(value)) for key, value in thing.attrs.items())
        digest.update(repr((name, type(thing).__name__, attributes)).encode())
        if isinstance(thing, h5py.Dataset):
            digest.update(repr((str(thing.dtype), thing.shape)).encode())
            if name not in large:
                values = np.asarray(thing[()])
                digest.update(repr(values.tolist()).encode() if values.dtype.hasobject else values.tobytes())

    visit("", file)
    file.visititems(visit)
    return digest.hexdigest()
