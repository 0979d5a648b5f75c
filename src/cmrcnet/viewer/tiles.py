"""Deep zoom: square tiles of a slide, read on demand from the pyramid level that fits, and kept for a while.

Tile (zoom, column, row) shows ``TILE_PX * step`` level-0 pixels a side, where ``step = 2 ** (deepest - zoom)``: zoom 0
is one tile that holds the whole slide, `deepest` shows its own pixels. Columns and rows count from the upper left.
"""

from __future__ import annotations

import base64
import io
import math
from collections import OrderedDict
from threading import Lock

import numpy as np

from cmrcnet.slides.patches import PixelGrid, fitting_level, thumbnail
from cmrcnet.slides.slide import WHITE, ArraySlide, Slide, known_scale

TILE_PX = 256
OVERVIEW_PX = 2048
"""Longer side, at most, of the overview that is made of a slide whose coarsest level is larger than twice that."""
MOST_READ = 16
"""Pixels of a level, per pixel of a tile and axis, that are read; beyond it the overview is shown, less sharp."""
PICTURE_PX = 2_400
"""Longer side of the picture of a slide in a saved page."""
KEPT = 1024
"""Tiles kept in memory, as JPEG: some 20 MB."""
QUALITY = 88


class SlideTiles:
    """Tiles of a slide, whose scale must be known.

    Raises
    ------
    ScaleError

    Examples
    --------
    >>> tiles = SlideTiles(ArraySlide(np.zeros((300, 500, 3), np.uint8), mpp=0.5, name="black"))
    >>> tiles.deepest, tiles.tile(1, 1, 0).shape
    (1, (256, 256, 3))
    """

    def __init__(self, slide: Slide) -> None:
        self.slide, self.mpp = slide, known_scale(slide)
        longest = max(slide.width_px, slide.height_px)
        self.deepest = max(0, math.ceil(math.log2(longest / TILE_PX)))
        coarsest = max(slide.downsamples)
        self._overview: ArraySlide | None = None
        if longest / coarsest > 2 * OVERVIEW_PX:
            step = 2 ** math.ceil(math.log2(longest / OVERVIEW_PX))
            self._overview = ArraySlide(thumbnail(slide, step), self.mpp * step, f"{slide.name}, overview")
        self._kept: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()
        self._lock = Lock()

    @property
    def width_um(self) -> float:
        """Width of the slide in micrometres."""
        return self.slide.width_px * self.mpp

    @property
    def height_um(self) -> float:
        """Height of the slide in micrometres."""
        return self.slide.height_px * self.mpp

    def tile(self, zoom: int, column: int, row: int) -> np.ndarray:
        """Pixels of a tile (TILE_PX, TILE_PX, 3) uint8; white beyond the slide."""
        step = 2 ** (self.deepest - zoom)
        source, read = self.slide, step / self.slide.downsamples[fitting_level(self.slide, step)]
        if self._overview is not None:
            coarse = known_scale(self._overview) / self.mpp
            if step >= coarse or read > MOST_READ:
                source = self._overview
        grid = PixelGrid(source, self.mpp * step, TILE_PX)
        columns, rows = range(column, column + 1), range(row, row + 1)
        return grid.picture(columns, rows, grid.read(*grid.bounds(columns, rows)))

    def jpeg(self, zoom: int, column: int, row: int) -> bytes:
        """A tile as JPEG, kept for the next time; white beyond the slide."""
        key = zoom, column, row
        side = TILE_PX * 2 ** (self.deepest - zoom)
        if column * side >= self.slide.width_px or row * side >= self.slide.height_px:
            return jpeg(np.full((TILE_PX, TILE_PX, 3), WHITE, np.uint8))
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        encoded = jpeg(self.tile(*key))
        with self._lock:
            self._kept[key] = encoded
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return encoded

    @property
    def picture_size(self) -> tuple[int, int]:
        """Width and height in pixels of `picture`."""
        step = max(1.0, max(self.slide.width_px, self.slide.height_px) / PICTURE_PX)
        return math.ceil(self.slide.width_px / step), math.ceil(self.slide.height_px / step)

    def picture(self) -> str:
        """The whole slide as the address of a JPEG, of `PICTURE_PX` pixels at most."""
        return data_uri(thumbnail(self.slide, max(1.0, max(self.slide.width_px, self.slide.height_px) / PICTURE_PX)))


def jpeg(pixels: np.ndarray, quality: int = QUALITY) -> bytes:
    """Encode RGB pixels (height, width, 3) uint8."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def data_uri(pixels: np.ndarray) -> str:
    """RGB pixels (height, width, 3) uint8 as the address of a JPEG that holds them."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg(pixels)).decode('ascii')}"
