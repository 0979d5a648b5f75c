"""Cut patches of a stated physical size around spots, and average a whole slide to a thumbnail."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cmrcnet.errors import BadOption, ShapeMismatch
from cmrcnet.slides.slide import PatchScale, Slide, known_scale

if TYPE_CHECKING:
    from scipy import sparse

CROP_FORMAT = 1
"""Counts up when the same call cuts other pixels; part of the name of everything cached that was made from them."""
BLOCK_PX = 2048
"""Side of the blocks that `thumbnail` reads, in pixels of the level that is read."""


def crop_patches(slide: Slide, centre_px: np.ndarray, scale: PatchScale, *, batch: int = 64) -> Iterator[np.ndarray]:
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
        Its scale must be known.
    centre_px : array, shape (patches, 2)
        x, y in level-0 pixels.
    scale : PatchScale
        Size of a patch in pixels and micrometres.
    batch : int
        Patches that are returned at once. Within a batch they are read in rows of the slide, so that few tiles are
        decoded twice.

    Returns
    -------
    iterator of numpy.ndarray, shape (at most batch, size_px, size_px, 3), uint8
        In the order of `centre_px`.

    Raises
    ------
    ScaleError
        At once, not when the first batch is read.

    Examples
    --------
    >>> import numpy as np
    >>> from cmrcnet import ArraySlide, PatchScale
    >>> slide = ArraySlide(np.zeros((100, 100, 3), np.uint8), mpp=0.25)
    >>> [patches] = crop_patches(slide, [[50, 50], [20, 60]], PatchScale(size_px=16, mpp=0.5))
    >>> patches.shape
    (2, 16, 16, 3)
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


class Region(NamedTuple):
    """Pixels (height, width, 3) uint8 of a pyramid level, from its pixel `left`, `top` on."""

    pixels: np.ndarray
    left: int
    top: int
    level: int


class PixelGrid:
    """A slide resampled to `mpp`, in blocks of `block_px` pixels that are counted from its upper left corner.

    A block is what `crop_patches` cuts there: its pixels depend on slide, scale and place, and not on what is read
    beside it, so that two pictures of the same place show the same pixels.

    Parameters
    ----------
    slide : Slide
        Its scale must be known.
    mpp : float
        Micrometres a pixel.
    block_px : int
    """

    def __init__(self, slide: Slide, mpp: float, block_px: int = 128) -> None:
        self._cutter = _Cutter(slide, PatchScale(size_px=block_px, mpp=mpp))
        self.slide, self.block_px, self.level = slide, block_px, self._cutter.level

    @property
    def px_of_slide(self) -> float:
        """Level-0 pixels that one pixel of the grid spans."""
        return self._cutter.side * self._cutter.step / self.block_px

    def blocks(self, start: float, stop: float) -> range:
        """The blocks that hold the pixels from `start` to `stop` of a row or a column."""
        return range(math.floor(start / self.block_px), math.ceil(stop / self.block_px))

    def bounds(self, columns: range, rows: range) -> tuple[int, int, int, int]:
        """Left, top, right and bottom pixel of the level that is read for some blocks, the filter's margin included."""
        (left, top), (right, bottom) = (
            self._cutter.corner(*self._centre(column, row))
            for column, row in ((columns[0], rows[0]), (columns[-1], rows[-1]))
        )
        return left, top, right + self._cutter.reach, bottom + self._cutter.reach

    def read(self, left: int, top: int, right: int, bottom: int) -> Region:
        """Read these pixels of the level; white outside the slide."""
        step, level = self._cutter.step, self.level
        pixels = self.slide.read(round(left * step), round(top * step), right - left, bottom - top, level)
        return Region(pixels, left, top, level)

    def picture(self, columns: range, rows: range, region: Region) -> np.ndarray:
        """Resample some blocks of a region that holds their `bounds`: (rows, columns, 3) uint8 in pixels."""
        size, given = self.block_px, (region.pixels, region.left, region.top)
        found = np.empty((size * len(rows), size * len(columns), 3), np.uint8)
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                block = self._cutter.patch(*self._centre(column, row), given)
                found[size * i : size * (i + 1), size * j : size * (j + 1)] = block
        return found

    def _centre(self, column: int, row: int) -> tuple[float, float]:
        side = self._cutter.side * self._cutter.step
        return (column + 0.5) * side, (row + 0.5) * side


