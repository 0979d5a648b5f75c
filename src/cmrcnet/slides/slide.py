"""Slides: the protocol, a slide in memory, a slide in a file, `open_slide`, and which scales are believed.

It is one thing, what a slide is to all that reads it; pixel formats are in `backends` and `tiff`, the choice among them
in `decoders`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from cmrcnet.errors import BadInput, BadOption, CmrcnetWarning, ScaleError, ShapeMismatch
from cmrcnet.slides.slide_files import file_fingerprint
from cmrcnet.storage.hashing import fingerprint

PLAUSIBLE_MPP = (0.05, 10.0)
"""Micrometres per pixel that slides have. Many TIFFs hold a printer's 72 or 300 dpi (353 and 85 um per px), some files
millimetres that are called micrometres."""

LARGEST_SLIDE_MM = 200.0
"""Longest side of a slide: the largest glass for whole organs measures 150 x 200 mm."""

LARGEST_ANISOTROPY = 1.05
"""Scales of x and y that differ by more than this factor are ignored."""

NOTABLE_DISAGREEMENT = 1.1
"""A stated scale that differs from the file's own by more than this factor is warned of."""


@dataclass(frozen=True, kw_only=True)
class PatchScale:
    """Size of a patch in pixels and in micrometres: 224 px at 0.5 um per px is 112 um.

    Examples
    --------
    >>> scale = PatchScale(size_px=224, mpp=0.5)
    >>> scale.side_um, scale.side_on(0.25)
    (112.0, 448.0)
    """

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
    """Protocol of a slide: pixels that can be read by region, and their scale. It holds no expression.

    Attributes
    ----------
    name : str
    width_px, height_px : int
        Size at level 0.
    mpp : float or None
        Micrometres per level-0 pixel; None when unknown.
    downsamples : tuple of float
        Downsampling of each pyramid level, level 0 first: ``(1.0, 4.0, 16.0)``.

    Examples
    --------
    >>> from cmrcnet import synthetic_cohort
    >>> isinstance(synthetic_cohort(patients=1, spots=12).read("P1S1").slide, Slide)
    True
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

        Returns
        -------
        numpy.ndarray, shape (height, width, 3), uint8
        """
        ...

    def fingerprint(self) -> str:
        """Hash of the slide's content, the same in every run."""
        ...


GIVEN_FEATURES = ("features_of", "features_fingerprint")
"""Facts of a prediction table whose features came with the slide."""


def given_features(slide: Slide) -> dict[str, str]:
    """What a prediction table states about features that came with a slide (`FeatureSlide`); nothing for others."""
    patches: Any = getattr(slide, "patches", None)
    if patches is None:
        return {}
    return dict(zip(GIVEN_FEATURES, (patches.encoder, patches.fingerprint()), strict=True))


def known_scale(slide: Slide) -> float:
    """Micrometres per level-0 pixel of a slide; `ScaleError` when it is unknown."""
    if slide.mpp is None:
        raise ScaleError.unknown(slide.name, getattr(slide, "scale_fault", ""))
    return float(slide.mpp)


def mean_scale(x: str | float | None, y: str | float | None) -> float | None:
    """Geometric mean of the scales of x and y (text or number); None unless both are positive and nearly equal."""
    try:
        across, down = float(x or 0), float(y or 0)
    except ValueError:
        return None
    if not (0 < across < math.inf and 0 < down < math.inf):
        return None
    if max(across, down) / min(across, down) > LARGEST_ANISOTROPY:
        return None
    return across if across == down else math.sqrt(across * down)


def scale_fault(mpp: float, size_px: tuple[int, int]) -> str:
    """Say why a slide cannot have a scale: the end of a sentence, or "" for a plausible scale.

    Parameters
    ----------
    mpp : float
        Micrometres per level-0 pixel, above 0.
    size_px : tuple of int
        Width and height at level 0.

    Examples
    --------
    >>> scale_fault(0.5, (60_000, 40_000))
    ''
    >>> scale_fault(5.0, (60_000, 40_000))
    'its 60000 x 40000 px would then be 300 x 200 mm, and no slide is longer than 200 mm'
    """
    low, high = PLAUSIBLE_MPP
    if not low <= mpp <= high:
        return f"slides show {low:g} to {high:g} um per px"
    across, down = (side * mpp / 1000 for side in size_px)
    if max(across, down) > LARGEST_SLIDE_MM:
        size = f"{size_px[0]} x {size_px[1]} px would then be {across:.0f} x {down:.0f} mm"
        return f"its {size}, and no slide is longer than {LARGEST_SLIDE_MM:g} mm"
    return ""


