"""Where a slide is predicted: the places given, or a grid over its tissue."""

from __future__ import annotations

from cmrcnet.errors import SpotsOffImage, TooFew
from cmrcnet.tissue.mask import TissueMask, find_tissue
from cmrcnet.tissue.patches import patch_grid
from cmrcnet.tissue.slide import Slide
from cmrcnet.tissue.spots import Spots


def lay_places(slide: Slide, spots: Spots | None, mask: TissueMask | None, grid_um: float) -> tuple[Spots, TissueMask]:
    """The places, and the tissue that they lie on.

    Parameters
    ----------
    slide : Slide
    spots : Spots or None
        A grid over the tissue for None.
    mask : TissueMask or None
        Found on the slide for None.
    grid_um : float
        Distance between the places of the grid.

    Raises
    ------
    TooFew
        No place at all.
    SpotsOffImage
        A place whose centre lies outside the slide: there is nothing to look at.
    UnknownScale, NoTissue
    """
    tissue = find_tissue(slide) if mask is None else mask
    places = patch_grid(slide, tissue, pitch_um=grid_um) if spots is None else spots
    if len(places) == 0:
        raise TooFew("places to predict", 0, 1, "give spots on the slide, or leave them out for a grid over the tissue")
    _require_on_slide(places, slide)
    return places, tissue


def _require_on_slide(places: Spots, slide: Slide) -> None:
    """Refuse places outside the picture, where a patch is nothing but padding: `SpotsOffImage`."""
    size = (slide.width_px, slide.height_px)
    outside = ~((places.centre_px >= 0) & (places.centre_px < size)).all(axis=1)
    if outside.any():
        (left, top), (right, bottom) = places.centre_px.min(axis=0), places.centre_px.max(axis=0)
        span = f"x {left:.0f} to {right:.0f}, y {top:.0f} to {bottom:.0f}"
        raise SpotsOffImage(slide.name, int(outside.sum()), len(places), size, span)
