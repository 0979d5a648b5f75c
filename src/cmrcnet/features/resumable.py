"""Features of a slide's locations, filled chunk by chunk, in memory or in a folder where a killed run continues.

The folder holds ``features.bin``, float32 of shape (layers, locations, width), ``chunks.bin``, one number a layer and
chunk (0: missing; else 2^32 plus the CRC-32 of its bytes), and ``features.json`` (format, name, shape). A chunk counts
as done only when its bytes are on the disk, and the bytes of every done chunk are checked when the folder is opened:
no chunk is computed twice, and none is missing.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from cmrcnet.storage.atomic import reserve, translate_os_errors

FORMAT = 2
CHUNK = 256
"""Locations whose patches are read, encoded and stored together: a killed run repeats at most so many. With dense
features the locations of a tile are."""
_DONE = 1 << 32


def chunk_slices(count: int) -> Iterator[slice]:
    """The chunks of `count` locations, in order; the last may be shorter."""
    for start in range(0, count, CHUNK):
        yield slice(start, min(start + CHUNK, count))


class ResumableFeatures:
    """An array (locations, layers, width) whose chunks are stored as soon as they are done.

    Parameters
    ----------
    shape : tuple of int
        (layers, locations, width).
    name : str
        Name of what the features depend on. A folder with features of another name or shape starts anew.
    folder : Path, optional
        Created if needed; in memory when left out.
    chunk_of : array, shape (layers, locations), optional
        The chunk of each location, numbers from 0; runs of 256 locations when left out.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        name: str = "",
        folder: Path | None = None,
        chunk_of: np.ndarray | None = None,
    ) -> None:
        self.shape = shape
        self._chunk_of = np.broadcast_to(np.arange(shape[1]) // CHUNK, shape[:2]) if chunk_of is None else chunk_of
        self._marks = np.zeros((shape[0], int(self._chunk_of.max(initial=-1)) + 1), np.uint64)
        self._on_disk = folder is not None
        if folder is None:
            self._values = np.zeros(shape, np.float32)
            return
        self._file, self._journal = folder / "features.bin", folder / "chunks.bin"
        facts, size = {"format": FORMAT, "name": name, "shape": list(shape)}, 4 * int(np.prod(shape))
        with translate_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            marks = self._stored_marks(folder / "features.json", facts, size)
            if marks is not None:
                self._marks = marks
            else:
                (folder / "features.json").unlink(missing_ok=True)
                self._file.unlink(missing_ok=True)
                reserve(self._file, size)
                self._marks.tofile(self._journal)
                (folder / "features.json").write_text(json.dumps(facts), encoding="utf-8")
        self._values = np.memmap(self._file, np.float32, "r", shape=shape)
        for layer, its in enumerate(self._chunk_of):
            order = np.argsort(its, kind="stable")
            ends = np.searchsorted(its[order], np.arange(self._marks.shape[1] + 1))
            for chunk in np.flatnonzero(self._marks[layer]):
                body = self._values[layer, order[ends[chunk] : ends[chunk + 1]]]
                if int(self._marks[layer, chunk]) != _DONE | zlib.crc32(body.data):
                    self._marks[layer, chunk] = 0

    @property
    def done(self) -> np.ndarray:
        """Which chunks are stored: (layers, chunks) bool."""
        return self._marks != 0

    def has(self, rows: slice | np.ndarray, layer: int = 0) -> bool:
        """Whether a chunk is stored; `rows` as in `keep`."""
        return bool(self._marks[layer, self._number(rows, layer)])

    def keep(self, rows: slice | np.ndarray, values: np.ndarray, layer: int = 0) -> None:
        """Store the features (locations, width) of one layer of a chunk; `rows` are its locations, in order."""
        body = np.ascontiguousarray(values, np.float32)
        number = self._number(rows, layer)
        if self._on_disk:
            with translate_os_errors(self._file.parent):
                _, locations, width = self.shape
                indices = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
                starts = np.flatnonzero(np.diff(indices, prepend=-2) != 1)
                offsets = (4 * width * (layer * locations + indices[starts])).tolist()
                _write_at(self._file, zip(offsets, np.split(body, starts[1:]), strict=True))
                mark = np.array([_DONE | zlib.crc32(body.data)], np.uint64)
                _write_at(self._journal, [(8 * (layer * self._marks.shape[1] + number), mark)])
        else:
            self._values[layer, rows] = body
        self._marks[layer, number] = _DONE

    def _number(self, rows: slice | np.ndarray, layer: int) -> int:
        return int(self._chunk_of[layer, rows.start if isinstance(rows, slice) else rows[0]])

    def values(self) -> np.ndarray:
        """All features, (locations, layers, width) float32; mapped from the folder."""
        return self._values.transpose(1, 0, 2)

    def _stored_marks(self, description: Path, facts: dict, size: int) -> np.ndarray | None:
        """The marks of a folder that holds features of this name and shape."""
        try:
            if not description.is_file() or description.read_bytes() != json.dumps(facts).encode():
                return None
            marks = np.fromfile(self._journal, np.uint64)
            if marks.size != self._marks.size or self._file.stat().st_size != size:
                return None
        except OSError:
            return None
        return marks.reshape(self._marks.shape)


def _write_at(path: Path, pieces: Iterable[tuple[int, np.ndarray]]) -> None:
    """Write each piece at its position of an existing file, and flush them to the disk."""
    with path.open("r+b") as file:
        for offset, values in pieces:
            file.seek(offset)
            file.write(np.ascontiguousarray(values).data)
        file.flush()
        os.fsync(file.fileno())
