"""How large is what the picture shows, by its own micrometres per pixel? And how far apart are its spots?

Dark blobs (nuclei, their clusters) answer a Laplacian of Gaussian most at their own size (Lindeberg 1998). The
strength of the answer against the size is a curve; a picture whose um per px is wrong by a factor shows the same curve
moved sideways. The curve of each section is laid on the median of the others.

Measured on 14 real sections (two organs): right ones moved by at most 0.375 octaves, those with um per px doubled by
0.625 and more, halved by 0.5 and more but for one (0.375). A blurred picture looks like a larger scale: hence a
suspicion only. The distance between spots, where the others have spots of the same diameter, is exact: a problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.qc.finding import Finding
from cmrcnet.slides.patches import crop_patches
from cmrcnet.slides.scale import PatchScale
from cmrcnet.slides.slide import Slide

if TYPE_CHECKING:
    from cmrcnet.qc.section_summary import SectionSummary

OCTAVES = np.arange(0, 9) / 2
"""Sizes looked at, as the log2 of the Gaussian's sigma in um: 1 to 16 um."""
LOOK = PatchScale(size_px=200, mpp=1.0)
PATCHES = 24
MOVES = np.arange(-20, 21) / 8
MOST_MOVED = 0.45
"""Octaves that the curve may be moved."""
FEWEST_OTHERS = 3
"""With two, an odd section moves the middle of what its sound neighbours are held against."""
PITCH_FACTOR = 1.25
"""Factor by which spots of the same diameter may lie further apart than in the other sections."""


def texture_curve(slide: Slide, centre_px: np.ndarray) -> np.ndarray:
    """Log strength of dark blobs of each size around the spots, its mean taken off.

    Parameters
    ----------
    slide : Slide
    centre_px : numpy.ndarray, shape (spots, 2)
        At most `PATCHES` of them, evenly picked, are looked at.

    Returns
    -------
    numpy.ndarray, shape (9,), float64
        For each of `OCTAVES`, the median over patches.
    """
    from scipy import ndimage

    picked = centre_px[np.unique(np.linspace(0, len(centre_px) - 1, PATCHES).astype(np.intp))]
    answers = []
    for batch in crop_patches(slide, picked, LOOK):
        for patch in batch:
            density = -np.log((patch.astype(np.float32) + 1) / 256).mean(axis=2)
            answers.append(
                [
                    (np.maximum(-s * s * ndimage.gaussian_laplace(density, s, truncate=3), 0) ** 2).mean()
                    for s in 2**OCTAVES
                ]
            )
    curve = np.log(np.median(answers, axis=0) + 1e-9)
    return curve - curve.mean()


def octaves_moved(curve: np.ndarray, reference: np.ndarray) -> float:
    """By how many octaves a curve lies to the right of (larger than) a reference: least deviation over the overlap.

    Parameters
    ----------
    curve, reference : numpy.ndarray, shape (9,)
    """
    misfit = []
    for move in MOVES:
        at = OCTAVES - move
        overlap = (at >= OCTAVES[0]) & (at <= OCTAVES[-1])
        misfit.append((curve[overlap] - np.interp(at[overlap], OCTAVES, reference)).std())
    least = np.flatnonzero(np.isclose(misfit, np.min(misfit)))
    return float(MOVES[least[np.abs(MOVES[least]).argmin()]])


def scale_findings(summaries: Sequence[SectionSummary]) -> list[Finding]:
    """Sections whose spots or nuclei have another size than those of the other sections.

    Parameters
    ----------
    summaries : sequence of SectionSummary
        At least four on pictures of their own; fewer say nothing.
    """
    found = []
    for one in summaries:
        others = [other for other in summaries if other is not one and other.slide != one.slide]
        moved, pitch = _moved(one, others), _pitch_ratio(one, others)
        if pitch is not None and max(pitch, 1 / pitch) > PITCH_FACTOR:
            found.append(
                Finding(
                    "scale",
                    (one.name,),
                    pitch,
                    PITCH_FACTOR,
                    f"Spots of {one.name} lie {one.pitch_um:.0f} um apart, {pitch:.2f} times as far as in the other "
                    "sections with spots of the same diameter; correct its mpp or its spot_diameter_um.",
                    certain=True,
                )
            )
        elif moved is not None and abs(moved) >= MOST_MOVED:
            found.append(
                Finding(
                    "scale",
                    (one.name,),
                    moved,
                    MOST_MOVED,
                    f"What the picture of {one.name} shows is {2**moved:.1f} times as large as in the other sections "
                    f"by its mpp ({moved:+.2f} octaves, {MOST_MOVED:g} allowed); check mpp, or whether the "
                    "picture is blurred or of another tissue.",
                )
            )
    return found


def _moved(one: SectionSummary, others: Sequence[SectionSummary]) -> float | None:
    if len(others) < FEWEST_OTHERS:
        return None
    return octaves_moved(one.texture, np.median([other.texture for other in others], axis=0))


def _pitch_ratio(one: SectionSummary, others: Sequence[SectionSummary]) -> float | None:
    alike = [o.pitch_um for o in others if o.pitch_um and abs(np.log(o.diameter_um / one.diameter_um)) < 0.1]
    if not one.pitch_um or len(alike) < FEWEST_OTHERS:
        return None
    return float(one.pitch_um / np.median(alike))
