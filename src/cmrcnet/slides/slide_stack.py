"""Several slides as one, above each other: what a table with one row a slide is paired with.

Each slide is one spot of the stack, whose image features are the mean over its tissue. So a table of patients goes
through the same training, bank, prediction and evaluation as a table of spots, and the rows that retrieval finds are
patients.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cmrcnet.errors import BadOption, ScaleError, TooFew
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import WHITE, Slide, known_scale, scales_differ
from cmrcnet.slides.tissue import find_tissue, patch_grid
from cmrcnet.storage.hashing import fingerprint

GAP_UM = 500.0
"""White between two slides, wider than any patch reaches."""


class SlideStack:
    """Slides of one scale, one below the other.

    Pixels are read at level 0 only, so it is meant for slides that were exported at the scale of the patches.

    Parameters
    ----------
    slides : sequence of Slide
        Of one scale.
    name : str
        Used in messages and reports.

    Raises
    ------
    TooFew, ScaleError
        No slide; slides of different or unknown scale.

    Examples
    --------
    >>> from cmrcnet import ArraySlide
    >>> stack = SlideStack([ArraySlide(np.zeros((40, 50, 3), np.uint8), 10.0, name) for name in "ab"], "both")
    >>> stack.width_px, stack.height_px, stack.top_px
    (50, 130, (0, 90))
    """

    def __init__(self, slides: Sequence[Slide], name: str) -> None:
        if not slides:
            raise TooFew("slides in the stack", 0, 1, "name at least one slide")
        self.slides, self.name = tuple(slides), name
        self.mpp: float | None = known_scale(self.slides[0])
        self.downsamples: tuple[float, ...] = (1.0,)
        for slide in self.slides:
            first = self.slides[0]
            if scales_differ(known_scale(slide), known_scale(first)):
                raise ScaleError(
                    f"{slide.name} shows {slide.mpp:.4g} um per px and {first.name} {first.mpp:.4g}; slides of one "
                    "table need one scale, so export them at the same."
                )
        tops, gap = [0], round(GAP_UM / known_scale(self.slides[0]))
        for slide in self.slides[:-1]:
            tops.append(tops[-1] + slide.height_px + gap)
        self.top_px = tuple(tops)
        self.width_px = max(slide.width_px for slide in self.slides)
        self.height_px = tops[-1] + self.slides[-1].height_px

    def read(self, x: int, y: int, width: int, height: int, level: int = 0) -> np.ndarray:
        """See `Slide.read`; level 0 only, white between and beside the slides."""
        if level != 0:
            raise BadOption("level", level, want=f"0, the only level of {self.name}")
        region = np.full((height, width, 3), WHITE, np.uint8)
        for slide, top in zip(self.slides, self.top_px, strict=True):
            first, last = max(y, top), min(y + height, top + slide.height_px)
            if last > first:
                region[first - y : last - y] = slide.read(x, first - top, width, last - first)
        return region

    def fingerprint(self) -> str:
        """Hash of the slides in their order."""
        return fingerprint("stack", [slide.fingerprint() for slide in self.slides])

    def close(self) -> None:
        """Close every slide that can be closed."""
        for slide in self.slides:
            close = getattr(slide, "close", None)  # a slide in memory has nothing to close
            if close is not None:
                close()

    def spots(self, names: Sequence[str], *, pitch_um: float = 100.0) -> Spots:
        """One spot a slide, whose members are a grid over its tissue.

        Parameters
        ----------
        names : sequence of str
            One a slide, all different.
        pitch_um : float
            Distance of the locations that are averaged.

        Raises
        ------
        TooFew
            A slide without tissue.
        """
        members = []
        for slide, top in zip(self.slides, self.top_px, strict=True):
            grid = patch_grid(slide, find_tissue(slide), pitch_um=pitch_um).centre_px
            members.append(grid + np.array([0, top]))
        centres = np.array([each.mean(axis=0) for each in members])
        return Spots(tuple(names), centres, pitch_um, tuple(members))
