"""The scale of a slide: how files spell it, and which values are believed, whoever states them."""

from __future__ import annotations

import math

UNIT_UM = {
    "m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "nm": 1e-3, "Å": 1e-4,
    "in": 25_400.0,
}  # fmt: skip
"""Micrometres in a unit of length, as OME and ImageJ spell them (both code points of the Greek letter)."""

PLAUSIBLE_MPP = (0.05, 10.0)
"""Micrometres per pixel that slides have. Many TIFFs hold a printer's 72 or 300 dpi (353 and 85 um per px), some files
millimetres that are called micrometres."""

LARGEST_SLIDE_MM = 200.0
"""Longest side of a slide: the largest glass for whole organs measures 150 x 200 mm."""

LARGEST_ANISOTROPY = 1.05
"""Scales of x and y that differ by more than this factor are ignored."""

NOTABLE_DISAGREEMENT = 1.1
"""A stated scale that differs from the file's own by more than this factor is warned of."""


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
