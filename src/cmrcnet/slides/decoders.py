"""Choose what decodes a slide, and check it: no decoder is trusted alone where another, or the slide itself, can tell.

OpenSlide turns every tile of a TIFF with an orientation tag, reduces 16-bit values to 8 without notice and knows no OME
metadata: such files go to tifffile. Of every other TIFF a few tiles are decoded by both, and of a slide that OpenSlide
alone reads, an overview is compared with the full resolution. A disagreement is settled by that comparison, or the
slide is refused.

Decoders are C libraries; on bytes made to mislead them some abort, fault or allocate all memory. `slides_probed_first`
has each slide opened and read in part by a child process, which may die of it. A slide that passes may still hold
damage where the child has not read.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np

from cmrcnet.errors import BadInput, CmrcnetError
from cmrcnet.slides import slide as slides
from cmrcnet.slides.backends import OpenSlidePixels, PicturePixels
from cmrcnet.slides.slide import PixelSource, Slide, open_slide
from cmrcnet.slides.slide_files import check_dicom, require_file
from cmrcnet.slides.tiff import TiffPixels, beyond_openslide
from cmrcnet.slides.tiff_header import TIFF_SIGNATURES, check_tiff
from cmrcnet.storage.child_process import ChildProcess, serve_files

SAME_GEOMETRY = ("generic-tiff", "aperio")
"""Formats whose level 0 tifffile lays out as OpenSlide does. Other scanners overlap tiles or place several areas."""
TILES = 5
"""Tiles of a level that both decode."""
COMPARED_PX = 512
"""Side of a region that is compared, at most."""
MOST_SECONDS = 0.1
"""Processor time after which no further tile is compared."""
LARGEST_DIFFERENCE = 8.0
"""Mean absolute difference of the grey levels of a tile: two sound JPEG decoders differ by 2 at most."""
FINEST_OVERVIEW, OVERVIEW_PX = 16, 1024
"""The coarsest level up to this downsampling is compared with level 0; this many of its pixels are searched."""
WINDOWS = 3
LEAST_CONTRAST = 6.0
"""Standard deviation of grey of a window that tells anything."""
LEAST_CORRELATION = 0.4
"""Median over the windows; sound slides have 0.9 and more, slides with turned tiles 0.2 and less."""

PROBE_SECONDS = 300.0
"""Processor time; a slide that takes longer to open and read in part is broken."""
REGIONS = 3
"""Regions along each side of a slide that are read."""
REGION_PX = 256


def pixel_source(path: Path) -> PixelSource:
    """Open the pixels of a file by the decoder that reads them rightly; the choice is made once for a file.

    Raises
    ------
    MissingInput, BadInput
        The file does not exist, cannot be read by the user or the system, is no slide, or its decoders disagree.
    """
    try:
        require_file(path, "The slide", kind="a slide")
        found = path.stat()
        return _decoder(path, found.st_size, found.st_mtime_ns)(path)
    except CmrcnetError:
        raise
    except OSError as error:
        raise BadInput(path, "a slide", f"the system refuses it ({error.strerror or error})") from error
    except Exception as error:  # whatever a library raises for damaged bytes
        raise BadInput(path, "a slide", f"its header is damaged ({type(error).__name__}: {error})") from error


@lru_cache(maxsize=1024)
def _decoder(path: Path, size: int, changed: int) -> Callable[[Path], PixelSource]:
    import openslide

    with path.open("rb") as file:
        head = file.read(4)
    if not head:
        raise BadInput(path, "a slide", "it is empty")
    is_tiff = head in TIFF_SIGNATURES
    if is_tiff:
        check_tiff(path)
    vendor = openslide.OpenSlide.detect_format(str(path))
    if vendor == "dicom":
        check_dicom(path)
    if vendor is None:
        return TiffPixels if is_tiff else PicturePixels
    if not is_tiff:
        return _openslide_alone(path)
    if vendor not in SAME_GEOMETRY:
        return _openslide_alone(path)
    return TiffPixels if beyond_openslide(path) else _better(path)


def _openslide_alone(path: Path) -> type[OpenSlidePixels]:
    """OpenSlide, if what it reads agrees with itself."""
    source = OpenSlidePixels(path)
    try:
        if levels_agree(source) is False:
            why = "its overview does not show what its full resolution shows: its levels are of different slides, or"
            hint = "OpenSlide decodes one wrongly; export it again with the scanner's own software"
            raise BadInput(path, "a slide", f"{why} {hint}")
    finally:
        source.close()
    return OpenSlidePixels


def _better(path: Path) -> Callable[[Path], PixelSource]:
    """OpenSlide where it agrees with tifffile, or the one of them that reads the file, or that agrees with itself."""
    try:
        ours = TiffPixels(path)
    except BadInput as error:
        try:
            return _openslide_alone(path)
        except BadInput:
            raise error from None
    try:
        theirs = OpenSlidePixels(path)
    except BadInput:
        return TiffPixels
    try:
        difference = _difference(ours, theirs)
        if difference <= LARGEST_DIFFERENCE:
            return OpenSlidePixels
        if difference == np.inf:  # OpenSlide cannot decode what tifffile can
            return TiffPixels
        sound = {TiffPixels: levels_agree(ours), OpenSlidePixels: levels_agree(theirs)}
        right = [decoder for decoder, agrees in sound.items() if agrees]
        if len(right) == 1 and None not in sound.values():
            return right[0]
        why = f"OpenSlide and tifffile decode different pixels from it (mean difference {difference:.0f} of 255)"
        raise BadInput(path, "a slide", f"{why}; save it as a tiled pyramidal TIFF with JPEG compression")
    finally:
        ours.close()
        theirs.close()


def _difference(ours: TiffPixels, theirs: OpenSlidePixels) -> float:
    """Largest mean difference of a tile between two decoders; infinite where only ours decodes a tile."""
    largest, start = 0.0, time.thread_time()
    for level, size in enumerate(ours.sizes):
        if size not in theirs.sizes:
            continue
        for left, top, width, height in ours.tiles(level, TILES if level == 0 else 1):
            region = (left, top, min(width, COMPARED_PX), min(height, COMPARED_PX))
            try:
                expected = ours.region(level, *region).astype(np.int16)
            except BadInput:
                continue  # damaged, or a codec that OpenSlide alone has
            try:
                found = theirs.region(theirs.sizes.index(size), *region)
            except BadInput:
                return np.inf
            largest = max(largest, float(np.abs(expected - found).mean()))
            if time.thread_time() - start > MOST_SECONDS:
                return largest
    return largest


def levels_agree(source: PixelSource) -> bool | None:
    """Whether an overview of a slide shows what its level 0 shows; None where nothing tells.

    Parameters
    ----------
    source : PixelSource
        At most three windows of 512 px are read at level 0, where the overview has most contrast.
    """
    from PIL import Image

    steps = [source.sizes[0][0] / width for width, _ in source.sizes]
    coarse = [level for level in range(1, len(steps)) if 1.5 < steps[level] <= FINEST_OVERVIEW]
    if not coarse:
        return None
    level = max(coarse, key=steps.__getitem__)
    width, height = (min(length, OVERVIEW_PX) for length in source.sizes[level])
    side = min(int(COMPARED_PX / steps[level]), width, height)
    left, top = (source.sizes[level][0] - width) // 2, (source.sizes[level][1] - height) // 2
    try:
        overview = source.region(level, left, top, width, height).mean(axis=2)
        corners = [(y, x) for y in range(0, height - side + 1, side) for x in range(0, width - side + 1, side)]
        contrast = {(y, x): overview[y : y + side, x : x + side].std() for y, x in corners}
        chosen = sorted((c for c in corners if contrast[c] >= LEAST_CONTRAST), key=contrast.__getitem__)[-WINDOWS:]
        found = []
        for y, x in chosen:
            x0, y0 = int((left + x) * steps[level]), int((top + y) * steps[level])
            across, down = (
                min(int(side * steps[level]), end - at) for end, at in zip(source.sizes[0], (x0, y0), strict=True)
            )
            grey = (
                Image.fromarray(source.region(0, x0, y0, across, down))
                .convert("L")
                .resize((side, side), Image.Resampling.BOX)
            )
            low, high = overview[y : y + side, x : x + side].ravel(), np.asarray(grey, np.float64).ravel()
            found.append(np.corrcoef(low, high)[0, 1] if high.std() > 0 else 0.0)
    except BadInput:
        return None  # damage is reported where it is read
    return bool(np.median(found) >= LEAST_CORRELATION) if found else None


@contextmanager
def slides_probed_first() -> Iterator[None]:
    """While the block runs, `open_slide` has each file tried in the child process first.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> file = Path(tempfile.mkdtemp()) / "a.png"
    >>> Image.new("RGB", (64, 48)).save(file)
    >>> with slides_probed_first():
    ...     open_slide(file).width_px
    64
    """
    before, slides.before_opening = slides.before_opening, probe_slide
    try:
        yield
    finally:
        slides.before_opening = before


_child = ChildProcess("from cmrcnet.slides.decoders import serve; serve()")


def probe_slide(path: Path) -> None:
    """Open a slide and read parts of it in the child; what opening refuses in a sentence is left to the caller.

    Raises
    ------
    BadInput
        The slide ends the child, takes longer than `PROBE_SECONDS`, or is damaged where it was read.
    """
    try:
        sentence = _child.try_file(path, PROBE_SECONDS)
    except ChildProcessError as error:
        raise BadInput(path, "a slide", f"the process that tried to decode it {error}; the file is damaged") from error
    except OSError:  # said when it is opened
        return
    if sentence:
        raise BadInput.from_sentence(sentence)


def serve() -> None:
    """In the child: answer each path by the sentence of its error, or ""."""
    warnings.simplefilter("ignore")
    serve_files(_fault)


def _fault(path: Path) -> str:
    try:
        try:
            slide = open_slide(path)
        except CmrcnetError:  # the caller meets it again
            return ""
        _read_parts(slide)
    except CmrcnetError as error:
        return str(error)
    except Exception as error:  # of a library that was not foreseen: the slide is broken, whatever it is
        return str(BadInput(path, "a slide", f"{type(error).__name__}: {error}"))
    return ""


def _read_parts(slide: Slide) -> None:
    """Read the middle of its smallest level, and regions spread over level 0."""
    last = len(slide.downsamples) - 1
    step = slide.downsamples[last]
    across, down = (min(OVERVIEW_PX, max(1, int(side / step))) for side in (slide.width_px, slide.height_px))
    slide.read(
        int((slide.width_px - across * step) / 2), int((slide.height_px - down * step) / 2), across, down, level=last
    )
    for row in range(REGIONS):
        for column in range(REGIONS):
            x = max(0, slide.width_px - REGION_PX) * column // (REGIONS - 1)
            y = max(0, slide.height_px - REGION_PX) * row // (REGIONS - 1)
            slide.read(x, y, REGION_PX, REGION_PX)
