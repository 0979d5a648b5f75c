"""The tissue of a slide, found by colour and roughness, and the grid of locations that is laid over it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cmrcnet.errors import BadOption, ShapeMismatch, TooFew
from cmrcnet.slides.patches import thumbnail
from cmrcnet.slides.section import Spots, on_slide
from cmrcnet.slides.slide import Slide, known_scale

MASK_MPP = 8.0
"""Micrometres of a mask pixel: about one cell."""
WINDOW_UM = 24.0
"""Sigma of the Gaussian window over which colour and roughness are measured."""
EDGE_UM = 8.0
"""Sigma of the smaller window that refines the border."""
CLOSE_UM = 40.0
"""Gaps in tissue up to about this width are bridged."""
ANCHOR_UM = 100.0
"""Pitch of the anchors of a finer map; that of first-generation spots."""
FEWEST_ANCHORS = 20
"""Fewer tell neither mean nor deviation of a section."""
SMALLEST_TISSUE_UM2 = 30_000.0
"""Specks below this area (a disc of 195 um) are dust."""
SMALLEST_HOLE_UM2 = 100_000.0
"""Holes below this area (a disc of 357 um: lumina, fat) belong to the tissue."""

# In grey levels (0 to 255) at 8 um per pixel. Measured on the breast and spinal cord sections: chroma of glass is at
# most 8, of dust 9, of an eosin smear 15 to 35, of fat 8 to 20, of tissue 17 and more; roughness (standard deviation
# of green) of glass and smear is at most 3, of fat 6 and more, of tissue 12 and more.
FAINTEST_CHROMA = 10.0
"""Tissue has at least this chroma ..."""
ROUGHEST_GLASS = 5.0
"""... and at least this roughness ..."""
SURE_CHROMA = 50.0
"""... or so much chroma that no smear has it."""
GLASS_BRIGHT, GLASS_CHROMA = 180, 25
"""Glass is at least this bright in every channel and at most this colourful (a warm lamp tints it)."""
PEN_LEAD = 15
"""By how much green must lead red to be ink."""


@dataclass(frozen=True, eq=False)
class TissueMask:
    """Where on a slide the tissue is.

    Parameters
    ----------
    pixels : numpy.ndarray, shape (height, width), bool
        True on tissue.
    downsample : float
        Level-0 pixels that one mask pixel spans: pixel (row, column) covers x from ``column * downsample`` to
        ``(column + 1) * downsample``.

    Examples
    --------
    >>> import numpy as np
    >>> mask = TissueMask(np.array([[True, False]]), downsample=16)
    >>> mask.contains(np.array([[8.0, 8.0], [20.0, 8.0], [-1.0, 8.0]])).tolist(), mask.share
    ([True, False, False], 0.5)
    """

    pixels: np.ndarray
    downsample: float

    def __post_init__(self) -> None:
        if self.pixels.ndim != 2 or self.pixels.dtype != np.bool_:
            raise ShapeMismatch("mask", want="(height, width) bool", got=f"{self.pixels.shape} {self.pixels.dtype}")

    def contains(self, centre_px: np.ndarray) -> np.ndarray:
        """Whether each location (n, 2: x, y in level-0 pixels) is on tissue: (n,) bool. Off the slide is not."""
        cells = np.floor(np.asarray(centre_px, dtype=np.float64).reshape(-1, 2) / self.downsample)
        inside = np.all((cells >= 0) & (cells < self.pixels.shape[::-1]), axis=1)
        found = np.zeros(len(cells), bool)
        column, row = cells[inside].astype(np.intp).T
        found[inside] = self.pixels[row, column]
        return found

    @property
    def share(self) -> float:
        """Share of the slide that is tissue."""
        return float(self.pixels.mean()) if self.pixels.size else 0.0


def find_tissue(slide: Slide) -> TissueMask:
    """Find the tissue on a stained slide by its colour and its roughness.

    The slide is averaged to 8 um per pixel and its glass made neutral. Stained tissue has chroma (largest minus
    smallest of R, G, B) AND is rough: cells, fibres and gaps alternate. Glass and black borders have neither, dust
    has no colour, smeared stain is smooth. (A cut of chroma alone, as by Otsu, takes a smear of eosin for tissue and
    fat for glass.) Green and cyan pen marks are left out; other ink is not recognised. Gaps of 40 um are bridged,
    small holes filled and specks removed.

    Parameters
    ----------
    slide : Slide
        Its scale must be known. Memory is that of the thumbnail: 25 x 75 mm take about 30 million pixels.

    Returns
    -------
    TissueMask
        All False where there is no tissue.

    Raises
    ------
    ScaleError

    Examples
    --------
    >>> from cmrcnet import synthetic_cohort
    >>> slide = synthetic_cohort(patients=1, spots=12, genes=40).read("P1S1").slide
    >>> 0.2 < find_tissue(slide).share < 0.9
    True
    """
    from scipy import ndimage
    from skimage.morphology import disk

    mpp = known_scale(slide)
    downsample = max(1.0, MASK_MPP / mpp)
    mask_um = mpp * downsample
    small = _neutral_glass(thumbnail(slide, downsample))
    tissue = _stained(small, WINDOW_UM / mask_um, ROUGHEST_GLASS)
    tissue &= _stained(small, EDGE_UM / mask_um, ROUGHEST_GLASS / 2)  # trims the rim that the wide window adds
    red, green, blue = (small[..., channel].astype(np.int16) for channel in range(3))
    tissue &= ~((green - red > PEN_LEAD) & (green >= blue - PEN_LEAD))  # ink: no stain lets green lead
    reach = round(CLOSE_UM / 2 / mask_um)
    if reach > 0:
        padded = np.pad(tissue, reach)  # else closing would grow tissue along the border
        tissue = ndimage.binary_closing(padded, disk(reach))[reach:-reach, reach:-reach]
    tissue = _without_small(tissue, SMALLEST_TISSUE_UM2 / mask_um**2)
    holes = ~tissue
    tissue |= holes & ~_without_small(holes, SMALLEST_HOLE_UM2 / mask_um**2, spare_border=True)
    return TissueMask(tissue, downsample)


def _neutral_glass(small: np.ndarray) -> np.ndarray:
    """Divide by the colour of the glass, where there is glass: bright and nearly colourless pixels."""
    sample = small[:: max(1, small.shape[0] // 1000), :: max(1, small.shape[1] // 1000)].reshape(-1, 3)
    brightness = sample.min(axis=1)
    glass = np.median(sample[brightness >= np.quantile(brightness, 0.9)], axis=0)
    if glass.min() < GLASS_BRIGHT or np.ptp(glass) > GLASS_CHROMA or np.ptp(glass) == 0:
        return small
    table = np.minimum(np.arange(256)[:, None] * (glass.max() / glass) + 0.5, 255).astype(np.uint8)
    return np.stack([table[small[..., channel], channel] for channel in range(3)], axis=2)


def _stained(small: np.ndarray, sigma: float, roughest_glass: float) -> np.ndarray:
    """Where the surroundings (a Gaussian of `sigma` px) are coloured and rough, or very coloured."""
    from scipy import ndimage

    chroma = ndimage.gaussian_filter((small.max(axis=2) - small.min(axis=2)).astype(np.float32), sigma)
    green = small[..., 1].astype(np.float32) - 128  # near zero, where the difference below loses no digits
    mean = ndimage.gaussian_filter(green, sigma)
    rough = np.sqrt(np.maximum(ndimage.gaussian_filter(green * green, sigma) - mean * mean, 0))  # standard deviation
    return (chroma >= FAINTEST_CHROMA) & (rough >= roughest_glass) | (chroma >= SURE_CHROMA)


def _without_small(mask: np.ndarray, smallest_px: float, spare_border: bool = False) -> np.ndarray:
    """Remove connected parts below a size; `spare_border` keeps those that touch the border."""
    from scipy import ndimage

    labelled: Any = ndimage.label(mask)
    parts, count = labelled
    kept = np.bincount(parts.ravel(), minlength=count + 1) >= smallest_px
    if spare_border:
        for edge in (parts[0], parts[-1], parts[:, 0], parts[:, -1]):
            kept[edge] = True
    kept[0] = False
    return kept[parts]


def patch_grid(slide: Slide, mask: TissueMask, *, pitch_um: float = 100.0, diameter_um: float | None = None) -> Spots:
    """Lay a square grid of locations over tissue, for a slide without spots.

    Parameters
    ----------
    slide : Slide
        Its scale must be known.
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
        No location of the grid is on tissue.

    Examples
    --------
    >>> import numpy as np
    >>> from cmrcnet import ArraySlide, TissueMask
    >>> slide = ArraySlide(np.full((400, 600, 3), 200, np.uint8), mpp=0.5)  # 200 x 300 um
    >>> left = TissueMask(np.tile([True, True, True, True, False, False], (4, 1)), downsample=100)
    >>> patch_grid(slide, left, pitch_um=100).barcodes
    ('x00000y00000', 'x00001y00000', 'x00000y00001', 'x00001y00001')
    """
    if not 0 < pitch_um < math.inf:
        raise BadOption("pitch_um", pitch_um, want="micrometres between neighbouring locations, above 0")
    column, row, centres = _grid_on(slide, mask, pitch_um)
    if len(centres) == 0 and mask.pixels.any():
        raise TooFew.from_sentence(
            f"No location of a grid of {pitch_um:g} um lies on the tissue of {slide.name}; choose a smaller pitch "
            "(--grid-um), or give the locations to predict yourself."
        )
    if len(centres) == 0:
        mpp = known_scale(slide)
        across, down = slide.width_px * mpp / 1000, slide.height_px * mpp / 1000
        raise TooFew.from_sentence(
            f"No tissue was found on {slide.name}; check the picture and its scale ({mpp:.4g} um per px, which makes "
            f"it {across:.3g} x {down:.3g} mm), or give the locations to predict yourself."
        )
    barcodes = tuple(f"x{x:05d}y{y:05d}" for x, y in zip(column.tolist(), row.tolist(), strict=True))
    return Spots(barcodes, centres, pitch_um if diameter_um is None else diameter_um)


def _grid_on(slide: Slide, mask: TissueMask, pitch_um: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns, rows and centres (n, 2) of the grid's locations on tissue, row by row."""
    pitch_px = pitch_um / known_scale(slide)
    along = (np.arange(math.ceil(slide.width_px / pitch_px - 0.5)) + 0.5) * pitch_px
    down = math.ceil(slide.height_px / pitch_px - 0.5)
    columns, rows, centres = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty((0, 2))]
    for row in range(down):  # never the grid of the whole slide
        here = np.column_stack([along, np.full(len(along), (row + 0.5) * pitch_px)])
        kept = np.flatnonzero(mask.contains(here))
        columns.append(kept)
        rows.append(np.full(len(kept), row))
        centres.append(here[kept])
    return np.concatenate(columns), np.concatenate(rows), np.concatenate(centres)


