"""A mask that somebody has drawn: a black-and-white picture of a slide that says where to predict."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cmrcnet.errors import BadInput, MissingInput
from cmrcnet.slides.mask import TissueMask
from cmrcnet.slides.slide import Slide
from cmrcnet.slides.slide_files import open_slide

LARGEST_SIDE_PX = 30_000
"""A finer mask says nothing more about locations some tens of micrometres apart, and would fill the memory."""


def read_mask(path: Path, slide: Slide) -> TissueMask:
    """Read where to predict from a picture of the whole slide, at any size.

    Parameters
    ----------
    path : Path
        PNG, JPEG or TIFF; brighter than mid-grey is tissue.
    slide : Slide
        The slide that it belongs to.

    Returns
    -------
    TissueMask

    Raises
    ------
    MissingInput, BadInput
    BadInput
        It has other proportions than the slide, nothing of it is tissue, or it is larger than the slide.
    """
    path = Path(path)
    if not path.exists():
        raise MissingInput(path, "The mask")
    picture = open_slide(path)
    width, height = picture.width_px, picture.height_px
    step = max(slide.width_px / width, slide.height_px / height)
    size = f"{width} x {height} px, and {slide.name} {slide.width_px} x {slide.height_px} px"
    if abs(slide.width_px / step - width) > 1 or abs(slide.height_px / step - height) > 1:
        raise BadInput.mask(path, f"its proportions are not the slide's ({size})")
    if step < 1 or max(width, height) > LARGEST_SIDE_PX:
        raise BadInput.mask(path, f"it is too large ({size}); make it smaller, to a few micrometres a pixel")
    bright = picture.read(0, 0, width, height).max(axis=2) > 127
    if not bright.any():
        raise BadInput.mask(path, "nothing of it is brighter than mid-grey, so nothing is tissue")
    return TissueMask(np.ascontiguousarray(bright), step)
