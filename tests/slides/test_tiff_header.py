"""Sizes that a TIFF declares are held against the file before anything allocates by them."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cmrcnet.errors import BadInput
from cmrcnet.slides.slide import open_slide
from cmrcnet.slides.tiff_header import check_tiff

from .slide_making import tissue_picture, write_aperio, write_ome_pyramid, write_tiled_pyramid

PIXELS = tissue_picture(256, 384)
WIDTH, LENGTH, BITS, PHOTOMETRIC, STRIPS, SAMPLES, ROWS = 256, 257, 258, 262, 273, 277, 278
PLANAR, TILE_WIDTH, TILE_LENGTH, TILES = 284, 322, 323, 324
HUGE = 0x7FFFFFF0


def strips(path: Path) -> Path:
    tifffile.imwrite(path, PIXELS, photometric="rgb", metadata=None, compression="deflate", rowsperstrip=256)
    return path


TILED = {
    "tiled": lambda folder: write_tiled_pyramid(folder / "a.tif", PIXELS),
    "Aperio": lambda folder: write_aperio(folder / "a.svs", PIXELS),
    "OME": lambda folder: write_ome_pyramid(folder / "a.ome.tif", PIXELS),
}


def damage(
    path: Path, code: int, *, value: int | None = None, count: int | None = None, kind: int | None = None
) -> Path:
    """Overwrite the first value, the number of values, or the type of a tag of the first page."""
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        tag, order = tiff.pages[0].tags[code], tiff.byteorder
    if kind is not None:
        struct.pack_into(f"{order}H", content, tag.offset + 2, kind)
    if count is not None:
        struct.pack_into(f"{order}I", content, tag.offset + 4, count)
    if value is not None:
        wide = kind or int(tag.dtype)
        struct.pack_into(order + {3: "H", 4: "I"}[wide], content, tag.valueoffset, value)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("make", TILED)
@pytest.mark.parametrize(
    ("code", "change", "why"),
    [
        (TILE_WIDTH, {"value": 0}, "tile width is 0"),
        (TILE_LENGTH, {"value": 0}, "tile height is 0"),
        (TILE_WIDTH, {"value": HUGE, "kind": 4}, "GB each, which no slide has"),
        (TILE_LENGTH, {"value": HUGE, "kind": 4}, "GB each, which no slide has"),
        (WIDTH, {"value": 0}, "width is 0"),
        (WIDTH, {"value": HUGE, "kind": 4}, "which are .* tiles or strips, and lists"),
        (LENGTH, {"value": HUGE, "kind": 4}, "which are .* tiles or strips, and lists"),
        (SAMPLES, {"value": 0}, "samples per pixel is 0"),
        (SAMPLES, {"value": 0xFFFF}, "bytes of pixels in one part where at most"),
        (BITS, {"count": HUGE}, "truncated"),
        (TILES, {"count": HUGE}, "truncated"),
        (TILES, {"count": 1, "value": 16}, "which are .* tiles or strips, and lists 1"),
        (TILE_WIDTH, {"kind": 5}, "truncated|no whole number"),
        (TILE_WIDTH, {"kind": 1}, "no whole number"),
        (PLANAR, {"value": 7}, "laid out as 7"),
    ],
)
def test_an_impossible_size_is_refused_in_one_sentence(tmp_path, make, code, change, why):
    path = TILED[make](tmp_path)
    check_tiff(path)
    damage(path, code, **change)
    tracemalloc.start()
    try:
        with pytest.raises(BadInput, match=why):
            open_slide(path)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("code", "change", "why"),
    [
        (ROWS, {"value": 0}, "rows per strip is 0"),
        (WIDTH, {"value": HUGE, "kind": 4}, "strips of .* GB each, which no slide has"),
        (LENGTH, {"value": 0xFFFF}, "tiles or strips, and lists 1"),
        (PHOTOMETRIC, {"value": 3}, "its header is damaged .colours 3"),
        (SAMPLES, {"value": 1}, "its header is damaged .colours 2 with 1 samples"),
    ],
)
def test_an_impossible_strip_is_refused(tmp_path, code, change, why):
    with pytest.raises(BadInput, match=why):
        open_slide(damage(strips(tmp_path / "a.tif"), code, **change))


def test_a_strip_that_declares_far_more_than_is_stored_is_refused(tmp_path):
    path = damage(damage(strips(tmp_path / "a.tif"), LENGTH, value=60_000, kind=4), ROWS, value=60_000, kind=4)
    damage(path, WIDTH, value=20_000, kind=4)
    with pytest.raises(BadInput, match=r"declares 3,600,000,000 bytes of pixels in one part where at most \d+"):
        open_slide(path)


def test_a_chain_of_pages_that_bites_its_tail_ends(tmp_path):
    path = strips(tmp_path / "a.tif")
    content = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", content, 4)
    (tags,) = struct.unpack_from("<H", content, first)
    struct.pack_into("<I", content, first + 2 + 12 * tags, first)
    path.write_bytes(content)
    check_tiff(path)


def test_a_white_slide_that_deflate_shrinks_a_thousandfold_is_sound(tmp_path):
    white = np.full((3000, 3000, 3), 255, np.uint8)
    tifffile.imwrite(
        tmp_path / "a.tif", white, photometric="rgb", metadata=None, compression="deflate", rowsperstrip=3000
    )
    assert (open_slide(tmp_path / "a.tif").read(100, 100, 50, 50) == 255).all()
