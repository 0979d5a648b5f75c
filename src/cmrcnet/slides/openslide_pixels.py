"""Whole-slide formats through OpenSlide: SVS, NDPI, MRXS, SCN, BIF, DICOM, tiled pyramidal TIFF."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cmrcnet.errors import BadInput
from cmrcnet.slides.rgb import over_white
from cmrcnet.slides.stored_scale import mean_scale, plausible_scale


def openslide_vendor(path: Path) -> str | None:
    """Which of OpenSlide's formats a file is ("aperio", "generic-tiff", ...), or None."""
    import openslide

    return openslide.OpenSlide.detect_format(str(path))


class OpenSlidePixels:
    """Pixels through OpenSlide; see `PixelSource`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as slide:
            self.sizes = tuple((int(width), int(height)) for width, height in slide.level_dimensions)
            facts = slide.properties
            scale = mean_scale(facts.get("openslide.mpp-x"), facts.get("openslide.mpp-y"))
            # Of a plain TIFF OpenSlide derives it from the resolution tags.
            plain = facts.get("openslide.vendor") == "generic-tiff"
            self.mpp = plausible_scale(scale) if plain else scale
        self._slide = None

    def region(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """See `PixelSource.region`."""
        import openslide

        if self._slide is None:
            self._slide = self._open()
        step = self._slide.level_downsamples[level]
        try:
            tile = self._slide.read_region((round(left * step), round(top * step)), level, (width, height))
        except openslide.OpenSlideError as error:
            self.close()  # OpenSlide refuses every later read once one has failed
            raise BadInput(self.path, "a slide", f"its pixels cannot be decoded ({error})") from error
        pixels = np.asarray(tile)
        return over_white(pixels[..., :3], pixels[..., 3])

    def close(self) -> None:
        """See `PixelSource.close`."""
        if self._slide is not None:
            self._slide.close()
            self._slide = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_slide": None}

    def _open(self):
        import openslide

        try:
            return openslide.OpenSlide(str(self.path))
        except openslide.OpenSlideError as error:
            raise BadInput(self.path, "a slide", f"OpenSlide says: {error}") from error
