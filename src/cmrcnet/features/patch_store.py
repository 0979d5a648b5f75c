"""Patches of a section on disk, for encoders that are trained: pixels are mapped, never all held."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cmrcnet.features.patch_names import place_name
from cmrcnet.progress import metered
from cmrcnet.slides.patches import crop_patches
from cmrcnet.slides.slide import PatchScale, Slide
from cmrcnet.storage.cache import TokenCache


class PatchStore:
    """Cuts the patches of a section once and maps them ever after; memory does not grow with the number of slides.

    Parameters
    ----------
    folder : Path
        Usually that of a `TokenCache`, whose limit then covers both.
    most_bytes : int, optional
        See `TokenCache`.
    """

    def __init__(self, folder: Path, most_bytes: int | None = None) -> None:
        self._shelves = TokenCache(folder, most_bytes)

    @classmethod
    def beside(cls, cache: TokenCache) -> PatchStore:
        """The store that shares a token cache's folder and limit."""
        return cls(cache.folder, cache.most_bytes)

    def patches(self, slide: Slide, centre_px: np.ndarray, scale: PatchScale) -> np.ndarray:
        """The patches around each centre, cut now or long ago.

        Parameters
        ----------
        slide : Slide
        centre_px : array, shape (spots, 2)
            x, y in level-0 pixels.
        scale : PatchScale

        Returns
        -------
        numpy.memmap, shape (spots, size_px, size_px, 3), uint8
            Read-only.

        Raises
        ------
        ScaleError, NoSpace, Unwritable
        """
        centres = np.asarray(centre_px, np.float64).reshape(-1, 2)
        shape = (len(centres), scale.size_px, scale.size_px, 3)
        name = place_name(slide, centres, scale)
        found = self._shelves.get("patches", name, shape, np.uint8)
        if found is None:
            found = self._shelves.put("patches", name, shape, np.uint8, _cut(slide, centres, scale))
        return found


def _cut(slide: Slide, centres: np.ndarray, scale: PatchScale) -> Iterator[np.ndarray]:
    with metered(f"cut {slide.name}", len(centres), "patches") as meter:
        for block in crop_patches(slide, centres, scale):
            yield block
            meter.advance(len(block))
