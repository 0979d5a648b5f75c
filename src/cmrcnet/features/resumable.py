"""Features of a slide's locations, filled chunk by chunk, in memory or in a folder where a killed run continues.

The folder holds ``features.bin``, float32 of shape (layers, locations, width), ``chunks.bin``, one number a chunk and
layer (0: missing; else 2^32 plus the CRC-32 of its bytes), and ``features.json`` (format, name, shape). A chunk counts
as done only when its bytes are on the disk, and the bytes of every done chunk are checked when the folder is opened:
no chunk is computed twice, and none is missing.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cmrcnet.storage.atomic import reserve, translate_os_errors

FORMAT = 2
CHUNK = 256
"""Locations that are read, encoded and stored together: a killed run repeats at most so many."""
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
    """

    def __init__(self, shape: tuple[int, int, int], name: str = "", folder: Path | None = None) -> None:
        self.shape = shape
        self._marks = np.zeros((shape[0], -(-shape[1] // CHUNK)), np.uint64)
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
        for layer, chunk in zip(*np.nonzero(self._marks), strict=True):
            body = np.ascontiguousarray(self._values[layer, chunk * CHUNK : (chunk + 1) * CHUNK])
            if int(self._marks[layer, chunk]) != _DONE | zlib.crc32(body.data):
                self._marks[layer, chunk] = 0

    @property
    def done(self) -> np.ndarray:
        """Which chunks are stored: (layers, chunks) bool."""
        return self._marks != 0

    def has(self, rows: slice, layer: int = 0) -> bool:
        """Whether a chunk is stored; `rows` as in `keep`."""
        return bool(self._marks[layer, rows.start // CHUNK])

    def keep(self, rows: slice, values: np.ndarray, layer: int = 0) -> None:
        """Store the features (locations, width) of one layer of a chunk; `rows` is from `chunk_slices`."""
        body = np.ascontiguousarray(values, np.float32)
        number = rows.start // CHUNK
        if self._on_disk:
            with translate_os_errors(self._file.parent):
                _, locations, width = self.shape
                _write_at(self._file, 4 * width * (layer * locations + rows.start), body)
                mark = np.array([_DONE | zlib.crc32(body.data)], np.uint64)
                _write_at(self._journal, 8 * (layer * self._marks.shape[1] + number), mark)
        else:
            self._values[layer, rows] = body
        self._marks[layer, number] = _DONE

    def values(self) -> np.ndarray:
        """All features, (locations, layers, width) float32; mapped from the folder."""
        return self._values.transpose(1, 0, 2)

    def _stored_marks(self, description: Path, facts: dict, size: int) -> np.ndarray | None:
        """The marks of a folder that holds features of this name and shape."""
        try:
            if json.loads(description.read_text(encoding="utf-8")) != facts:
                return None
            marks = np.fromfile(self._journal, np.uint64)
            if marks.size != self._marks.size or self._file.stat().st_size != size:
                return None
        except (OSError, ValueError):
            return None
        return marks.reshape(self._marks.shape)


def _write_at(path: Path, offset: int, values: np.ndarray) -> None:
    """Write at a position of an existing file, and flush it to the disk."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(values.data)
        file.flush()
        os.fsync(file.fileno())
