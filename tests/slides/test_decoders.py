"""The decoder of a slide is chosen by comparison: pixels are as stored, or the slide is refused."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from cmrcnet.errors import BadInput
from cmrcnet.slides import decoders
from cmrcnet.slides.backends import OpenSlidePixels
from cmrcnet.slides.slide import open_slide
from cmrcnet.slides.tiff import TiffPixels

from .slide_making import halved, tissue_picture, write_aperio, write_tiled_pyramid

PIXELS = tissue_picture(512, 768)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "jpeg"])
def test_tiles_are_read_as_stored_whatever_the_orientation_tag(tmp_path, orientation, compression):
    """OpenSlide turns every tile of an uncompressed, LZW or deflated TIFF by its orientation tag."""
    path = write_tiled_pyramid(
        tmp_path / "a.tif", PIXELS, compression=compression, extratags=[(274, "H", 1, orientation, True)]
    )
    slide = open_slide(path)
    assert (slide.width_px, slide.height_px, slide.downsamples) == (768, 512, (1, 2, 4))
    for level in range(3):
        stored = halved(PIXELS, level).astype(int)
        found = slide.read(0, 0, *stored.shape[1::-1], level=level)
        assert np.abs(found - stored).mean() < (3 if compression == "jpeg" else 1e-9)


def test_an_oriented_aperio_slide_keeps_its_scale(tmp_path):
    path = write_aperio(tmp_path / "a.svs", PIXELS, extratags=[(274, "H", 1, 3, True)])
    slide = open_slide(path)
    assert slide.mpp == 0.499
    np.testing.assert_array_equal(slide.read(0, 0, 768, 512), PIXELS)


@pytest.mark.parametrize("codec", ["webp", "jpeg2000", "jpegxl", "zstd", "png"])
def test_tiles_that_openslide_cannot_decode_are_read_by_tifffile(tmp_path, codec):
    lossless = {"compressionargs": {"lossless": True}} if codec in ("webp", "jpegxl") else {}
    path = write_tiled_pyramid(tmp_path / "a.tif", PIXELS, compression=codec, **lossless)
    slide = open_slide(path, mpp=0.5)
    np.testing.assert_array_equal(slide.read(130, 50, 300, 200), PIXELS[50:250, 130:430])


@pytest.fixture
def flipping(monkeypatch) -> None:
    """OpenSlide as it would be if it mirrored every tile of 128 px, without an orientation tag to explain it."""
    read = OpenSlidePixels.region

    def region(self, level, left, top, width, height):
        columns = np.arange(left, left + width)
        turned = columns // 128 * 128 + 127 - columns % 128
        whole = read(self, level, 0, 0, *self.sizes[level])
        return whole[top : top + height, np.minimum(turned, self.sizes[level][0] - 1)]

    monkeypatch.setattr(OpenSlidePixels, "region", region)
    decoders._decoder.cache_clear()
    yield
    decoders._decoder.cache_clear()


def test_the_decoder_whose_levels_agree_is_believed(tmp_path, flipping):
    slide = open_slide(write_tiled_pyramid(tmp_path / "a.tif", PIXELS))
    np.testing.assert_array_equal(slide.read(0, 0, 768, 512), PIXELS)


def test_two_decoders_that_disagree_without_a_judge_are_refused(tmp_path, flipping):
    with pytest.raises(
        BadInput, match=r"OpenSlide and tifffile decode different pixels .* of 255\); save it again|as a"
    ):
        open_slide(write_tiled_pyramid(tmp_path / "a.tif", PIXELS, levels=1))


def test_a_slide_of_openslide_alone_is_refused_when_its_overview_shows_something_else(tmp_path, flipping, monkeypatch):
    monkeypatch.setattr("openslide.OpenSlide.detect_format", lambda path: "another scanner")
    with pytest.raises(BadInput, match="its overview does not show what its full resolution shows"):
        open_slide(write_tiled_pyramid(tmp_path / "a.tif", PIXELS))


def test_levels_agree_or_do_not_or_cannot_tell(tmp_path):
    sound = write_tiled_pyramid(tmp_path / "a.tif", PIXELS)
    glass = write_tiled_pyramid(tmp_path / "b.tif", np.full((512, 512, 3), 240, np.uint8))
    single = write_tiled_pyramid(tmp_path / "c.tif", PIXELS, levels=1)
    assert decoders.levels_agree(TiffPixels(sound)) is decoders.levels_agree(OpenSlidePixels(sound)) is True
    assert decoders.levels_agree(TiffPixels(glass)) is decoders.levels_agree(TiffPixels(single)) is None
    with tifffile.TiffWriter(tmp_path / "d.tif") as tiff:
        options = {"tile": (128, 128), "photometric": "rgb", "metadata": None}
        tiff.write(PIXELS, **options)
        tiff.write(halved(PIXELS[:, ::-1]), subfiletype=1, **options)
    assert decoders.levels_agree(OpenSlidePixels(tmp_path / "d.tif")) is False


def test_the_comparison_is_made_once_for_a_file(tmp_path, monkeypatch):
    calls = []
    compare = decoders._difference
    monkeypatch.setattr(decoders, "_difference", lambda *pair: calls.append(1) or compare(*pair))
    path = write_tiled_pyramid(tmp_path / "a.tif", PIXELS)
    for _ in range(3):
        open_slide(path)
    assert len(calls) == 1
