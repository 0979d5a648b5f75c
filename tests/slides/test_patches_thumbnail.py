"""A slide made small equals the plain mean of its pixels, by blocks or at once, from any level."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cmrcnet.errors import BadOption
from cmrcnet.slides import patches as ours
from cmrcnet.slides.patches import fitting_level, thumbnail
from cmrcnet.slides.slide import ArraySlide, open_slide

from .slide_making import halved, tissue_picture, write_tiled_pyramid

PIXELS = tissue_picture(400, 560)


def test_a_pixel_is_the_mean_of_those_that_it_covers():
    small = thumbnail(ArraySlide(PIXELS), 8)
    assert small.shape == (50, 70, 3)
    means = PIXELS.reshape(50, 8, 70, 8, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(small, means, atol=1)


@pytest.mark.parametrize("downsample", [1, 3, 7.3, 16])
@pytest.mark.parametrize("block", [16, 50, 2048])
def test_blocks_change_nothing(monkeypatch, downsample, block):
    monkeypatch.setattr(ours, "BLOCK_PX", 10**6)
    whole = thumbnail(ArraySlide(PIXELS), downsample).astype(int)
    monkeypatch.setattr(ours, "BLOCK_PX", block)
    assert abs(thumbnail(ArraySlide(PIXELS), downsample) - whole).max() <= 1


def test_what_reaches_over_the_edge_is_white():
    small = thumbnail(ArraySlide(np.zeros((100, 100, 3), np.uint8)), 80)
    assert small.shape == (2, 2, 3)
    assert small[..., 0].tolist() == [[0, 191], [191, pytest.approx(239, abs=1)]]  # 1/4 black, 1/16 black


def test_a_level_serves_as_well_as_level_0(tmp_path):
    slide = open_slide(write_tiled_pyramid(tmp_path / "a.tif", PIXELS))
    assert slide.downsamples == (1, 2, 4)
    for downsample in (2, 3, 8):
        found, want = (thumbnail(one, downsample).astype(int) for one in (slide, ArraySlide(PIXELS)))
        wrong, moved = abs(found - want).mean(), abs(found[1:] - want[:-1]).mean()
        # 3 does not divide into pixels of the level of 2
        assert wrong < moved / 5 if downsample == 3 else wrong < 0.5
    np.testing.assert_array_equal(thumbnail(slide, 4), halved(PIXELS, 2))


def test_places_agree_between_slide_and_thumbnail():
    pixels = np.full((2000, 3000, 3), 255, np.uint8)
    pixels[1200:1300, 2500:2600] = 0
    small = thumbnail(ArraySlide(pixels), 7.7)
    dark = (255 - small[..., 0].astype(float)) / 255 * 7.7**2  # level-0 pixels of the square in each
    assert dark.sum() == pytest.approx(100 * 100, rel=0.01)
    rows, columns = (np.arange(side) + 0.5 for side in dark.shape)
    assert (dark.sum(axis=1) @ rows / dark.sum() * 7.7) == pytest.approx(1250, abs=0.5)
    assert (dark.sum(axis=0) @ columns / dark.sum() * 7.7) == pytest.approx(2550, abs=0.5)


def test_the_level_that_fits():
    class Levels:
        downsamples = (1.0, 4.0, 16.02)

    wishes = {0.5: 0, 1: 0, 3.9: 0, 4: 1, 15: 1, 16: 2, 500: 2}
    assert {wish: fitting_level(Levels, wish) for wish in wishes} == wishes


def test_a_thumbnail_is_not_larger_than_the_slide():
    with pytest.raises(BadOption, match=r"downsample is 0.5; wanted 1 or more"):
        thumbnail(ArraySlide(PIXELS), 0.5)


def test_memory_is_that_of_a_block(monkeypatch):
    monkeypatch.setattr(ours, "BLOCK_PX", 64)
    slide, seen = ArraySlide(PIXELS), []
    read = slide.read
    monkeypatch.setattr(slide, "read", lambda *region: seen.append(region[2:4]) or read(*region))
    thumbnail(slide, 5)
    assert len(seen) > 50 and max(max(size) for size in seen) <= 66


def test_pillow_agrees():
    obvious = Image.fromarray(PIXELS).resize((112, 80), Image.Resampling.BOX)
    assert abs(thumbnail(ArraySlide(PIXELS), 5).astype(int) - np.asarray(obvious)).max() <= 1
