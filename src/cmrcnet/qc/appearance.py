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

import numpy as np

from cmrcnet.qc.section_summary import Finding, SectionSummary
from cmrcnet.slides.patches import crop_patches
from cmrcnet.slides.slide import PatchScale, Slide

FEWEST_OTHERS = 3
"""Sections to compare with; with two, one odd section would shift the median that sound ones are compared with."""

MOST_TURNED = 8.0
"""Degrees between a section's colour and the cohort's; sound sections reach 5.7 (measured on two cohorts)."""
MOST_STRONGER = 2.0
"""Factor between a section's density and the cohort's; sound sections reach 1.64 (1 / 0.61)."""
TOLERANCE = 3.0
"""Factor of the cohort's median deviation that is tolerated."""
EXCHANGE_GAIN = 5.0
"""Degrees that an exchange of channels must bring a section nearer, to less than half its distance."""


def stain_findings(summaries: Sequence[SectionSummary]) -> list[Finding]:
    """Sections whose stain differs in colour or strength from at least three others on pictures of their own."""
    angles, factors, exchanges = np.zeros(len(summaries)), np.ones(len(summaries)), [""] * len(summaries)
    for i, one in enumerate(summaries):
        others = [other.colour for other in _on_other_slides(one, summaries)]
        if len(others) < FEWEST_OTHERS or not one.colour.any():
            continue
        direction = np.median([other / max(float(np.linalg.norm(other)), 1e-12) for other in others], axis=0)
        angles[i] = colour_angle(one.colour, direction)
        factors[i] = max(one.colour.sum(), 1e-3) / max(float(np.median([other.sum() for other in others])), 1e-3)
        orders = {order: colour_angle(one.colour[list(order)], direction) for order in permutations(range(3))}
        best = min(orders, key=lambda order: orders[order])
        if angles[i] - orders[best] >= EXCHANGE_GAIN and orders[best] <= angles[i] / 2:
            exchanges[i] = " ".join(("red", "green", "blue")[channel] for channel in best)
    most = max(MOST_TURNED, TOLERANCE * float(np.median(angles)))
    strongest = max(MOST_STRONGER, float(np.exp(TOLERANCE * np.median(np.abs(np.log(factors))))))
    found = []
    for one, angle, factor, exchange in zip(summaries, angles.tolist(), factors.tolist(), exchanges, strict=True):
        if exchange:
            sentence = (
                f"The colour channels of {one.name} look exchanged: its colour lies {angle:.0f} degrees from that of "
                f"the other sections, and fits when read in the order {exchange}; save the picture as RGB, or, where "
                "it is RGB, see whether a stain is missing."
            )
            found.append(Finding("stain", (one.name,), angle, EXCHANGE_GAIN, sentence))
        elif angle > most:
            sentence = (
                f"The colour of {one.name} lies {angle:.0f} degrees from that of the other sections ({most:.0f} "
                "allowed); look at its picture: another stain, another scanner or a strong cast."
            )
            found.append(Finding("stain", (one.name,), angle, most, sentence))
        elif max(factor, 1 / factor) > strongest:
            sentence = (
                f"{one.name} is stained {factor:.2f} times as strongly as the other sections (a factor of "
                f"{strongest:.1f} allowed); look at its picture, and leave it out if it was scanned differently."
            )
            found.append(Finding("stain", (one.name,), factor, strongest, sentence))
    return found


def colour_angle(left: np.ndarray, right: np.ndarray) -> float:
    """Degrees between two optical densities (3,)."""
    cosine = left @ right / max(float(np.linalg.norm(left) * np.linalg.norm(right)), 1e-12)
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _on_other_slides(one: SectionSummary, summaries: Sequence[SectionSummary]) -> list[SectionSummary]:
    return [other for other in summaries if other is not one and other.slide != one.slide]


OCTAVES = np.arange(0, 9) / 2
"""log2 of the Gaussian's sigma in um: blobs of 1 to 16 um."""
TEXTURE_PATCH = PatchScale(size_px=200, mpp=1.0)
PATCHES = 24
SHIFTS = np.arange(-20, 21) / 8
MOST_SHIFTED = 0.45
"""Octaves that a section's curve may be shifted."""
PITCH_FACTOR = 1.25
"""Factor by which spots of the same diameter may lie further apart than in the other sections."""


def texture_curve(slide: Slide, centre_px: np.ndarray) -> np.ndarray:
    """Log strength of dark blobs of each size around the spots, minus its mean: (9,) float64, one for each of
    `OCTAVES`.

    The median over patches at `PATCHES` or fewer, evenly picked, of the centres (spots, 2); the slide's scale must be
    known.
    """
    from scipy import ndimage

    picked = centre_px[np.unique(np.linspace(0, len(centre_px) - 1, PATCHES).astype(np.intp))]
    strengths = []
    for batch in crop_patches(slide, picked, TEXTURE_PATCH):
        for patch in batch:
            density = -np.log((patch.astype(np.float32) + 1) / 256).mean(axis=2)
            blobs = (-s * s * ndimage.gaussian_laplace(density, s, truncate=3) for s in 2**OCTAVES)
            strengths.append([(np.maximum(response, 0) ** 2).mean() for response in blobs])
    curve = np.log(np.median(strengths, axis=0) + 1e-9)
    return curve - curve.mean()


def octaves_shifted(curve: np.ndarray, reference: np.ndarray) -> float:
    """Octaves by which a texture curve (9,) lies to the right of a reference: least deviation over the overlap."""
    misfit = []
    for shift in SHIFTS:
        at = OCTAVES - shift
        overlap = (at >= OCTAVES[0]) & (at <= OCTAVES[-1])
        misfit.append((curve[overlap] - np.interp(at[overlap], OCTAVES, reference)).std())
    least = np.flatnonzero(np.isclose(misfit, np.min(misfit)))
    return float(SHIFTS[least[np.abs(SHIFTS[least]).argmin()]])


def scale_findings(summaries: Sequence[SectionSummary]) -> list[Finding]:
    """Sections whose spots or nuclei differ in size from those of at least three others on pictures of their own."""
    found = []
    for one in summaries:
        others = _on_other_slides(one, summaries)
        if len(others) < FEWEST_OTHERS:
            continue
        shifted = octaves_shifted(one.texture, np.median([other.texture for other in others], axis=0))
        alike = [o.pitch_um for o in others if o.pitch_um > 0 and abs(np.log(o.diameter_um / one.diameter_um)) < 0.1]
        comparable = one.pitch_um > 0 and len(alike) >= FEWEST_OTHERS
        pitch = float(one.pitch_um / np.median(alike)) if comparable else 1.0
        if max(pitch, 1 / pitch) > PITCH_FACTOR:
            sentence = (
                f"Spots of {one.name} lie {one.pitch_um:.0f} um apart, {pitch:.2f} times as far as in the other "
                "sections with spots of the same diameter; correct its mpp or its spot_diameter_um."
            )
            found.append(Finding("scale", (one.name,), pitch, PITCH_FACTOR, sentence, certain=True))
        elif abs(shifted) >= MOST_SHIFTED:
            sentence = (
                f"What the picture of {one.name} shows is {2**shifted:.1f} times as large as in the other sections "
                f"by its mpp ({shifted:+.2f} octaves, {MOST_SHIFTED:g} allowed); check mpp, or whether the picture "
                "is blurred or of another tissue."
            )
            found.append(Finding("scale", (one.name,), shifted, MOST_SHIFTED, sentence))
    return found
