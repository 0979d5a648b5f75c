"""Open a slide, whatever its format."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cmrcnet.errors import BadInput, BadOption, MissingInput, ScaleError
from cmrcnet.slides.file_slide import FileSlide, PixelSource
from cmrcnet.slides.slide import ArraySlide, Slide

LARGEST_DISAGREEMENT = 1.5
"""A stated scale may differ from the file's own by this factor at most."""

_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_slide(source: str | Path | np.ndarray, *, mpp: float | None = None, name: str | None = None) -> Slide:
    """Open a slide. Only its header is read; pixels are read when they are asked for.

    Parameters
    ----------
    source : str, Path, or numpy.ndarray, shape (height, width, 3), uint8
        A whole-slide file that OpenSlide opens (SVS, NDPI, MRXS, SCN, BIF, tiled TIFF), an (OME-)TIFF, a picture
        (JPEG, PNG), or RGB pixels. A file is known by its content, not by its ending. Pixels are taken as stored:
        neither an EXIF orientation nor a colour profile is applied.
    mpp : float, optional
        Micrometres that one level-0 pixel shows. It overrides what the file says; without both, `Slide.mpp`
        is None and whatever needs a scale raises `ScaleError`.
    name : str, optional
        Name of the slide; the file's name without its ending by default.

    Returns
    -------
    Slide
        One made from a file has `close` and works in a ``with`` block.

    Raises
    ------
    MissingInput, BadInput
        Not there; or truncated, no image, or an image of a kind that is no H&E slide (16-bit grey, a stack).
        Damage inside the pixels of a file shows when they are first read.
    ScaleError
        The stated scale differs from the file's own by more than a factor of 1.5.
    """
    if mpp is not None and not 0 < float(mpp) < float("inf"):
        raise BadOption("mpp", mpp, want="micrometres per pixel, above 0")
    if isinstance(source, np.ndarray):
        return ArraySlide(source, None if mpp is None else float(mpp), name or "array")
    path = Path(source)
    name = name or _plain_name(path)
    pixels = _pixel_source(path)
    if mpp is None:
        mpp = pixels.mpp
    elif pixels.mpp is not None:
        factor = max(mpp / pixels.mpp, pixels.mpp / mpp)
        if factor > LARGEST_DISAGREEMENT:
            raise ScaleError.contradicted(name, mpp, f"its own metadata says {pixels.mpp:g}")
    return FileSlide(path, pixels, None if mpp is None else float(mpp), name)


def _pixel_source(path: Path) -> PixelSource:
    """Who reads the pixels: OpenSlide, else tifffile for a TIFF that it reads poorly or not, else Pillow."""
    from cmrcnet.slides.openslide_pixels import OpenSlidePixels, openslide_vendor

    if not path.exists():
        raise MissingInput(path, "The slide")
    if path.is_dir():
        raise BadInput(path, "a slide", "it is a folder; give the slide's file")
    with path.open("rb") as file:
        head = file.read(4)
    if not head:
        raise BadInput(path, "a slide", "it is empty")
    if head not in _TIFF_SIGNATURES:
        if openslide_vendor(path) is not None:
            return OpenSlidePixels(path)
        from cmrcnet.slides.picture_pixels import PicturePixels

        return PicturePixels(path)

    from cmrcnet.slides.tiff_pixels import TiffPixels, tiff_facts

    facts = tiff_facts(path)
    vendor = openslide_vendor(path)
    # OpenSlide knows no OME metadata and no SubIFD pyramid, and squeezes 16-bit values into 8 without a word.
    ours = vendor is None or (vendor == "generic-tiff" and (facts.is_ome or not facts.eight_bits))
    return TiffPixels(path) if ours else OpenSlidePixels(path)


def _plain_name(path: Path) -> str:
    """The file's name without its ending: "a.b" for a.b.tif and for a.b.ome.tif."""
    stem = path.stem
    return stem[: -len(".ome")] if stem.lower().endswith(".ome") else stem
