"""A slide: pixels that can be read by region, and how large each is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np

from cmrcnet.errors import BadOption, ScaleError, ShapeMismatch
from cmrcnet.storage.hashing import fingerprint

WHITE = 255


@runtime_checkable
class Slide(Protocol):
    """What every slide can do. It holds no expression: truth cannot leak through it.

    Attributes
    ----------
    name : str
    width_px, height_px : int
        Size at level 0.
    mpp : float or None
        Micrometres per level-0 pixel; None when nobody has said.
    downsamples : tuple of float
        Downsampling of each pyramid level, level 0 first: ``(1.0, 4.0, 16.0)``.
    """

    name: str
    width_px: int
    height_px: int
    mpp: float | None
    downsamples: tuple[float, ...]

    def read(self, x: int, y: int, width: int, height: int, level: int = 0) -> np.ndarray:
        """Read a region as RGB.

        Parameters
        ----------
        x, y : int
            Top-left corner in LEVEL-0 pixels; may lie outside the slide.
        width, height : int
            Size in pixels of `level`; what lies outside the slide is white.
        level : int

        Returns
        -------
        numpy.ndarray, shape (height, width, 3), uint8
        """
        ...

    def fingerprint(self) -> str:
        """Name of the slide's content, the same in every run."""
        ...


def known_scale(slide: Slide) -> float:
    """The slide's micrometres per pixel, or `ScaleError` with the hint."""
    if slide.mpp is None:
        raise ScaleError.unknown(slide.name)
    return float(slide.mpp)


class ArraySlide:
    """A slide whose pixels are in memory (or in a memory-mapped array).

    Parameters
    ----------
    pixels : array, shape (height, width, 3), uint8
    mpp : float or None
    name : str
    """

    def __init__(self, pixels: np.ndarray, mpp: float | None = None, name: str = "array") -> None:
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            raise ShapeMismatch("pixels", want="(height, width, 3) uint8", got=f"{pixels.shape} {pixels.dtype}")
        self.name = name
        self.mpp = mpp
        self.height_px, self.width_px = pixels.shape[:2]
        self.downsamples = (1.0,)
        self._pixels = pixels

    def read(self, x: int, y: int, width: int, height: int, level: int = 0) -> np.ndarray:
        """See `Slide.read`; an array has level 0 only."""
        if level != 0:
            raise BadOption("level", level, want=f"0, the only level of {self.name}")
        return crop_white(self._pixels, x, y, width, height)

    def fingerprint(self) -> str:
        """Name of the pixels."""
        return fingerprint(np.ascontiguousarray(self._pixels))


def crop_white(pixels: np.ndarray, x: int, y: int, width: int, height: int) -> np.ndarray:
    """Cut (height, width, 3) from `pixels` at x, y; white where there are no pixels. Always a copy."""
    rows, columns = pixels.shape[:2]

    def inside(left: int, top: int, width: int, height: int) -> np.ndarray:
        return np.array(pixels[top : top + height, left : left + width])

    return white_outside(columns, rows, x, y, width, height, inside)


def white_outside(
    columns: int, rows: int, x: int, y: int, width: int, height: int, inside: Callable[[int, int, int, int], np.ndarray]
) -> np.ndarray:
    """Read a region that may reach over the edge of a picture of `columns` x `rows`.

    Parameters
    ----------
    inside : function (left, top, width, height) -> (height, width, 3) uint8
        Called at most once, for the part that lies on the picture.
    """
    if width < 1 or height < 1:
        raise BadOption("width, height", (width, height), want="a region of at least 1 x 1 px")
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + width, columns), min(y + height, rows)
    if (left, top, right, bottom) == (x, y, x + width, y + height):
        return inside(left, top, width, height)
    region = np.full((height, width, 3), WHITE, np.uint8)
    if right > left and bottom > top:
        region[top - y : bottom - y, left - x : right - x] = inside(left, top, right - left, bottom - top)
    return region
