"""Open and read slides in a child process first: a decoder that crashes on a damaged slide ends the child only.

Decoders are C libraries; on bytes made to mislead them some abort, fault or allocate all memory. The child opens a
slide as `open_slide` does and reads an overview and some regions. It is started once, serves many slides, and is
started anew after it has died. A slide that passes may still hold damage where the child has not read.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from cmrcnet.errors import BadInput, CmrcnetError
from cmrcnet.slides.slide import open_slide
from cmrcnet.storage.child_process import ChildProcess, serve_lines

MOST_SECONDS = 300.0
"""A slide that takes longer to open and read in part is broken."""
REGIONS = 3
"""Regions along each side of a slide that are read."""
REGION_PX, OVERVIEW_PX = 256, 1024

_CHILD = "from cmrcnet.slides.probe import serve; serve()"


class SlideProbe:
    """A child process that tries slides. Use it in a ``with`` block.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> file = Path(tempfile.mkdtemp()) / "a.png"
    >>> Image.new("RGB", (64, 48)).save(file)
    >>> with SlideProbe() as probe:
    ...     probe.check(file)
    """

    def __init__(self) -> None:
        self._process = ChildProcess(_CHILD)

    def __enter__(self) -> SlideProbe:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.end()

    def check(self, path: Path) -> None:
        """Open a slide and read parts of it in the child.

        Raises
        ------
        BadInput
            The slide is refused, ends the child, or takes longer than `MOST_SECONDS`.
        """
        try:
            sentence = json.loads(self._process.ask(json.dumps(str(path)), MOST_SECONDS))
        except ChildProcessError as error:
            why = f"the process that tried to decode it {error}; the file is damaged"
            raise BadInput(path, "a slide", why) from error
        if sentence:
            raise BadInput.from_sentence(sentence)


def serve() -> None:
    """In the child: answer each path by the sentence of its error, or ""."""
    warnings.simplefilter("ignore")
    serve_lines(_fault)


def _fault(line: str) -> str:
    path, sentence = Path(json.loads(line)), ""
    try:
        _read_parts(path)
    except CmrcnetError as error:
        sentence = str(error)
    except Exception as error:  # of a library that was not foreseen: the slide is broken, whatever it is
        sentence = str(BadInput(path, "a slide", f"{type(error).__name__}: {error}"))
    return json.dumps(sentence)


def _read_parts(path: Path) -> None:
    """Open a slide; read the middle of its smallest level, and regions spread over level 0."""
    slide = open_slide(path)
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