class QueryGrid(NamedTuple):
    """The locations to predict, the tissue, and the anchors of a fine map; see `features.tokens`."""

    locations: Spots
    tissue: TissueMask
    anchor_px: np.ndarray | None
    """(anchors, 2) level-0 pixels; None where the locations are their own."""


def make_query_grid(
    slide: Slide, spots: Spots | None, mask: TissueMask | None, grid_um: float, *, windows: bool = False
) -> QueryGrid:
    """The locations to predict, the tissue mask, and the anchors of a map that is finer than spots.

    Anchors are a grid of `ANCHOR_UM` over the tissue. Where fewer than `FEWEST_ANCHORS` lie on it, and there are more
    locations than that, there are none: the locations are their own.

    Parameters
    ----------
    spots : Spots or None
        Locations; None lays a grid over the tissue.
    mask : TissueMask or None
        None finds the tissue on the slide.
    grid_um : float
        Pitch of the grid in micrometres.
    windows : bool
        Make anchors, whatever the locations are: their windows are asked for.

    Returns
    -------
    QueryGrid

    Raises
    ------
    TooFew
        There are no locations, or no tissue.
    SectionError
        A location's centre lies outside the slide, where a patch would hold only padding.
    ScaleError
    """
    tissue = find_tissue(slide) if mask is None else mask
    locations = patch_grid(slide, tissue, pitch_um=grid_um) if spots is None else spots
    if len(locations) == 0:
        hint = "give spots on the slide, or leave them out for a grid over the tissue"
        raise TooFew("locations to predict", 0, 1, hint)
    on_slide(slide, locations.centre_px, slide.name, most_off=0.0)
    anchor_px = None
    if windows or (spots is None and grid_um < ANCHOR_UM):
        _, _, anchor_px = _grid_on(slide, tissue, ANCHOR_UM)
        if len(anchor_px) < min(FEWEST_ANCHORS, len(locations) + 1):
            anchor_px = None
    return QueryGrid(locations, tissue, anchor_px)
