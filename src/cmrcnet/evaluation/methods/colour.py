"""Plain colour of patches: what a stain alone would let anybody predict."""

from __future__ import annotations

import numpy as np

BINS = 16
"""Of each channel's histogram."""

WIDTH = 3 * (2 + BINS)
"""Numbers a patch: mean, deviation and histogram of red, green and blue."""


def colour_statistics(patches: np.ndarray) -> np.ndarray:
    """Mean, standard deviation and 16-bin histogram of each channel.

    Parameters
    ----------
    patches : array, shape (patches, height, width, 3), uint8

    Returns
    -------
    numpy.ndarray, shape (patches, 54), float32
        Three means, three deviations (population form), both as shares of 255; then the shares of pixels in 16 equal
        bins of red, of green, of blue.
    """
    pixels = patches.reshape(len(patches), -1, 3)
    mean = pixels.mean(axis=1, dtype=np.float64) / 255
    deviation = pixels.std(axis=1, dtype=np.float64) / 255
    bins = pixels.astype(np.int64) * BINS // 256
    slot = bins + BINS * np.arange(3) + 3 * BINS * np.arange(len(patches))[:, None, None]
    counts = np.bincount(slot.ravel(), minlength=len(patches) * 3 * BINS).reshape(len(patches), 3 * BINS)
    return np.concatenate([mean, deviation, counts / pixels.shape[1]], axis=1).astype(np.float32)
