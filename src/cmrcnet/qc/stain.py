"""Sections whose colour is not that of the others.

Two numbers a section: the direction of the tissue's median optical density in R, G, B (which dye, which channel order)
and its length (how strong). Each is compared with the median of the other sections; the allowance is the larger of a
fixed one and three times the cohort's usual (median) distance, so that a cohort of many laboratories accuses nobody.
Exchanged channels are told apart from another stain: the exchange that brings the colour back is tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.qc.finding import Finding

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
