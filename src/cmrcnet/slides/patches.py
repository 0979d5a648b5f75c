"""Cut patches of a stated physical size around spots, and lay a grid of locations over tissue."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.errors import BadOption, ShapeMismatch, TooFew
from cmrcnet.slides.scale import PatchScale
from cmrcnet.slides.slide import Slide, known_scale
from cmrcnet.slides.spots import Spots
from cmrcnet.slides.thumbnail import fitting_level

if TYPE_CHECKING:
    from cmrcnet.slides.mask import TissueMask

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


def patch_grid(slide: Slide, mask: TissueMask, *, pitch_um: float = 100.0, diameter_um: float | None = None) -> Spots:
    """Lay a square grid of locations over tissue, for a slide without spots.

    Parameters
    ----------
    slide : Slide
    mask : TissueMask
        Of this slide. A location is kept when its centre is on tissue.
    pitch_um : float
        Distance of neighbouring centres; 100 um is the diameter of a first-generation spot.
    diameter_um : float, optional
        Diameter of each location, for drawing; the pitch by default.

    Returns
    -------
    Spots
        Row by row from the top. Location ``x00012y00034`` is centred 12.5 pitches from the slide's left edge and 34.5
        from its top.

    Raises
    ------
    ScaleError
    TooFew
        No place of the grid is on tissue.
    """
    if not 0 < pitch_um < math.inf:
        raise BadOption("pitch_um", pitch_um, want="micrometres between neighbouring locations, above 0")
    pitch_px = pitch_um / known_scale(slide)
    columns = np.arange(math.ceil(slide.width_px / pitch_px - 0.5))
    rows = np.arange(math.ceil(slide.height_px / pitch_px - 0.5))
    row, column = (index.ravel() for index in np.meshgrid(rows, columns, indexing="ij"))
    centres = (np.column_stack([column, row]) + 0.5) * pitch_px
    kept = np.flatnonzero(mask.contains(centres))
    if len(kept) == 0:
        raise TooFew.from_sentence(
            f"No tissue was found on {slide.name}; check the picture, or give the locations to predict yourself."
        )
    barcodes = tuple(f"x{column[i]:05d}y{row[i]:05d}" for i in kept)
    return Spots(barcodes, centres[kept], pitch_um if diameter_um is None else diameter_um)
