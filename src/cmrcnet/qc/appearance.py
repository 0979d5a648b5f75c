"""Appearance: sections whose colour or scale differs from the other sections.

Colour: the direction of the tissue's median optical density in R, G, B (which dye, which channel order) and its length
(how strong) are each compared with the median of the other sections. The tolerance is the larger of a fixed one and
three times the cohort's median distance, so that multi-centre cohorts raise no false findings. Exchanged channels are
told apart from another stain: the exchange that restores the colour is searched.

Scale: dark blobs (nuclei, their clusters) respond to a Laplacian of Gaussian most at their own size (Lindeberg 1998).
The response against the size is a curve; in a picture whose um per px is wrong by a factor the same curve is shifted.
The curve of each section is registered to the median of the others. Measured on 14 real sections (two organs): right
ones shifted by at most 0.375 octaves, those with um per px doubled by 0.625 and more, halved by 0.5 and more but for
one (0.375). A blurred picture looks like a larger scale, so this is a suspicion only. The distance between spots, where
the others have spots of the same diameter, is exact: a problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.qc.section_summary import Finding
from cmrcnet.slides.patches import crop_patches
from cmrcnet.slides.slide import PatchScale, Slide

if TYPE_CHECKING:
    from cmrcnet.qc.section_summary import SectionSummary

MOST_TURNED = 8.0
"""Degrees between a section's colour and the cohort's; sound sections reach 5.7 (measured on two cohorts)."""
MOST_STRONGER = 2.0
"""Factor between a section's density and the cohort's; sound sections reach 1.64 (1 / 0.61)."""
USUAL = 3.0
"""Times the median distance of the cohort's sections."""
EXCHANGE_GAIN = 5.0
"""Degrees that an exchange of channels must bring a section nearer, to less than half its distance."""
FEWEST_OTHERS = 3
"""With two, an odd section moves the middle of what its sound neighbours are held against."""


def stain_findings(summaries: Sequence[SectionSummary]) -> list[Finding]:
    """Sections stained in another colour or strength than the others.

    Parameters
    ----------
    summaries : sequence of SectionSummary
        At least four on pictures of their own; fewer say nothing.
    """
    found = []
    turned, stronger = _deviations(summaries)
    most = max(MOST_TURNED, USUAL * float(np.median(turned)))
    strongest = max(MOST_STRONGER, float(np.exp(USUAL * np.median(np.abs(np.log(stronger))))))
    for one, angle, factor in zip(summaries, turned, stronger, strict=True):
        exchange = _exchange(one, summaries, angle)
        if exchange:
            found.append(
                Finding(
                    "stain",
                    (one.name,),
                    angle,
                    EXCHANGE_GAIN,
                    f"The colour channels of {one.name} look exchanged: its colour lies {angle:.0f} degrees from that "
                    f"of the other sections, and fits when read in the order {exchange}; save the picture as RGB, or, "
                    "where it is RGB, see whether a stain is missing.",
                )
            )
        elif angle > most:
            found.append(
                Finding(
                    "stain",
                    (one.name,),
                    angle,
                    most,
                    f"The colour of {one.name} lies {angle:.0f} degrees from that of the other sections ({most:.0f} "
                    "allowed); look at its picture: another stain, another scanner or a strong cast.",
                )
            )
        elif max(factor, 1 / factor) > strongest:
            found.append(
                Finding(
                    "stain",
                    (one.name,),
                    factor,
                    strongest,
                    f"{one.name} is stained {factor:.2f} times as strongly as the other sections (a factor of "
                    f"{strongest:.1f} allowed); look at its picture, and leave it out if it was scanned differently.",
                )
            )
    return found


def colour_angle(left: np.ndarray, right: np.ndarray) -> float:
    """Degrees between two densities (3,)."""
    cosine = left @ right / max(float(np.linalg.norm(left) * np.linalg.norm(right)), 1e-12)
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _deviations(summaries: Sequence[SectionSummary]) -> tuple[np.ndarray, np.ndarray]:
    """Angle to, and factor of density over, the median of the sections on other pictures; 0 and 1 where too few."""
    angles, factors = np.zeros(len(summaries)), np.ones(len(summaries))
    for i, one in enumerate(summaries):
        others = [o.colour for o in summaries if o is not one and o.slide != one.slide]
        if len(others) < FEWEST_OTHERS or not one.colour.any():
            continue
        angles[i] = colour_angle(one.colour, _direction(others))
        factors[i] = max(one.colour.sum(), 1e-3) / max(float(np.median([o.sum() for o in others])), 1e-3)
    return angles, factors


def _direction(colours: Sequence[np.ndarray]) -> np.ndarray:
    return np.median([colour / max(float(np.linalg.norm(colour)), 1e-12) for colour in colours], axis=0)


def _exchange(one: SectionSummary, summaries: Sequence[SectionSummary], angle: float) -> str:
    """The order of channels in which a section's colour fits the others, or nothing."""
    others = [other.colour for other in summaries if other is not one and other.slide != one.slide]
    if len(others) < FEWEST_OTHERS or not one.colour.any():
        return ""
    reference = _direction(others)
    angles = {order: colour_angle(one.colour[list(order)], reference) for order in permutations(range(3))}
    best = min(angles, key=angles.get)
    if angle - angles[best] < EXCHANGE_GAIN or angles[best] > angle / 2:
        return ""
    return " ".join(("red", "green", "blue")[channel] for channel in best)


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
