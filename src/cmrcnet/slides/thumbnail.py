"""A whole slide, made small, without ever holding it large."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.errors import BadOption
from cmrcnet.slides.slide import Slide

if TYPE_CHECKING:
    from scipy import sparse

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
