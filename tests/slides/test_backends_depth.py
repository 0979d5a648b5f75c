"""RGB of 12 and 16 bits has the right brightness, or is refused."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest
import tifffile

from cmrcnet.errors import BadInput
from cmrcnet.slides.slide import open_slide

from .slide_making import tissue_picture

PIXELS = tissue_picture(300, 400)
FULL = PIXELS.astype(np.uint16) * 257
TWELVE = (PIXELS.astype(np.uint32) * 4095 // 255).astype(np.uint16)
TILED = {"photometric": "rgb", "tile": (128, 128), "metadata": None}
MAX_SAMPLE = [(281, "H", 3, (4095, 4095, 4095), True)]


def png(path, values):
    path.write_bytes(imagecodecs.png_encode(values))


def jp2(path, values, bits=None):
    path.write_bytes(imagecodecs.jpeg2k_encode(values, level=0, codecformat="JP2", bitspersample=bits))


def ome(path, values, **metadata):
    tifffile.imwrite(path, values, ome=True, photometric="rgb", tile=(128, 128), metadata={"axes": "YXS", **metadata})


def packed(path):
    """Three bytes for two samples; tifffile writes such strips only when they are packed already."""
    one, two = TWELVE.reshape(-1, 2).T
    strip = np.stack([one >> 4, (one & 15) << 4 | two >> 8, two & 255], axis=1).astype(np.uint8).tobytes()
    options = {"bitspersample": 12, "photometric": "rgb", "metadata": None, "rowsperstrip": 300}
    tifffile.imwrite(path, iter([strip]), shape=TWELVE.shape, dtype=np.uint16, compression="none", **options)


SCALED = {
    "full 16-bit PNG": lambda path: png(path, FULL),
    "full 16-bit RGBA PNG": lambda path: png(path, np.dstack([FULL, np.full(FULL.shape[:2], 65535, np.uint16)])),
    "full 16-bit JP2": lambda path: jp2(path, FULL),
    "JP2 that states 12 bits": lambda path: jp2(path, TWELVE, 12),
    "full 16-bit tiles": lambda path: tifffile.imwrite(path, FULL, compression="lzw", **TILED),
    "full 16-bit tiles, big-endian": lambda path: tifffile.imwrite(path, FULL, byteorder=">", **TILED),
    "full 16-bit strips": lambda path: tifffile.imwrite(path, FULL, photometric="rgb", metadata=None),
    "full 16-bit big-endian strip": lambda path: tifffile.imwrite(path, FULL, photometric="rgb", byteorder=">"),
    "full 16-bit planes": lambda path: tifffile.imwrite(
        path, np.moveaxis(FULL, 2, 0), photometric="rgb", planarconfig="separate", metadata=None
    ),
    "full 16-bit OME": lambda path: ome(path, FULL),
    "MaxSampleValue 4095": lambda path: tifffile.imwrite(path, TWELVE, extratags=MAX_SAMPLE, **TILED),
    "OME of 12 significant bits": lambda path: ome(path, TWELVE, SignificantBits=12),
    "packed 12 bits": packed,
}


@pytest.mark.parametrize("kind", SCALED)
def test_stated_or_full_depth_is_scaled(tmp_path, kind):
    path = tmp_path / ("a.tif" if "ome" not in kind.lower() else "a.ome.tif")
    SCALED[kind](path)
    slide = open_slide(path)
    np.testing.assert_array_equal(slide.read(0, 0, 400, 300), PIXELS)
    np.testing.assert_array_equal(slide.read(390, 290, 20, 20)[:10, :10], PIXELS[290:, 390:])
    assert (slide.read(390, 290, 20, 20)[10:] == 255).all()


UNKNOWN = {
    "12 bits in a 16-bit PNG": lambda path: png(path, TWELVE),
    "12 bits in a 16-bit JP2": lambda path: jp2(path, TWELVE),
    "12 bits in 16-bit tiles": lambda path: tifffile.imwrite(path, TWELVE, compression="deflate", **TILED),
    "14 bits in 16-bit strips": lambda path: tifffile.imwrite(path, TWELVE * 4, photometric="rgb", metadata=None),
    "12 bits in OME of 16": lambda path: ome(path, TWELVE, SignificantBits=16),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_unknown_depth_is_refused_with_what_to_do(tmp_path, kind):
    UNKNOWN[kind](tmp_path / "a.tif")
    with pytest.raises(BadInput, match=r"samples of 16 bits reach only \d+ of 65535, .* convert it to 8-bit RGB, or"):
        open_slide(tmp_path / "a.tif").read(0, 0, 400, 300)


def test_a_sample_above_the_stated_depth_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", FULL, extratags=MAX_SAMPLE, **TILED)
    with pytest.raises(BadInput, match="above the 4095 that it states as the largest"):
        open_slide(tmp_path / "a.tif").read(0, 0, 400, 300)
