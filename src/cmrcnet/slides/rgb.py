"""Turn what a file stores into RGB."""

from __future__ import annotations

import numpy as np

from cmrcnet.slides.slide import WHITE


def over_white(colour: np.ndarray, alpha: np.ndarray, premultiplied: bool = False) -> np.ndarray:
    """Lay partly transparent pixels on white.

    Parameters
    ----------
    colour : numpy.ndarray, shape (height, width, 3), uint8
    alpha : numpy.ndarray, shape (height, width), uint8
        255 is opaque.
    premultiplied : bool
        Whether `colour` was multiplied by alpha already (TIFF: "associated alpha").

    Returns
    -------
    numpy.ndarray, shape (height, width, 3), uint8
    """
    if alpha.min(initial=WHITE) == WHITE:
        return np.ascontiguousarray(colour)
    share = alpha[..., None].astype(np.uint32)
    own = colour.astype(np.uint32) * (WHITE if premultiplied else share)
    mixed = (own + WHITE * (WHITE - share) + WHITE // 2) // WHITE
    return np.minimum(mixed, WHITE).astype(np.uint8)


def grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    """Repeat one channel (height, width) three times."""
    return np.repeat(grey[..., None], 3, axis=2)
