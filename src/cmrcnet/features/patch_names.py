"""The name of the patches at some locations of a slide, known without cutting them again."""

from __future__ import annotations

import inspect
from functools import cache
from importlib.metadata import version

import numpy as np

from cmrcnet.slides import patches
from cmrcnet.slides.slide import PatchScale, Slide, white_outside
from cmrcnet.storage.hashing import fingerprint


def place_name(slide: Slide, centre_px: np.ndarray, scale: PatchScale) -> str:
    """Name of "these locations on this slide, cut by this code": the same name means the same patches."""
    return fingerprint(
        slide.fingerprint(),
        slide.mpp,
        np.asarray(centre_px, np.float64),
        [scale.size_px, scale.mpp],
        _cropper(),
    )


def content_name(block_digests: list[str]) -> str:
    """Name of patches by the digests of their blocks."""
    return fingerprint("patches", block_digests)


@cache
def _cropper() -> str:
    """Name of the code that cuts patches. When it changes, what was remembered of its work is forgotten."""
    try:
        return fingerprint(*(inspect.getsource(code) for code in (patches, white_outside)))
    except OSError:  # installed without sources
        return version("cmrcnet")
