"""Writes a prediction table to disk chunk by chunk, in memory that does not depend on the locations, and seals it.

The file is an AnnData .h5ad. Its large arrays are allocated with the first chunk of locations, at full size and in HDF5
chunks of 256 locations x 128 genes, so that a map of one gene reads a small part of the file. They are not compressed:
averages of many spots are dense, and gzip or LZF make them only a tenth to a fifth smaller at a tenth of the speed
or less (`benchmarks/table_on_disk.py`).

After that, writing a chunk changes only its own rows, so that the temporary file of a killed run is valid up to the
last finished chunk, which a journal beside it records.

By the seal a table that was damaged or changed is refused, and not read on. It lies behind the HDF5 content, where HDF5
and AnnData do not look: what another program writes again has none, and is read as it is. A table of up to `WHOLE`
bytes is checked whole before HDF5 opens it. A larger one is checked where it is read: its small parts at once, and of
the large arrays each block of 256 locations x 128 genes with the CRC-32 of its numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cmrcnet.errors import Damaged
from cmrcnet.storage.atomic import atomic_file, reserve, translate_os_errors
from cmrcnet.storage.hashing import crc_of

if TYPE_CHECKING:
    import h5py
    from anndata import AnnData

_STREAMED = "streamed"
"""Group that holds columns of `obs` until the end."""
MARK = b"cmrcseal"
WHOLE = 1 << 28
"""Bytes up to which a table is checked whole, which takes a fraction of a second."""
BLOCK = (256, 128)
"""Locations x columns of a block; the HDF5 chunks of the large arrays."""
_TAIL = 8 + len(MARK)


class TableFile:
    """A prediction table of `locations` rows that is being written to a temporary .h5ad; `finish` completes it.

    A file that an earlier run left is continued if it bears the same `name`, the identity of the prediction, else
    started again.
    """

    def __init__(self, tmp: Path, locations: int, name: str = "") -> None:
        self.path, self.locations, self._name = tmp, locations, name
        self._journal = tmp.with_suffix(".written")
        self._file: Any = None
        self.written = self._rows_on_disk()

    def write(
        self,
        rows: slice,
        mean: np.ndarray | None,
        *,
        layers: Mapping[str, np.ndarray],
        obsm: Mapping[str, np.ndarray] | None = None,
        obs: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Write the next rows, from `written` on.

        X (None: there is none) and `layers` are (locations, genes), `obsm` (locations, columns); `obs` holds further
        columns (locations,), the same ones in every call. Raises `NoSpace` or `Unwritable`.
        """
        if rows.start != self.written:
            raise RuntimeError(f"rows {rows.start} follow {self.written}")
        arrays = {} if mean is None else {"X": mean}
        for group, values in (("layers", layers), ("obsm", obsm or {}), (_STREAMED, obs or {})):
            arrays |= {f"{group}/{key}": value for key, value in values.items()}
        with translate_os_errors(self.path):
            if self.written == 0:
                self._lay_out(arrays)
            file = self._opened()
            arrays = {key: np.asarray(value, file[key].dtype) for key, value in arrays.items()}
            for key, value in arrays.items():
                file[key][rows] = value
            file.flush()
            _to_disk(self.path)
            self._note(rows.stop, crc_of(arrays))
        self.written = rows.stop

    def neighbour_rows(self) -> np.ndarray:
        """Unique bank rows among the neighbours, sorted; empty without neighbours."""
        found = np.empty(0, np.int64)
        if "obsm/neighbour_ids" not in self._opened():
            return found
        stored = self._opened()["obsm/neighbour_ids"]
        for start in range(0, self.locations, 1 << 14):
            found = np.union1d(found, stored[start : start + (1 << 14)])
        return found

    def finish(self, frame: AnnData) -> None:
        """Write the rest of the table, a frame without X and layers (`genes.table.prediction_table`).

        The file is then complete and can be renamed. Raises `NoSpace` or `Unwritable`.
        """
        from anndata.io import write_elem

        with translate_os_errors(self.path):
            file = self._opened()
            self._note(0)  # the layout changes now: a run killed from here on starts again
            for name in file.get(_STREAMED, {}):
                frame.obs[name] = file[f"{_STREAMED}/{name}"][:]
            if _STREAMED in file:
                del file[_STREAMED]
            for name, values in (("obs", frame.obs), ("var", frame.var), ("uns", dict(frame.uns))):
                write_elem(file, name, values)
            for name, values in frame.obsm.items():
                write_elem(file, f"obsm/{name}", values)
            for name, values in (("varm", dict(frame.varm)), ("obsp", {}), ("varp", {})):
                write_elem(file, name, values)
            self.close()
            _to_disk(self.path)
            seal_table(self.path)
            self._journal.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> Any:
        if self._file is None:
            import h5py

            self._file = h5py.File(self.path, "r+", locking=False)
        return self._file

    def _lay_out(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Allocate every array at its full size without writing it."""
        import h5py

        self.close()
        with h5py.File(self.path, "w", locking=False) as file:
            _encode(file, "anndata", "0.1.0")
            for name in ("layers", "obsm"):
                _encode(file.create_group(name), "dict", "0.1.0")
            for key, value in arrays.items():
                _encode(_empty(file, key, (self.locations, *value.shape[1:]), value.dtype), "array", "0.2.0")
        reserve(self.path, self.path.stat().st_size)

    def _note(self, rows: int, crc: int | None = None) -> None:
        """Add a line for rows on the disk, with the CRC-32 of their values; without one, start a new journal."""
        self._lines = [] if crc is None else [*self._lines, (rows, crc)]
        lines = [f"{self._name} {stop} {each}\n" for stop, each in self._lines]
        with atomic_file(self._journal) as tmp:
            tmp.write_text("".join(lines), encoding="utf-8")

    def _rows_on_disk(self) -> int:
        """Rows finished by an earlier run that are on the disk as they were written; what follows is done again."""
        self._lines: list[tuple[int, int]] = []
        start = 0
        with contextlib.suppress(OSError, ValueError, KeyError, RuntimeError):
            for line in self._journal.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []:
                name, stop, crc = line.rsplit(" ", 2)
                rows = slice(start, int(stop))
                if name != self._name or not start < rows.stop <= self.locations:
                    break
                file = self._opened()
                groups = [group for group in ("layers", "obsm", _STREAMED) if group in file]
                keys = [f"{group}/{key}" for group in groups for key in file[group]] + ["X"] * ("X" in file)
                if crc_of({key: file[key][rows] for key in keys}) != int(crc):
                    break
                self._lines.append((rows.stop, int(crc)))
                start = rows.stop
        if start == 0:
            self.close()
        return start


def _empty(file: h5py.File, key: str, shape: tuple[int, ...], dtype: np.dtype) -> h5py.Dataset:
    """Create a dataset whose chunks are allocated but not filled."""
    import h5py

    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    chunks = tuple(min(most, size) for most, size in zip(BLOCK, shape, strict=False))
    return file.create_dataset(
        key, shape, dtype, chunks=chunks if len(shape) == 2 else None, dcpl=layout, fill_time="never"
    )


def _encode(thing: h5py.HLObject, kind: str, version: str) -> None:
    """Set the attributes by which AnnData reads it."""
    thing.attrs["encoding-type"], thing.attrs["encoding-version"] = kind, version


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


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

    def check_rest(self, file: h5py.File) -> None:
        """Compare everything but the large arrays: `Damaged`."""
        if self._seal is not None and "blocks" in self._seal and _rest(file) != self._seal["rest"]:
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
    if "X" in file:
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
