"""Features of a slide's locations, filled part by part, in memory or in a folder where a killed run goes on.

The folder holds ``features.bin``, float32 of shape (layers, locations, width), ``parts.bin``, one number a part and
layer
(0: missing; else 2^32 plus the CRC-32 of its bytes), and ``features.json`` (format, name, shape). A part counts as done
only when its bytes are on the disk, and whoever opens the folder checks the bytes of every part that is called done: no
part is computed twice, and none is missing.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cmrcnet.storage.atomic import reserve, translate_os_errors

FORMAT = 1
CHUNK = 256
"""Locations that are read, encoded and stored together: a killed run repeats at most so many."""
_DONE = 1 << 32


def chunk_slices(count: int) -> Iterator[slice]:
    """The chunks of `count` locations, in order; the last may be shorter."""
    for start in range(0, count, CHUNK):
        yield slice(start, min(start + CHUNK, count))


class ResumableFeatures:
    """An array (locations, layers, width) of which each part is kept when it is done.

    Parameters
    ----------
    shape : tuple of int
        (layers, locations, width).
    name : str
        Name of what the features are. A folder that holds those of another name, or of another shape, starts anew.
    folder : Path, optional
        Made when it is not there; in memory when left out.
    """

    def __init__(self, shape: tuple[int, int, int], name: str = "", folder: Path | None = None) -> None:
        self.shape, self._folder = shape, folder
        self._parts = np.zeros((shape[0], -(-shape[1] // CHUNK)), np.uint64)
        if folder is None:
            self._values = np.zeros(shape, np.float32)
            return
        facts = {"format": FORMAT, "name": name, "shape": list(shape)}
        with translate_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if not self._goes_on(facts):
                self._begin(facts)
        self._values = np.memmap(self._file, np.float32, "r", shape=shape)
        self._forget_damaged()

    @property
    def done(self) -> np.ndarray:
        """Which parts are kept: (layers, parts) bool."""
        return self._parts != 0

    def has(self, rows: slice, layer: int = 0) -> bool:
        """Whether a part is kept; `rows` as in `keep`."""
        return bool(self._parts[layer, rows.start // CHUNK])

    def keep(self, rows: slice, values: np.ndarray, layer: int = 0) -> None:
        """Keep the features of one part.

        Parameters
        ----------
        rows : slice
            Starts at a multiple of `CHUNK` and ends at the next one, or with the locations.
        values : array, shape (locations of the part, width)
        layer : int

        Raises
        ------
        NoSpace, Unwritable
        """
        body = np.ascontiguousarray(values, np.float32)
        if self._folder is None:
            self._values[layer, rows] = body
        else:
            with translate_os_errors(self._folder):
                _, locations, width = self.shape
                _write_at(self._file, 4 * width * (layer * locations + rows.start), body)
                number = layer * self._parts.shape[1] + rows.start // CHUNK
                mark = np.array([_DONE | zlib.crc32(body.data)], np.uint64)
                _write_at(self._journal, 8 * number, mark)
        self._parts[layer, rows.start // CHUNK] = _DONE

    def values(self) -> np.ndarray:
        """All features, (locations, layers, width) float32; mapped from the folder."""
        return self._values.transpose(1, 0, 2)

    @property
    def _file(self) -> Path:
        return self._folder / "features.bin"

    @property
    def _journal(self) -> Path:
        return self._folder / "parts.bin"

    def _goes_on(self, facts: dict) -> bool:
        """Whether the folder holds features of this name and shape."""
        try:
            if json.loads((self._folder / "features.json").read_text(encoding="utf-8")) != facts:
                return False
            parts = np.fromfile(self._journal, np.uint64)
            if parts.size != self._parts.size or self._file.stat().st_size != 4 * int(np.prod(self.shape)):
                return False
        except (OSError, ValueError):
            return False
        self._parts = parts.reshape(self._parts.shape)
        return True

    def _begin(self, facts: dict) -> None:
        (self._folder / "features.json").unlink(missing_ok=True)
        self._file.unlink(missing_ok=True)
        reserve(self._file, 4 * int(np.prod(self.shape)))
        self._parts.tofile(self._journal)
        (self._folder / "features.json").write_text(json.dumps(facts), encoding="utf-8")

    def _forget_damaged(self) -> None:
        for layer, part in zip(*np.nonzero(self._parts), strict=True):
            body = np.ascontiguousarray(self._values[layer, part * CHUNK : (part + 1) * CHUNK])
            if int(self._parts[layer, part]) != _DONE | zlib.crc32(body.data):
                self._parts[layer, part] = 0


def _write_at(path: Path, offset: int, values: np.ndarray) -> None:
    """Write at a location of an existing file, and see it on the disk."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(values.data)
        file.flush()
        os.fsync(file.fileno())
