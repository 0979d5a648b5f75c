"""Open and read slides in a child process first: a decoder that crashes on a damaged slide ends the child only.

Decoders are C libraries; on bytes made to mislead them some abort, fault or allocate all memory. The child opens a
slide as `open_slide` does and reads an overview and some regions. It is started once, serves many slides, and is
started anew after it has died. A slide that passes may still hold damage where the child has not read.
"""

from __future__ import annotations

import atexit
import json
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from cmrcnet.errors import BadInput, CmrcnetError
from cmrcnet.slides import slide as slides
from cmrcnet.slides.slide import Slide, open_slide
from cmrcnet.storage.child_process import ChildProcess, serve_lines

MOST_SECONDS = 300.0
"""A slide that takes longer to open and read in part is broken."""
REGIONS = 3
"""Regions along each side of a slide that are read."""
REGION_PX, OVERVIEW_PX = 256, 1024

_lock = threading.Lock()
_known_sound: set[tuple[str, int, int]] = set()
"""Files (path, size, time of last change) that the child has read."""


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


@cache
def _child() -> ChildProcess:
    """The process that tries each slide; it ends with this one."""
    child = ChildProcess("from cmrcnet.slides.probe import serve; serve()")
    atexit.register(child.end)
    return child


def probe_slide(path: Path) -> None:
    """Open a slide and read parts of it in the child; what opening refuses in a sentence is left to the caller.

    Raises
    ------
    BadInput
        The slide ends the child, takes longer than `MOST_SECONDS`, or is damaged where it was read.
    """
    try:
        state = path.stat()
    except OSError:  # said when it is opened
        return
    identity = (str(path.resolve()), state.st_size, state.st_mtime_ns)
    with _lock:
        if identity in _known_sound:
            return
        try:
            sentence = json.loads(_child().ask(json.dumps(str(path)), MOST_SECONDS))
        except ChildProcessError as error:
            why = f"the process that tried to decode it {error}; the file is damaged"
            raise BadInput(path, "a slide", why) from error
        if sentence:
            raise BadInput.from_sentence(sentence)
        _known_sound.add(identity)


def serve() -> None:
    """In the child: answer each path by the sentence of its error, or ""."""
    warnings.simplefilter("ignore")
    serve_lines(_fault)


def _fault(line: str) -> str:
    path, sentence = Path(json.loads(line)), ""
    try:
        try:
            slide = open_slide(path)
        except CmrcnetError:  # the caller meets it again
            return json.dumps("")
        _read_parts(slide)
    except CmrcnetError as error:
        sentence = str(error)
    except Exception as error:  # of a library that was not foreseen: the slide is broken, whatever it is
        sentence = str(BadInput(path, "a slide", f"{type(error).__name__}: {error}"))
    return json.dumps(sentence)


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
