"""Shifts that are planted on sound sections, to learn where each one moves the look of a patch.

A wrong scale is planted by reading patches that show half or twice as much; blur and exchanged channels on the
patches themselves. What a shift does to a section's median traits is much the same on every section, so that a new
slide can be asked: would it look like the bank's if this shift were taken away?
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cmrcnet.slides.scale import PatchScale
from cmrcnet.slides.slide import Slide
from cmrcnet.uncertainty.image_statistics import LOOK, looks, traits_of

MOST_LOCATIONS = 64
"""Locations of a section on which shifts are planted."""


@dataclass(frozen=True)
class Shift:
    """One kind of shift.

    Parameters
    ----------
    name : str
        One word, for tables.
    looks_like : str
        The end of the sentence "It looks as if ...".
    scale : PatchScale
        What is read in place of `LOOK`.
    change : callable
        Patches (patches, side, side, 3) uint8 in and out.
    """

    name: str
    looks_like: str
    scale: PatchScale = LOOK
    change: Callable[[np.ndarray], np.ndarray] = lambda patches: patches


def _blurred(sigma_um: float) -> Callable[[np.ndarray], np.ndarray]:
    def blur(patches: np.ndarray) -> np.ndarray:
        from scipy.ndimage import gaussian_filter

        return gaussian_filter(patches, (0, sigma_um / LOOK.mpp, sigma_um / LOOK.mpp, 0))

    return blur


def _in_order(*channels: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda patches: patches[..., list(channels)]


SHIFTS = (
    Shift(
        "too large",
        "its mpp were about twice too large: cells show at twice their size; check the scale",
        LOOK.showing(LOOK.side_um / 2),
    ),
    Shift(
        "too small",
        "its mpp were about half of what is true: cells show at half their size; check the scale",
        LOOK.showing(LOOK.side_um * 2),
    ),
    Shift("blur", "it were out of focus or saved at a lower resolution; scan it again", change=_blurred(2.0)),
    Shift("strong blur", "it were far out of focus or greatly enlarged; scan it again", change=_blurred(4.0)),
    Shift("red-blue", "its red and blue channels were exchanged (BGR read as RGB)", change=_in_order(2, 1, 0)),
    Shift("red-green", "its red and green channels were exchanged", change=_in_order(1, 0, 2)),
    Shift("green-blue", "its green and blue channels were exchanged", change=_in_order(0, 2, 1)),
)
"""The kinds, in the order of `moves_of`."""


def moves_of(slide: Slide, centre_px: np.ndarray) -> np.ndarray:
    """By how much each shift moves the median traits of a section: (shifts, traits) float64.

    Parameters
    ----------
    slide : Slide
    centre_px : array, shape (locations, 2)
        At most `MOST_LOCATIONS` of them, evenly picked, are looked at.
    """
    picked = evenly(centre_px, MOST_LOCATIONS)
    plain = np.concatenate(list(looks(slide, picked)))
    sound = np.median(traits_of(plain), axis=0)
    found = []
    for shift in SHIFTS:
        patches = plain if shift.scale == LOOK else np.concatenate(list(looks(slide, picked, shift.scale)))
        found.append(np.median(traits_of(shift.change(patches)), axis=0) - sound)
    return np.array(found, np.float64)


def evenly(centre_px: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the locations, evenly picked in their order."""
    rows = np.unique(np.linspace(0, len(centre_px) - 1, min(most, len(centre_px))).astype(np.intp))
    return np.asarray(centre_px, np.float64)[rows]
