"""Slides: the protocol, a slide in memory, a slide in a file, and `open_slide`.

Long because it is one thing: what a slide is and how to get one. Pixel formats are in `backends` and `tiff`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from cmrcnet.errors import BadInput, BadOption, MissingInput, ScaleError, ShapeMismatch
from cmrcnet.storage.hashing import fingerprint, fingerprint_stream


@dataclass(frozen=True, kw_only=True)
class PatchScale:
    """A patch's size in pixels and in micrometres: 224 px at 0.5 um per px is 112 um."""

    size_px: int = 224
    """Side of a patch in pixels."""
    mpp: float = 0.5
    """Micrometres that one pixel of a patch shows."""

    def __post_init__(self) -> None:
        if self.size_px < 1:
            raise BadOption("patch.size_px", self.size_px, want="a whole number of pixels, 1 or more")
        if not self.mpp > 0:
            raise BadOption("patch.mpp", self.mpp, want="micrometres per pixel, above 0")

    @property
    def side_um(self) -> float:
        """Side of a patch in micrometres."""
        return self.size_px * self.mpp

    def side_on(self, slide_mpp: float) -> float:
        """Side of a patch in level-0 pixels of a slide that shows `slide_mpp`."""
        return self.side_um / slide_mpp

    def showing(self, side_um: float) -> PatchScale:
        """A patch of as many pixels that shows `side_um` micrometres a side."""
        return PatchScale(size_px=self.size_px, mpp=side_um / self.size_px)


WHITE = 255


@runtime_checkable
class Slide(Protocol):
    """What every slide can do. It holds no expression: truth cannot leak through it.

    Attributes
    ----------
    name : str
    width_px, height_px : int
        Size at level 0.
    mpp : float or None
        Micrometres per level-0 pixel; None when nobody has said.
    downsamples : tuple of float
        Downsampling of each pyramid level, level 0 first: ``(1.0, 4.0, 16.0)``.
    """

    name: str
    width_px: int
    height_px: int
    mpp: float | None
    downsamples: tuple[float, ...]

    def read(self, x: int, y: int, width: int, height: int, level: int = 0) -> np.ndarray:
        """Read a region as RGB.

        Parameters
        ----------
        x, y : int
            Top-left corner in LEVEL-0 pixels; may lie outside the slide.
        width, height : int
            Size in pixels of `level`; what lies outside the slide is white.
        level : int

        Returns
        -------
        numpy.ndarray, shape (height, width, 3), uint8
        """
        ...

    def fingerprint(self) -> str:
        """Name of the slide's content, the same in every run."""
        ...


def known_scale(slide: Slide) -> float:
    """The slide's micrometres per pixel, or `ScaleError` with the hint."""
    if slide.mpp is None:
        raise ScaleError.unknown(slide.name)
    return float(slide.mpp)


class ArraySlide:
    """A slide whose pixels are in memory (or in a memory-mapped array).

    Parameters
    ----------
    pixels : array, shape (height, width, 3), uint8
    mpp : float or None
    name : str
    """

    def __init__(self, pixels: np.ndarray, mpp: float | None = None, name: str = "array") -> None:
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            raise ShapeMismatch("pixels", want="(height, width, 3) uint8", got=f"{pixels.shape} {pixels.dtype}")
        self.name = name
        self.mpp = mpp
        self.height_px, self.width_px = pixels.shape[:2]
        self.downsamples = (1.0,)
        self._pixels = pixels

    def read(self, x: int, y: int, width: int, height: int, level: int = 0) -> np.ndarray:
        """See `Slide.read`; an array has level 0 only."""
        if level != 0:
            raise BadOption("level", level, want=f"0, the only level of {self.name}")
        return crop_white(self._pixels, x, y, width, height)

    def fingerprint(self) -> str:
        """Name of the pixels."""
        return fingerprint(np.ascontiguousarray(self._pixels))


def crop_white(pixels: np.ndarray, x: int, y: int, width: int, height: int) -> np.ndarray:
    """Cut (height, width, 3) from `pixels` at x, y; white where there are no pixels. Always a copy."""
    rows, columns = pixels.shape[:2]

    def inside(left: int, top: int, width: int, height: int) -> np.ndarray:
        return np.array(pixels[top : top + height, left : left + width])

    return white_outside(columns, rows, x, y, width, height, inside)


def white_outside(
    columns: int, rows: int, x: int, y: int, width: int, height: int, inside: Callable[[int, int, int, int], np.ndarray]
) -> np.ndarray:
    """Read a region that may reach over the edge of a picture of `columns` x `rows`.

    Parameters
    ----------
    inside : function (left, top, width, height) -> (height, width, 3) uint8
        Called at most once, for the part that lies on the picture.
    """
    if width < 1 or height < 1:
        raise BadOption("width, height", (width, height), want="a region of at least 1 x 1 px")
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + width, columns), min(y + height, rows)
    if (left, top, right, bottom) == (x, y, x + width, y + height):
        return inside(left, top, width, height)
    region = np.full((height, width, 3), WHITE, np.uint8)
    if right > left and bottom > top:
        region[top - y : bottom - y, left - x : right - x] = inside(left, top, right - left, bottom - top)
    return region


