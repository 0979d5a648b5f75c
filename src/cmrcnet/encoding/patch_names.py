"""The name of the patches at some places of a slide, known without cutting them again."""

from __future__ import annotations

import inspect
from functools import cache
from importlib.metadata import version

import numpy as np

from cmrcnet.fingerprint import fingerprint
from cmrcnet.tissue import patches, thumbnail
from cmrcnet.tissue import slide as slide_reading
from cmrcnet.tissue.scale import PatchScale
from cmrcnet.tissue.slide import Slide


def place_name(slide: Slide, centre_px: np.ndarray, scale: PatchScale) -> str:
    """Name of "these places on this slide, cut by this code": the same name means the same patches."""
    return fingerprint(
        slide.fingerprint(),
        slide.um_per_px,
        np.asarray(centre_px, np.float64),
        [scale.size_px, scale.um_per_px],
        _cropper(),
    )


def content_name(block_digests: list[str]) -> str:
    """Name of patches by the digests of their blocks."""
    return fingerprint("patches", block_digests)


@cache
def _cropper() -> str:
    """Name of the code that cuts patches. When it changes, what was remembered of its work is forgotten."""
    try:
        return fingerprint(*(inspect.getsource(module) for module in (patches, thumbnail, slide_reading)))
    except OSError:  # installed without sources
        return version("cmrcnet")
