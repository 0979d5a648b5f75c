"""Cut patches of a stated physical size around spots, and average a whole slide to a thumbnail."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.errors import BadOption, ShapeMismatch
from cmrcnet.slides.slide import PatchScale, Slide, known_scale

if TYPE_CHECKING:
    from scipy import sparse

BATCH = 64


def crop_patches(slide: Slide, centre_px: np.ndarray, scale: PatchScale, *, batch: int = BATCH) -> Iterator[np.ndarray]:
    """Cut a patch of ``scale.size_px`` pixels at ``scale.mpp`` around each centre.

    Coordinates are continuous: level-0 pixel ``i`` covers ``[i, i + 1)``, so that its middle is ``i + 0.5``. The
    middle of a patch (for an even size: the corner where its four middle pixels meet) is the centre given, exactly,
    also where that falls between pixels. A patch is read from the pyramid level with the largest downsampling that
    does not exceed what is wanted, and brought to size by an anti-aliased bicubic filter; where a patch shows finer
    pixels than the slide has, it is enlarged. What lies outside the slide is white. When neither scaling nor a
    shift by part of a pixel is needed, the slide's pixels come out unchanged.

    Parameters
    ----------
    slide : Slide
    centre_px : array, shape (patches, 2)
        x, y in level-0 pixels.
    scale : PatchScale
    batch : int
        Patches that are given at once. Within a batch they are read row by row of the slide, which spares decoding
        the same tiles twice.

    Returns
    -------
    iterator of numpy.ndarray, shape (at most batch, size_px, size_px, 3), uint8
        In the order of `centre_px`.

    Raises
    ------
    ScaleError
        At once, not when the first batch is asked for.
    """
    centres = np.asarray(centre_px, dtype=np.float64)
    if centres.size == 0:
        centres = centres.reshape(0, 2)
    if centres.ndim != 2 or centres.shape[1] != 2:
        raise ShapeMismatch("centre_px", want="(patches, 2)", got=centres.shape)
    if not np.isfinite(centres).all():
        raise BadOption("centre_px", "not finite", want="x and y in level-0 pixels")
    if batch < 1:
        raise BadOption("batch", batch, want="1 patch or more")
    cutter = _Cutter(slide, scale)
    return (cutter.patches(centres[start : start + batch]) for start in range(0, len(centres), batch))


class _Cutter:
    """Cuts patches of one scale from one slide; knows the level to read and how far the filter reaches."""

    def __init__(self, slide: Slide, scale: PatchScale) -> None:
        side = scale.side_on(known_scale(slide))  # of a patch, in level-0 pixels
        if math.isclose(side, scale.size_px, rel_tol=1e-9):
            side = float(scale.size_px)  # 224 * 0.3 / 0.3 is not quite 224, and would blur for nothing
        self.slide, self.size = slide, scale.size_px
        self.level = fitting_level(slide, side / scale.size_px)
        self.step = slide.downsamples[self.level]
        self.side = side / self.step  # in pixels of the level
        # A bicubic filter reaches 2 pixels of the coarser of the two grids to each side.
        self.margin = math.ceil(2 * max(1.0, self.side / self.size)) + 1

    def patches(self, centres: np.ndarray) -> np.ndarray:
        """(patches, size, size, 3) around `centres`, in their order."""
        out = np.empty((len(centres), self.size, self.size, 3), np.uint8)
        rows_of_slide = np.floor(centres[:, 1] / (self.side * self.step))
        for which in np.lexsort((centres[:, 0], rows_of_slide)):
            out[which] = self.patch(*centres[which])
        return out

    def patch(self, x: float, y: float) -> np.ndarray:
        """(size, size, 3) around level-0 x, y."""
        from PIL import Image

        left, top = x / self.step - self.side / 2, y / self.step - self.side / 2
        x0, y0 = math.floor(left) - self.margin, math.floor(top) - self.margin
        reach = math.ceil(self.side) + 2 * self.margin + 1
        region = self.slide.read(round(x0 * self.step), round(y0 * self.step), reach, reach, self.level)
        left, top = left - x0, top - y0
        if self.side == self.size and left.is_integer() and top.is_integer():
            return region[int(top) : int(top) + self.size, int(left) : int(left) + self.size]
        box = (left, top, left + self.side, top + self.side)
        picture = Image.fromarray(region)
        return np.asarray(picture.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box))


BLOCK_PX = 1024
"""Side of the blocks that are read, in pixels of the level that is read."""


def fitting_level(slide: Slide, downsample: float) -> int:
    """The smallest pyramid level that still shows what a picture at `downsample` can show.

    That is the level with the largest downsampling of at most `downsample` (1 % more is forgiven: a level of 4.001
    serves a wish for 4); level 0 when even that is too coarse.
    """
    fits = [level for level, step in enumerate(slide.downsamples) if step <= downsample * 1.01]
    return max(fits, key=lambda level: slide.downsamples[level], default=0)


def thumbnail(slide: Slide, downsample: float) -> np.ndarray:
    """The whole slide, each pixel the mean of `downsample` x `downsample` level-0 pixels.

    Parameters
    ----------
    slide : Slide
    downsample : float
        1 or more. Pixel (row, column) of the result covers level-0 x from ``column * downsample`` to
        ``(column + 1) * downsample``, and so for y; what reaches over the edge is white.

    Returns
    -------
    numpy.ndarray, shape (ceil(height_px / downsample), ceil(width_px / downsample), 3), uint8
    """
    if not 1 <= downsample < math.inf:
        raise BadOption("downsample", downsample, want="1 or more")
    level = fitting_level(slide, downsample)
    step = slide.downsamples[level]
    factor = downsample / step  # pixels of the level in one pixel of the result
    width, height = math.ceil(slide.width_px / downsample), math.ceil(slide.height_px / downsample)
    side = max(1, int(BLOCK_PX / factor))
    small = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, side):
        for left in range(0, width, side):
            columns, rows = min(side, width - left), min(side, height - top)
            x, y = left * factor, top * factor
            x0, y0 = math.floor(x), math.floor(y)
            across, down = math.ceil(x + columns * factor) - x0, math.ceil(y + rows * factor) - y0
            block = slide.read(round(x0 * step), round(y0 * step), across, down, level)
            narrow = _means(x - x0, factor, columns, across)
            low = _means(y - y0, factor, rows, down)
            half = (low @ block.reshape(down, -1)).reshape(rows, across, 3).transpose(1, 0, 2)
            mean = (narrow @ half.reshape(across, -1)).reshape(columns, rows, 3).transpose(1, 0, 2)
            small[top : top + rows, left : left + columns] = np.minimum(mean + 0.5, 255)
    return small


def _means(start: float, factor: float, count: int, length: int) -> sparse.csr_array:
    """Weights (count, length) that make `count` means of `factor` neighbours each, from position `start` on.

    A neighbour that is covered in part counts in part. (Pillow's box filter counts it wholly or not at all.)
    """
    from scipy import sparse

    edges = start + factor * np.arange(count + 1)
    first = np.floor(edges[:-1]).astype(np.intp)
    pixels = first[:, None] + np.arange(math.ceil(factor) + 1)
    share = np.minimum(pixels + 1, edges[1:, None]) - np.maximum(pixels, edges[:-1, None])
    covered = (share > 1e-9) & (pixels < length)
    row = np.broadcast_to(np.arange(count)[:, None], pixels.shape)[covered]
    weight = (share[covered] / factor).astype(np.float32)
    return sparse.csr_array((weight, (row, pixels[covered])), shape=(count, length))
