"""What a file says of its own scale, where it can be believed."""

from __future__ import annotations

import math

UNIT_UM = {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "nm": 1e-3, "Å": 1e-4}
"""Micrometres in a unit of length, as OME and ImageJ spell them (both code points of the Greek letter)."""

PLAUSIBLE_MPP = (0.05, 10.0)
"""Resolution tags often hold a printer's 72 or 300 dots per inch (353 and 85 um per px): those are no scale."""

LARGEST_ANISOTROPY = 1.05
"""Scales of x and y that differ by more than this factor are not a scale."""


def mean_scale(x: object, y: object) -> float | None:
    """One scale from those of x and y (text or number); None unless both are positive and nearly the same."""
    try:
        across, down = float(x), float(y)
    except (TypeError, ValueError):
        return None
    if not (0 < across < math.inf and 0 < down < math.inf):
        return None
    if max(across, down) / min(across, down) > LARGEST_ANISOTROPY:
        return None
    return across if across == down else math.sqrt(across * down)


def plausible_scale(mpp: float | None) -> float | None:
    """The scale, if a microscope or a slide scanner could have made it; else None."""
    low, high = PLAUSIBLE_MPP
    return mpp if mpp is not None and low <= mpp <= high else None