class PixelSource(Protocol):
    """What a file format must offer. Making one reads the header only; the first `region` opens the pixels.

    It can be pickled (a worker process opens the file anew) and used again after `close`.

    Attributes
    ----------
    sizes : tuple of (width, height)
        In pixels, of each pyramid level, largest first.
    mpp : float or None
        What the file itself says of level 0.
    """

    sizes: tuple[tuple[int, int], ...]
    mpp: float | None

    def region(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """Pixels (height, width, 3) of a region in pixels of `level` that lies wholly on it, or `BadInput`."""
        ...

    def close(self) -> None:
        """Let go of the file and of every pixel."""
        ...


class FileSlide:
    """A slide read from a file by region; see `cmrcnet.slides.slide.Slide`.

    Use it in a ``with`` block, or call `close`, to free its pixels early. A closed slide can be read again: it is
    opened anew. It can be pickled.

    Parameters
    ----------
    path : Path
    source : PixelSource
    mpp : float or None
    name : str
    """

    def __init__(self, path: Path, source: PixelSource, mpp: float | None, name: str) -> None:
        self.path = path
        self.name = name
        self.mpp = mpp
        self.width_px, self.height_px = source.sizes[0]
        self.downsamples = tuple(_downsample(source.sizes[0], size) for size in source.sizes)
        self._source = source
        self._fingerprint: str | None = None

    def read(self, x: int, y: int, width: int, height: int, level: int = 0) -> np.ndarray:
        """See `Slide.read`. On a level above 0 the region starts at its pixel nearest to x, y.

        Raises
        ------
        BadInput
            The pixels cannot be decoded.
        """
        if not 0 <= level < len(self.downsamples):
            raise BadOption("level", level, want=f"a level of {self.name}, 0 to {len(self.downsamples) - 1}")
        step = self.downsamples[level]
        left, top = int(np.floor(x / step + 0.5)), int(np.floor(y / step + 0.5))

        def inside(left: int, top: int, width: int, height: int) -> np.ndarray:
            return self._source.region(level, left, top, width, height)

        return white_outside(*self._source.sizes[level], left, top, width, height, inside)

    def fingerprint(self) -> str:
        """Name of the file's content (see `file_fingerprint`), worked out once."""
        if self._fingerprint is None:
            self._fingerprint = file_fingerprint(self.path)
        return self._fingerprint

    def close(self) -> None:
        """Free the pixels and the file."""
        self._source.close()

    def __enter__(self) -> FileSlide:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        scale = "unknown" if self.mpp is None else f"{self.mpp:g}"
        return f"<slide {self.name}: {self.width_px} x {self.height_px} px, {scale} um per px, {self.path}>"


def _downsample(full: tuple[int, int], size: tuple[int, int]) -> float:
    """How many level-0 pixels one pixel of a level spans.

    A level of 4,650 px under 9,301 px was made by halving: 2, not 2.0002. So a whole number is taken where it
    explains both sides, and else the mean of the two quotients (as OpenSlide does).
    """
    mean = (full[0] / size[0] + full[1] / size[1]) / 2
    whole = round(mean)
    explained = all(small in (large // whole, -(-large // whole)) for large, small in zip(full, size, strict=True))
    return float(whole) if explained else mean


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
    from cmrcnet.slides.backends import OpenSlidePixels, openslide_vendor

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
        from cmrcnet.slides.backends import PicturePixels

        return PicturePixels(path)

    from cmrcnet.slides.tiff import TiffPixels, tiff_facts

    facts = tiff_facts(path)
    vendor = openslide_vendor(path)
    # OpenSlide knows no OME metadata and no SubIFD pyramid, and squeezes 16-bit values into 8 without a word.
    ours = vendor is None or (vendor == "generic-tiff" and (facts.is_ome or not facts.eight_bits))
    return TiffPixels(path) if ours else OpenSlidePixels(path)


def _plain_name(path: Path) -> str:
    """The file's name without its ending: "a.b" for a.b.tif and for a.b.ome.tif."""
    stem = path.stem
    return stem[: -len(".ome")] if stem.lower().endswith(".ome") else stem


WHOLE_BYTES = 256 << 20
"""Files up to this size are hashed whole."""
END_BYTES = 8 << 20
"""Of a larger file: this much of its head and of its tail ..."""
SAMPLE_BYTES = 256 << 10
"""... and blocks of this size ..."""
SAMPLES = 64
"""... this many, evenly spaced in between."""


def file_fingerprint(path: Path) -> str:
    """Name of a file's content, wherever the file lies and whatever it is called.

    A file of at most 256 MiB counts whole. Of a larger one count its size, its first and last 8 MiB and 64 evenly
    spaced blocks of 256 KiB: half a second instead of minutes. Slides are written once and pyramids change
    throughout when they are written again, so that a real change is seen; a few bytes patched by hand in the middle
    of a large file are not.

    A folder beside the file that bears its name without the ending (the pixels of an MRXS slide) counts as well.
    """
    path = Path(path)
    companion = path.with_suffix("") if path.suffix.lower() == ".mrxs" else None
    files = sorted(companion.iterdir()) if companion is not None and companion.is_dir() else []
    return fingerprint_stream(part for file in [path, *files] if file.is_file() for part in _parts(file))


def _parts(path: Path) -> Iterator[object]:
    size = path.stat().st_size
    yield size
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            while block := file.read(END_BYTES):
                yield block
            return
        yield file.read(END_BYTES)
        stride = (size - 2 * END_BYTES) // SAMPLES
        for number in range(SAMPLES):
            file.seek(END_BYTES + number * stride)
            yield file.read(SAMPLE_BYTES)
        file.seek(size - END_BYTES)
        yield file.read(END_BYTES)
