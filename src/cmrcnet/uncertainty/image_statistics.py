"""What a patch looks like before any encoder or standardisation: colour, and how much detail there is of each size.

With D the optical density ``-log10((v + 1) / 256)`` of each channel, and the grey density g (mean of the channels)
halved again and again by 2 x 2 means (the Haar pyramid, Mallat 1989)::

    strength   = log mean (D_red + D_green + D_blue)
    red, blue  = mean D_red, D_blue over the mean of all three, as shares
    contrast   = log deviation of D_red - D_blue
    detail_j   = log mean square of what the j-th halving takes away        from 1 to 16 um

The default config standardises features within a slide, so that stain and scanner fall away; these numbers keep them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cmrcnet.slides.patches import crop_patches
from cmrcnet.slides.scale import PatchScale
from cmrcnet.slides.slide import Slide

LOOK = PatchScale(size_px=128, mpp=1.0)
"""One um a pixel: fine enough for nuclei, and cheap to read."""
DETAIL_UM = (1, 2, 4, 8, 16)
"""Size of a pixel before each halving."""
TRAITS = ("strength", "red", "blue", "contrast", *(f"detail_{size}_um" for size in DETAIL_UM))
"""Names of the numbers of a patch, in their order."""

_FAINT = 1e-6


def appearance(slide: Slide, centre_px: np.ndarray) -> np.ndarray:
    """The traits of the patch around each centre.

    Parameters
    ----------
    slide : Slide
    centre_px : array, shape (locations, 2)
        x, y in level-0 pixels.

    Returns
    -------
    numpy.ndarray, shape (locations, traits), float32

    Raises
    ------
    ScaleError
    """
    found = [traits_of(patches) for patches in looks(slide, centre_px)]
    return np.concatenate(found) if found else np.empty((0, len(TRAITS)), np.float32)


def looks(slide: Slide, centre_px: np.ndarray, scale: PatchScale = LOOK) -> Iterator[np.ndarray]:
    """Patches (patches, 128, 128, 3) uint8, some at a time."""
    return crop_patches(slide, centre_px, scale)


def traits_of(patches: np.ndarray) -> np.ndarray:
    """The traits of patches.

    Parameters
    ----------
    patches : array, shape (patches, side, side, 3), uint8
        The side is a multiple of 32; a pixel shows 1 um.

    Returns
    -------
    numpy.ndarray, shape (patches, traits), float32
    """
    density = -np.log10((patches.astype(np.float32) + 1) / 256)
    mean = density.mean(axis=(1, 2))
    total = mean.sum(axis=1)
    share = mean / np.maximum(total, _FAINT)[:, None]
    contrast = (density[..., 0] - density[..., 2]).std(axis=(1, 2))
    colour = [np.log(total + 1e-3), share[:, 0], share[:, 2], np.log(contrast + 1e-3)]
    return np.column_stack([*colour, *_details(density.mean(axis=3))]).astype(np.float32)


def _details(grey: np.ndarray) -> list[np.ndarray]:
    """Log mean square of what each halving takes away, one array (patches,) a size."""
    found = []
    for _ in DETAIL_UM:
        patches, height, width = grey.shape
        blocks = grey.reshape(patches, height // 2, 2, width // 2, 2)
        half = blocks.mean(axis=(2, 4))
        found.append(np.log(((blocks - half[:, :, None, :, None]) ** 2).mean(axis=(1, 2, 3, 4)) + _FAINT))
        grey = half
    return found
