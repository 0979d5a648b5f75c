"""A tile shows the pixels of its place, whatever level they come from."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from cmrcnet.errors import ScaleError
from cmrcnet.slides.slide import ArraySlide
from cmrcnet.viewer import tiles as room
from cmrcnet.viewer.tiles import SlideTiles


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


class Pyramid(ArraySlide):
    """A slide with a second level, four times coarser, that counts what is read of each."""

    def __init__(self, pixels: np.ndarray) -> None:
        super().__init__(pixels, 0.5, "pyramid")
        height, width = (side // 4 for side in pixels.shape[:2])
        self.coarse = (
            pixels[: 4 * height, : 4 * width].reshape(height, 4, width, 4, 3).mean(axis=(1, 3)).astype(np.uint8)
        )
        self.downsamples = (1.0, 4.0)
        self.reads: list[int] = []

    def read(self, x, y, width, height, level=0):
        self.reads.append(level)
        if level == 0:
            return super().read(x, y, width, height)
        return ArraySlide(self.coarse, 2.0).read(x // 4, y // 4, width, height)


def test_the_deepest_tiles_are_the_slides_own_pixels():
    pixels = noise(700, 520)
    tiles = SlideTiles(ArraySlide(pixels, 0.5))
    assert tiles.deepest == 2  # 256 * 2 ** 2 holds 700
    np.testing.assert_array_equal(tiles.tile(2, 1, 1), pixels[256:512, 256:512])
    edge = tiles.tile(2, 2, 2)
    np.testing.assert_array_equal(edge[:8, :188], pixels[512:520, 512:700])
    assert (edge[8:] == 255).all() and (edge[:, 188:] == 255).all()


def test_a_coarse_tile_is_cut_from_the_level_that_fits():
    slide = Pyramid(np.repeat(np.repeat(noise(160, 160), 8, axis=0), 8, axis=1))  # 1280 px, in blocks of 8
    tiles = SlideTiles(slide)
    tile = tiles.tile(1, 0, 0)  # deepest 3: four pixels of the slide a pixel
    assert set(slide.reads) == {1}
    np.testing.assert_array_equal(tile, slide.coarse[:256, :256])


def test_a_slide_without_levels_gets_an_overview_that_agrees_with_it(monkeypatch):
    monkeypatch.setattr(room, "OVERVIEW_PX", 128)
    pixels = np.full((600, 600, 3), 200, np.uint8)
    pixels[:, 256:] = 40
    whole = SlideTiles(ArraySlide(pixels, 0.5)).tile(0, 0, 0)  # 4 px a pixel, where the overview has 8
    assert abs(int(whole[60, 30, 0]) - 200) <= 1 and abs(int(whole[60, 100, 0]) - 40) <= 1
    assert (whole[155:, :] == 255).all()  # beyond 600 / 4


def test_tiles_are_kept_up_to_a_number_and_blank_beyond_the_slide(monkeypatch):
    monkeypatch.setattr(room, "KEPT", 2)
    slide = Pyramid(noise(700, 520))
    tiles = SlideTiles(slide)
    first = tiles.jpeg(2, 0, 0)
    count = len(slide.reads)
    assert tiles.jpeg(2, 0, 0) == first and len(slide.reads) == count
    tiles.jpeg(2, 1, 0)
    tiles.jpeg(2, 2, 0)
    tiles.jpeg(2, 0, 0)
    assert len(slide.reads) == count + 3  # the first was dropped
    assert np.asarray(Image.open(io.BytesIO(tiles.jpeg(2, 3, 3)))).min() == 255


def test_a_slide_of_unknown_scale_is_refused():
    with pytest.raises(ScaleError, match="does not say how many micrometres"):
        SlideTiles(ArraySlide(noise(20, 20)))
