"""Where a slide is predicted: the locations given, or a grid over its tissue."""

from __future__ import annotations

from cmrcnet.errors import SectionError, TooFew
from cmrcnet.slides.mask import TissueMask, find_tissue
from cmrcnet.slides.patches import patch_grid
from cmrcnet.slides.slide import Slide
from cmrcnet.slides.spots import Spots


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
