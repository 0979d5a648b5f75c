"""Locations to predict: those given, or a grid over the tissue."""

from __future__ import annotations

import math

import numpy as np

from cmrcnet.errors import BadOption, SectionError, TooFew
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import Slide, known_scale
from cmrcnet.slides.tissue_mask import TissueMask, find_tissue


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


def make_query_grid(
    slide: Slide, spots: Spots | None, mask: TissueMask | None, grid_um: float
) -> tuple[Spots, TissueMask]:
    """The locations, and the tissue that they lie on.

    Parameters
    ----------
    slide : Slide
    spots : Spots or None
        A grid over the tissue for None.
    mask : TissueMask or None
        Found on the slide for None.
    grid_um : float
        Distance between the locations of the grid.

    Raises
    ------
    TooFew
        No location at all.
    SectionError
        A location whose centre lies outside the slide: there is nothing to look at.
    ScaleError, TooFew
    """
    tissue = find_tissue(slide) if mask is None else mask
    locations = patch_grid(slide, tissue, pitch_um=grid_um) if spots is None else spots
    if len(locations) == 0:
        raise TooFew(
            "locations to predict", 0, 1, "give spots on the slide, or leave them out for a grid over the tissue"
        )
    _require_on_slide(locations, slide)
    return locations, tissue


def _require_on_slide(locations: Spots, slide: Slide) -> None:
    """Refuse locations outside the picture, where a patch is nothing but padding: `SectionError`."""
    size = (slide.width_px, slide.height_px)
    outside = ~((locations.centre_px >= 0) & (locations.centre_px < size)).all(axis=1)
    if outside.any():
        (left, top), (right, bottom) = locations.centre_px.min(axis=0), locations.centre_px.max(axis=0)
        span = f"x {left:.0f} to {right:.0f}, y {top:.0f} to {bottom:.0f}"
        raise SectionError.off_image(slide.name, int(outside.sum()), len(locations), size, span)