def crop_scales(
    slide: Slide, centre_px: np.ndarray, scales: Sequence[PatchScale], region: Region | None = None
) -> list[np.ndarray]:
    """Cut patches of several scales around each centre, each region of the slide read once for all scales it serves.

    Parameters
    ----------
    centre_px : array, shape (patches, 2)
        x, y in level-0 pixels.
    scales : sequence of PatchScale
        Where a level's downsampling is no whole number, the position of a region is rounded; the patches of the first
        scale are then cut from a region of their own, as `crop_patches` does.
    region : Region, optional
        Pixels that were read before; what it holds is not read again.

    Returns
    -------
    list of numpy.ndarray, shape (patches, size_px, size_px, 3), uint8
        As `crop_patches` gives for each scale.

    Raises
    ------
    ScaleError
    """
    cutters = [_Cutter(slide, scale) for scale in scales]
    hosts = [max((h for h in cutters if _serves(h, c, c is cutters[0])), key=lambda h: h.reach) for c in cutters]
    found = [np.empty((len(centre_px), cutter.size, cutter.size, 3), np.uint8) for cutter in cutters]
    for which in cutters[0].reading_order(centre_px):
        x, y = centre_px[which]
        regions = {host: host.region(x, y, region) for host in dict.fromkeys(hosts)}
        for patches, cutter, host in zip(found, cutters, hosts, strict=True):
            patches[which] = cutter.patch(x, y, regions[host])
    return found


def share_regions(slide: Slide, first: PatchScale, second: PatchScale) -> bool:
    """Whether one region serves patches of both scales in `crop_scales`: they are cut from the same pyramid level."""
    one, two = _Cutter(slide, first), _Cutter(slide, second)
    return _serves(one, two, False) or _serves(two, one, True)


def _serves(host: _Cutter, guest: _Cutter, exact: bool) -> bool:
    """Whether a region that the host reads holds all that the guest needs; exactly, if its position must not move."""
    if host is guest:
        return True
    inside = host.reach >= guest.reach + 3 or (host.side == guest.side and host.reach >= guest.reach)
    return host.level == guest.level and inside and (float(host.step).is_integer() or not exact)


class _Cutter:
    """Cuts patches of one scale from one slide: the level to read and the filter's margin are computed once."""

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
        self.reach = math.ceil(self.side) + 2 * self.margin + 1

    def reading_order(self, centres: np.ndarray) -> np.ndarray:
        """Indices of `centres` row by row of the slide."""
        return np.lexsort((centres[:, 0], np.floor(centres[:, 1] / (self.side * self.step))))

    def patches(self, centres: np.ndarray) -> np.ndarray:
        """(patches, size, size, 3) around `centres`, in their order."""
        out = np.empty((len(centres), self.size, self.size, 3), np.uint8)
        for which in self.reading_order(centres):
            out[which] = self.patch(*centres[which])
        return out

    def corner(self, x: float, y: float) -> tuple[int, int]:
        """The level's pixel (x, y) from which on a patch around level-0 x, y is read."""
        x0, y0 = (math.floor(middle / self.step - self.side / 2) - self.margin for middle in (x, y))
        return x0, y0

    def region(self, x: float, y: float, known: Region | None = None) -> tuple[np.ndarray, int, int]:
        """Pixels around level-0 x, y, known or read, and the level's pixel (x, y) of their upper left corner."""
        x0, y0 = self.corner(x, y)
        if known is not None and known.level == self.level:
            right, bottom = known.left + known.pixels.shape[1], known.top + known.pixels.shape[0]
            if known.left <= x0 <= right - self.reach and known.top <= y0 <= bottom - self.reach:
                return known.pixels, known.left, known.top
        return self.slide.read(round(x0 * self.step), round(y0 * self.step), self.reach, self.reach, self.level), x0, y0

    def patch(self, x: float, y: float, region: tuple[np.ndarray, int, int] | None = None) -> np.ndarray:
        """(size, size, 3) around level-0 x, y, from a larger region of this level or one of its own."""
        from PIL import Image

        pixels, x0, y0 = self.region(x, y) if region is None else region
        left, top = x / self.step - self.side / 2, y / self.step - self.side / 2
        across, down = math.floor(left) - self.margin - x0, math.floor(top) - self.margin - y0
        pixels = pixels[down : down + self.reach, across : across + self.reach]  # what it would have read by itself
        left, top = left - x0 - across, top - y0 - down
        if self.side == self.size and left.is_integer() and top.is_integer():
            return pixels[int(top) : int(top) + self.size, int(left) : int(left) + self.size]
        box = (left, top, left + self.side, top + self.side)
        picture = Image.fromarray(pixels)
        return np.asarray(picture.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box))


def fitting_level(slide: Slide, downsample: float) -> int:
    """The coarsest pyramid level with a downsampling of at most `downsample`; level 0 when there is none.

    A tolerance of 1 % lets a level of 4.001 serve a `downsample` of 4.
    """
    fits = [level for level, step in enumerate(slide.downsamples) if step <= downsample * 1.01]
    return max(fits, key=lambda level: slide.downsamples[level], default=0)


def thumbnail(slide: Slide, downsample: float) -> np.ndarray:
    """Average a whole slide to pixels of `downsample` x `downsample` level-0 pixels, block by block.

    Parameters
    ----------
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
    """Weights (count, length) of `count` means over `factor` neighbours each, from position `start` on.

    A neighbour that is covered in part is weighted in part (Pillow's box filter weights it wholly or not at all).
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
