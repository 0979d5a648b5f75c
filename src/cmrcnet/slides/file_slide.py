"""A slide in a file: one place for levels, edges, fingerprint and closing, whatever the format behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from cmrcnet.errors import BadOption
from cmrcnet.slides.file_fingerprint import file_fingerprint
from cmrcnet.slides.slide import white_outside


class PixelSource(Protocol):
    """What a file format must offer. Making one reads the header only; the first `region` opens the pixels.

    It can be pickled (a worker process opens the file anew) and used again after `close`.

    Attributes
    ----------
    sizes : tuple of (width, height)
        In pixels, of each pyramid level, largest first.
    mpp : float or None
        What the file itself says of level 0.
    """

    sizes: tuple[tuple[int, int], ...]
    mpp: float | None

    def region(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """Pixels (height, width, 3) of a region in pixels of `level` that lies wholly on it, or `BadInput`."""
        ...

    def close(self) -> None:
        """Let go of the file and of every pixel."""
        ...


class FileSlide:
    """A slide read from a file by region; see `cmrcnet.slides.slide.Slide`.

    Use it in a ``with`` block, or call `close`, to free its pixels early. A closed slide can be read again: it is
    opened anew. It can be pickled.

    Parameters
    ----------
    path : Path
    source : PixelSource
    mpp : float or None
    name : str
    """

    def __init__(self, path: Path, source: PixelSource, mpp: float | None, name: str) -> None:
        self.path = path
        self.name = name
        self.mpp = mpp
        self.width_px, self.height_px = source.sizes[0]
        self.downsamples = tuple(_downsample(source.sizes[0], size) for size in source.sizes)
        self._source = source
        self._fingerprint: str | None = None

    def read(self, x: int, y: int, width: int, height: int, level: int = 0) -> np.ndarray:
        """See `Slide.read`. On a level above 0 the region starts at its pixel nearest to x, y.

        Raises
        ------
        BadInput
            The pixels cannot be decoded.
        """
        if not 0 <= level < len(self.downsamples):
            raise BadOption("level", level, want=f"a level of {self.name}, 0 to {len(self.downsamples) - 1}")
        step = self.downsamples[level]
        left, top = int(np.floor(x / step + 0.5)), int(np.floor(y / step + 0.5))

        def inside(left: int, top: int, width: int, height: int) -> np.ndarray:
            return self._source.region(level, left, top, width, height)

        return white_outside(*self._source.sizes[level], left, top, width, height, inside)

    def fingerprint(self) -> str:
        """Name of the file's content (see `file_fingerprint`), worked out once."""
        if self._fingerprint is None:
            self._fingerprint = file_fingerprint(self.path)
        return self._fingerprint

    def close(self) -> None:
        """Free the pixels and the file."""
        self._source.close()

    def __enter__(self) -> FileSlide:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        scale = "unknown" if self.mpp is None else f"{self.mpp:g}"
        return f"<slide {self.name}: {self.width_px} x {self.height_px} px, {scale} um per px, {self.path}>"


def _downsample(full: tuple[int, int], size: tuple[int, int]) -> float:
    """How many level-0 pixels one pixel of a level spans.

    A level of 4,650 px under 9,301 px was made by halving: 2, not 2.0002. So a whole number is taken where it
    explains both sides, and else the mean of the two quotients (as OpenSlide does).
    """
    mean = (full[0] / size[0] + full[1] / size[1]) / 2
    whole = round(mean)
    explained = all(small in (large // whole, -(-large // whole)) for large, small in zip(full, size, strict=True))
    return float(whole) if explained else mean
