"""Compare the positions of spots with the tissue of their image, so that a wrong affine or a wrong image is seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cmrcnet.errors import SectionError
from cmrcnet.readers.raw_section import RawSection
from cmrcnet.slides.patches import thumbnail
from cmrcnet.slides.slide import known_scale
from cmrcnet.slides.tissue_mask import find_tissue
from cmrcnet.storage.atomic import atomic_file

LEAST_ON_TISSUE = 0.5
"""Share of the spots on tissue below which their positions, the image or the affine are wrong."""
PICTURE_PX = 1200
"""Longer side of a picture of the spots."""
ON, OFF = (0, 70, 255), (255, 130, 0)
"""Colours of spots on and off the tissue: blue and orange, which no kind of colour blindness confuses."""


def share_on_tissue(raw: RawSection, picture: Path | None = None) -> float | None:
    """Share of the spots whose centre is on the tissue of the image.

    Parameters
    ----------
    raw : RawSection
        Its slide has a scale.
    picture : pathlib.Path, optional
        PNG to write: the slide, reduced, with a blue ring at each spot on tissue and an orange cross at each other.

    Returns
    -------
    float or None
        None when no tissue is recognised on the image.

    Raises
    ------
    BadInput, ScaleError
        The pixels cannot be decoded, or the scale is unknown.
    """
    mask = find_tissue(raw.slide)
    on = mask.contains(raw.centre_px)
    if picture is not None:
        _draw(raw, on, picture)
    return float(on.mean()) if mask.pixels.any() and len(on) else None


def off_tissue(raw: RawSection, share: float) -> SectionError:
    """The problem of a section of which most spots are beside the tissue."""
    return SectionError(
        f"Only {share:.0%} of the spots of {raw.name} are on the tissue of its image; check that image, positions and "
        "affine belong together (cmrcnet inspect --pictures FOLDER draws the spots)."
    )


def _draw(raw: RawSection, on: np.ndarray, picture: Path) -> None:
    from PIL import Image, ImageDraw

    slide = raw.slide
    downsample = max(1.0, max(slide.width_px, slide.height_px) / PICTURE_PX)
    image = Image.fromarray(thumbnail(slide, downsample))
    draw = ImageDraw.Draw(image)
    radius = max(1.0, 0.35 * raw.diameter_um / known_scale(slide) / downsample)
    for x, y, inside in zip(*(raw.centre_px.T / downsample), on, strict=True):
        box = (x - radius, y - radius, x + radius, y + radius)
        if inside:
            draw.ellipse(box, outline=ON, width=2)
        else:
            draw.line(box, fill=OFF, width=2)
            draw.line((box[0], box[3], box[2], box[1]), fill=OFF, width=2)
    with atomic_file(picture) as path:
        image.save(path, format="PNG")