def scales_differ(one: float, other: float) -> bool:
    """Whether two scales differ by more than `NOTABLE_DISAGREEMENT`."""
    return max(one / other, other / one) > NOTABLE_DISAGREEMENT


def refuse_other_scale(name: str, mpp: float, predicted_at: float, mend: str) -> None:
    """Refuse a scale that is more than 1 % from that of a prediction: `ScaleError`, which says to mend `mend`."""
    if not abs(mpp / predicted_at - 1) <= 0.01:
        raise ScaleError.contradicted(name, mpp, f"it was predicted at {predicted_at:.6g}", mend=mend)


class ArraySlide:
    """A slide whose pixels are in memory (or in a memory-mapped array).

    Parameters
    ----------
    pixels : array, shape (height, width, 3), uint8
    mpp : float or None
        Micrometres per pixel.
    name : str
        Used in messages and reports.

    Examples
    --------
    >>> import numpy as np
    >>> slide = ArraySlide(np.zeros((60, 80, 3), np.uint8), mpp=0.5, name="black")
    >>> slide.read(x=-1, y=0, width=3, height=2)[0, :, 0].tolist()  # white beyond the edge
    [255, 0, 0]
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
        """See `Slide.read`; an array has level 0 only. The result is a copy."""
        if level != 0:
            raise BadOption("level", level, want=f"0, the only level of {self.name}")
        return read_padded(
            *(self.width_px, self.height_px, x, y, width, height),
            lambda left, top, width, height: np.array(self._pixels[top : top + height, left : left + width]),
        )

    def fingerprint(self) -> str:
        """Hash of the pixels."""
        return fingerprint(np.ascontiguousarray(self._pixels))


def read_padded(
    columns: int, rows: int, x: int, y: int, width: int, height: int, inside: Callable[[int, int, int, int], np.ndarray]
) -> np.ndarray:
    """Read a region that may reach over the edge of an image of `columns` x `rows`; white outside.

    Parameters
    ----------
    inside : function (left, top, width, height) -> (height, width, 3) uint8
        Called at most once, for the part that lies on the image.
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
    """Interface of a file format. Construction reads the header only; the first `region` opens the pixels.

    A source can be pickled (a worker process opens the file anew) and used again after `close`.

    Attributes
    ----------
    sizes : tuple of (width, height)
        In pixels, of each pyramid level, largest first.
    mpp : float or None
        Scale of level 0 that the file itself states, plausible or not.
    """

    sizes: tuple[tuple[int, int], ...]
    mpp: float | None

    def files(self) -> tuple[Path, ...]:
        """The files that the pixels come from."""
        ...

    def region(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """Pixels (height, width, 3) of a region in pixels of `level` that lies wholly on it, or `BadInput`."""
        ...

    def close(self) -> None:
        """Release the file and the decoded pixels."""
        ...


class FileSlide(AbstractContextManager["FileSlide"]):
    """A slide read from a file by region; see `Slide`.

    Use it in a ``with`` block, or call `close`, to free its pixels early. A closed slide is opened again when it is
    read. It can be pickled.

    Parameters
    ----------
    path : Path
        The file, for messages.
    source : PixelSource
        Reads its pixels.
    mpp : float or None
        Micrometres per level-0 pixel.
    name : str
        Used in messages and reports.

    Attributes
    ----------
    file_mpp : float or None
        The plausible scale that the file itself states.
    scale_fault : str
        Why the scale that the file states is not believed: the end of a sentence, or "".
    """

    def __init__(self, path: Path, source: PixelSource, mpp: float | None, name: str) -> None:
        self.path = path
        self.name = name
        fault = "" if source.mpp is None else scale_fault(source.mpp, source.sizes[0])
        self.scale_fault = fault and f"its file says {source.mpp:g} um per px, but {fault}"
        self.file_mpp = None if fault else source.mpp
        self.mpp = self.file_mpp if mpp is None else mpp
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
        return read_padded(
            *self._source.sizes[level], left, top, width, height, lambda *part: self._source.region(level, *part)
        )

    def fingerprint(self) -> str:
        """Hash of the content of every file that the pixels come from (see `file_fingerprint`), computed once.

        Raises
        ------
        BadInput
            A file cannot be read any more.
        """
        if self._fingerprint is None:
            try:
                self._fingerprint = file_fingerprint(self._source.files())
            except OSError as error:
                raise BadInput(self.path, "a slide", f"the system refuses it ({error.strerror or error})") from error
        return self._fingerprint

    def close(self) -> None:
        """Free the pixels and the file."""
        self._source.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        scale = "unknown" if self.mpp is None else f"{self.mpp:g}"
        return f"<slide {self.name}: {self.width_px} x {self.height_px} px, {scale} um per px, {self.path}>"


def _downsample(full: tuple[int, int], size: tuple[int, int]) -> float:
    """Level-0 pixels that one pixel of a level spans.

    A level of 4,650 px under 9,301 px was made by halving: 2, not 2.0002. So a whole number is taken where it
    explains both sides, and else the mean of the two quotients (as OpenSlide does).
    """
    mean = (full[0] / size[0] + full[1] / size[1]) / 2
    whole = round(mean)
    explained = all(small in (large // whole, -(-large // whole)) for large, small in zip(full, size, strict=True))
    return float(whole) if explained else mean


before_opening: Callable[[Path], None] | None = None
"""What `open_slide` does with a file first; see `slides.decoders`."""


def open_slide(source: str | Path | np.ndarray, *, mpp: float | None = None, name: str | None = None) -> Slide:
    """Open a slide. Only its header is read; pixels are read on demand.

    Parameters
    ----------
    source : str, Path, or numpy.ndarray, shape (height, width, 3), uint8
        A whole-slide file that OpenSlide opens (SVS, NDPI, MRXS, SCN, BIF, tiled TIFF, any file of a DICOM series), an
        (OME-)TIFF, a picture (JPEG, PNG), or RGB pixels. The format is told by the content, not by the file's ending.
        Pixels are taken as stored: neither an orientation (EXIF, TIFF) nor a colour profile is applied. RGB of more
        than 8 bits is scaled to 8 by the depth that the file states.
    mpp : float, optional
        Micrometres that one level-0 pixel shows. It overrides what the file states, with a warning where that is
        another scale. Without both, `Slide.mpp` is None and whatever needs a scale raises `ScaleError`; so it is where
        the file states less than 0.05 or more than 10, or a slide longer than 200 mm.
    name : str, optional
        Name of the slide; the file's name without its ending by default.

    Returns
    -------
    Slide
        One made from a file has `close` and works in a ``with`` block.

    Raises
    ------
    MissingInput, BadInput
        The file does not exist; is truncated, no image, or no H&E slide (16-bit grey, a stack); or two decoders read
        different pixels from it. Damage inside the pixels of a file is found when they are first read.
    ScaleError
        The given scale is outside 0.05 to 10, or makes the slide longer than 200 mm.

    Warns
    -----
    CmrcnetWarning
        The given scale differs from the file's own by more than 10 %.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> file = Path(tempfile.mkdtemp()) / "C6.png"
    >>> Image.fromarray(np.full((60, 80, 3), 200, np.uint8)).save(file)
    >>> slide = open_slide(file, mpp=0.5)
    >>> slide.name, slide.width_px, slide.read(0, 0, 4, 3).shape
    ('C6', 80, (3, 4, 3))
    """
    if mpp is not None and not 0 < float(mpp) < float("inf"):
        raise BadOption("mpp", mpp, want="micrometres per pixel, above 0")
    mpp = None if mpp is None else float(mpp)
    if isinstance(source, np.ndarray):
        slide = ArraySlide(source, mpp, name or "array")
    else:
        from cmrcnet.slides.decoders import pixel_source

        path = Path(source)
        if before_opening is not None:
            before_opening(path)
        name = name or (path.stem[: -len(".ome")] if path.stem.lower().endswith(".ome") else path.stem)
        slide = FileSlide(path, pixel_source(path), mpp, name)
    if mpp is not None:
        if fault := scale_fault(mpp, (slide.width_px, slide.height_px)):
            raise ScaleError.contradicted(slide.name, mpp, fault)
        own = getattr(slide, "file_mpp", None)
        if own is not None and scales_differ(mpp, own):
            warnings.warn(
                f"{slide.name}: {mpp:g} um per px is used, as stated; its file says {own:g}. Check which is right.",
                CmrcnetWarning,
                stacklevel=2,
            )
    return slide
