"""Locations to predict: those given, or a grid over the tissue."""

from __future__ import annotations

import math

import numpy as np

from cmrcnet.errors import BadOption, TooFew
from cmrcnet.slides.section import Spots, on_slide
from cmrcnet.slides.slide import Slide, known_scale
from cmrcnet.slides.tissue_mask import TissueMask, find_tissue


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
    pitch_px = pitch_um / known_scale(slide)
    columns = np.arange(math.ceil(slide.width_px / pitch_px - 0.5))
    rows = np.arange(math.ceil(slide.height_px / pitch_px - 0.5))
    row, column = (index.ravel() for index in np.meshgrid(rows, columns, indexing="ij"))
    centres = (np.column_stack([column, row]) + 0.5) * pitch_px
    kept = np.flatnonzero(mask.contains(centres))
    if len(kept) == 0:
        mpp = known_scale(slide)
        across, down = slide.width_px * mpp / 1000, slide.height_px * mpp / 1000
        raise TooFew.from_sentence(
            f"No tissue was found on {slide.name}; check the picture and its scale ({mpp:.4g} um per px, which makes "
            f"it {across:.3g} x {down:.3g} mm), or give the locations to predict yourself."
        )
    barcodes = tuple(f"x{column[i]:05d}y{row[i]:05d}" for i in kept)
    return Spots(barcodes, centres[kept], pitch_um if diameter_um is None else diameter_um)


def make_query_grid(
    slide: Slide, spots: Spots | None, mask: TissueMask | None, grid_um: float
) -> tuple[Spots, TissueMask]:
    """The locations to predict, and the tissue mask.

    Parameters
    ----------
    spots : Spots or None
        Locations; None lays a grid over the tissue.
    mask : TissueMask or None
        None finds the tissue on the slide.
    grid_um : float
        Pitch of the grid in micrometres.

    Returns
    -------
    locations : Spots
    mask : TissueMask

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
    return locations, tissue
