"""Slides of true formats, compared with what OpenSlide, tifffile and Pillow read by themselves."""

from __future__ import annotations

import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from cmrcnet.errors import BadInput, BadOption, CmrcnetWarning, MissingInput, ScaleError
from cmrcnet.slides.slide import ArraySlide, Slide, known_scale, open_slide

from .slide_making import halved, tissue_picture, write_aperio, write_ome_pyramid, write_tiled_pyramid

PIXELS = tissue_picture(401, 603)


def save_png(path: Path) -> Path:
    Image.fromarray(PIXELS).save(path)
    return path


def save_strips(path: Path, **options) -> Path:
    tifffile.imwrite(path, PIXELS, photometric="rgb", metadata=None, **options)
    return path


LOSSLESS = {
    "png": lambda folder: save_png(folder / "a.png"),
    "bmp": lambda folder: save_png(folder / "a.bmp"),
    "tiled pyramid (OpenSlide)": lambda folder: write_tiled_pyramid(folder / "a.tif", PIXELS),
    "tiled pyramid, LZW": lambda folder: write_tiled_pyramid(folder / "a.tif", PIXELS, compression="lzw"),
    "Aperio": lambda folder: write_aperio(folder / "a.svs", PIXELS),
    "OME": lambda folder: write_ome_pyramid(folder / "a.ome.tif", PIXELS),
    "OME, one page a channel": lambda folder: write_ome_pyramid(folder / "a.ome.tif", PIXELS, planar=True),
    "one uncompressed strip": lambda folder: save_strips(folder / "a.tif"),
    "LZW strips": lambda folder: save_strips(folder / "a.tif", compression="lzw", predictor=True, rowsperstrip=7),
    "one deflated strip": lambda folder: save_strips(folder / "a.tif", compression="deflate", rowsperstrip=401),
    "big-endian BigTIFF": lambda folder: save_strips(folder / "a.tif", byteorder=">", bigtiff=True, rowsperstrip=50),
    "packbits tiles": lambda folder: save_strips(folder / "a.tif", compression="packbits", tile=(64, 32)),
}


@pytest.fixture(params=LOSSLESS)
def lossless(request, tmp_path) -> Path:
    return LOSSLESS[request.param](tmp_path)


def test_every_region_of_every_format_is_that_of_the_picture(lossless):
    slide, array = open_slide(lossless), ArraySlide(PIXELS)
    assert isinstance(slide, Slide)
    assert (slide.width_px, slide.height_px, slide.name) == (603, 401, "a")
    for region in [(0, 0, 603, 401), (130, 250, 40, 17), (602, 400, 1, 1), (-5, -9, 30, 30), (590, 390, 50, 50)]:
        np.testing.assert_array_equal(slide.read(*region), array.read(*region), err_msg=str(region))
    assert (slide.read(-100, 2000, 10, 20) == 255).all()


def test_width_comes_first_in_calls_and_second_in_arrays(lossless):
    assert open_slide(lossless).read(x=3, y=5, width=64, height=32).shape == (32, 64, 3)


def test_a_slide_can_be_closed_read_again_and_sent_to_another_process(lossless):
    slide = open_slide(lossless, mpp=0.5 if lossless.suffix == ".svs" else 0.26)
    before = slide.read(10, 20, 30, 40)
    sent = pickle.loads(pickle.dumps(slide))
    np.testing.assert_array_equal(sent.read(10, 20, 30, 40), before)
    assert (sent.name, sent.mpp, sent.downsamples) == (slide.name, slide.mpp, slide.downsamples)
    with slide:
        pass
    np.testing.assert_array_equal(slide.read(10, 20, 30, 40), before)


def test_a_picture_must_not_be_written_through(lossless):
    slide = open_slide(lossless)
    slide.read(10, 20, 30, 40)[:] = 0
    np.testing.assert_array_equal(slide.read(10, 20, 30, 40), PIXELS[20:60, 10:40])


@pytest.mark.parametrize(
    ("write", "downsamples"),
    [(write_tiled_pyramid, (1, 2, 4)), (write_aperio, (1, 4)), (write_ome_pyramid, (1, 2, 4))],
)
def test_levels_start_where_they_say(tmp_path, write, downsamples):
    slide = open_slide(write(tmp_path / "a.tif", PIXELS[:400, :600]))
    assert slide.downsamples == downsamples
    for level, step in enumerate(downsamples):
        small = halved(PIXELS[:400, :600], {1: 0, 2: 1, 4: 2}[step])
        for x, y in [(0, 0), (37, 20), (60, 55)]:
            found = slide.read(x * step, y * step, 30, 25, level)
            np.testing.assert_array_equal(found, small[y : y + 25, x : x + 30])
        white = slide.read(-2 * step, -3 * step, 10, 10, level)
        assert (white[:3] == 255).all() and (white[:, :2] == 255).all()
        np.testing.assert_array_equal(white[3:, 2:], small[:7, :8])
    with pytest.raises(BadOption, match="wanted a level of a, 0 to"):
        slide.read(0, 0, 5, 5, len(downsamples))


@pytest.mark.parametrize("write", [write_tiled_pyramid, write_ome_pyramid])
def test_halving_an_odd_number_of_pixels_still_halves(tmp_path, write):
    slide = open_slide(write(tmp_path / "a.tif", PIXELS))
    assert slide.downsamples == (1, 2, 4)  # not 603 / 301 = 2.003
    for level in (1, 2):
        small, step = halved(PIXELS, level), 2**level
        found = slide.read(100 * step, 50 * step, 40, 40, level).astype(int)
        wrong = abs(found - small[50:90, 100:140])
        if write is write_ome_pyramid:
            assert wrong.max() == 0
        else:  # OpenSlide locations a level by 603 / 301 and so shifts it by a part of a pixel
            next_pixel = abs(found - small[50:90, 101:141])
            assert wrong.mean() < 4 and wrong.mean() < next_pixel.mean() / 3


@pytest.mark.parametrize("strip_rows", [17, 1024])
def test_openslide_itself_reads_the_same(tmp_path, monkeypatch, strip_rows):
    import openslide

    monkeypatch.setattr("cmrcnet.slides.backends.STRIP_ROWS", strip_rows)
    path = write_aperio(tmp_path / "a.svs", PIXELS)
    theirs = openslide.OpenSlide(str(path))
    assert theirs.properties["openslide.vendor"] == "aperio"
    for level, place in [(0, (31, 8)), (1, (40, 80))]:
        region = np.asarray(theirs.read_region(place, level, (50, 60)))[..., :3]
        np.testing.assert_array_equal(open_slide(path).read(*place, 50, 60, level), region)


# --- lossy and unusual pixels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_is_what_pillow_makes_of_it(tmp_path, mode):
    path = tmp_path / "a.jpg"
    Image.fromarray(PIXELS).convert(mode).save(path, quality=90)
    plain = np.asarray(Image.open(path).convert("RGB"))
    np.testing.assert_array_equal(open_slide(path).read(0, 0, 603, 401), plain)


def test_an_exif_orientation_is_not_applied(tmp_path):
    """Spots refer to the pixels as stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    slide = open_slide(tmp_path / "a.png")
    assert (slide.width_px, slide.height_px) == (603, 401)
    np.testing.assert_array_equal(slide.read(0, 0, 603, 401), PIXELS)


def test_a_palette_picture_and_a_palette_tiff(tmp_path):
    few = Image.fromarray(PIXELS).quantize(40)
    plain = np.asarray(few.convert("RGB"))
    few.save(tmp_path / "a.png")
    few.save(tmp_path / "b.tif")
    for name in ("a.png", "b.tif"):
        np.testing.assert_array_equal(open_slide(tmp_path / name).read(0, 0, 603, 401), plain)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_transparent_pixels_are_white(tmp_path, name):
    alpha = np.full((401, 603), 255, np.uint8)
    alpha[:100] = 0
    alpha[100:200] = 128
    rgba = np.dstack([PIXELS, alpha])
    if name.endswith("png"):
        Image.fromarray(rgba).save(tmp_path / name)
    else:
        tifffile.imwrite(tmp_path / name, rgba, photometric="rgb", extrasamples=["unassalpha"], rowsperstrip=20)
    found = open_slide(tmp_path / name).read(0, 0, 603, 401)
    assert (found[:100] == 255).all()
    np.testing.assert_array_equal(found[200:], PIXELS[200:])
    np.testing.assert_allclose(found[100:200], PIXELS[100:200] * (128 / 255) + 255 * (127 / 255), atol=1)


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_grey_is_repeated(tmp_path, photometric):
    grey = PIXELS[..., 1]
    tifffile.imwrite(tmp_path / "a.tif", grey, photometric=photometric, rowsperstrip=30, compression="lzw")
    want = grey if photometric == "minisblack" else 255 - grey
    found = open_slide(tmp_path / "a.tif").read(0, 0, 603, 401)
    np.testing.assert_array_equal(found, np.repeat(want[..., None], 3, axis=2))


def test_a_planar_tiff(tmp_path):
    planes = np.moveaxis(PIXELS, 2, 0)
    options = {"photometric": "rgb", "planarconfig": "separate", "metadata": None}
    tifffile.imwrite(tmp_path / "mapped.tif", planes, **options)
    tifffile.imwrite(tmp_path / "tiles.tif", planes, tile=(64, 64), compression="zstd", **options)
    for name in ("mapped.tif", "tiles.tif"):
        np.testing.assert_array_equal(open_slide(tmp_path / name).read(7, 9, 300, 200), PIXELS[9:209, 7:307])


@pytest.mark.parametrize("tile", [None, (128, 128)])
def test_jpeg_inside_a_tiff_is_what_tifffile_makes_of_it(tmp_path, tile):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, PIXELS, photometric="rgb", compression="jpeg", tile=tile, ome=True, metadata={"axes": "YXS"})
    plain = tifffile.imread(path)
    found = open_slide(path).read(0, 0, 603, 401)
    assert abs(found.astype(int) - plain).max() <= 1
    assert abs(found.astype(int) - PIXELS).mean() < 4  # RGB, not YCbCr


def test_a_missing_tile_is_white(tmp_path):
    """Scanners leave tiles without tissue out."""
    path = tmp_path / "a.ome.tif"
    tiles = (None if number == 1 else PIXELS[:128, :128].copy() for number in range(20))
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(tiles, shape=(401, 603, 3), dtype=np.uint8, tile=(128, 128), photometric="rgb", compression="zlib")
    slide = open_slide(path)
    assert (slide.read(128, 0, 128, 128) == 255).all()
    np.testing.assert_array_equal(slide.read(0, 0, 128, 128), PIXELS[:128, :128])


def test_the_label_beside_a_slide_is_not_taken_for_it(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(PIXELS[:50, :60], photometric="rgb", metadata=None)
        tiff.write(PIXELS, photometric="rgb", metadata=None)
    slide = open_slide(tmp_path / "a.tif")
    assert (slide.width_px, slide.height_px) == (603, 401)
    np.testing.assert_array_equal(slide.read(5, 6, 100, 100), PIXELS[6:106, 5:105])


def test_a_file_is_known_by_its_content(tmp_path):
    save_png(tmp_path / "a.png").rename(tmp_path / "a.tif")
    np.testing.assert_array_equal(open_slide(tmp_path / "a.tif").read(0, 0, 603, 401), PIXELS)


# --- scale -------------------------------------------------------------------------------------------------------


def scale_of(path: Path, **options) -> float | None:
    return open_slide(path, **options).mpp


def test_the_scale_comes_from_the_file(tmp_path):
    assert scale_of(write_aperio(tmp_path / "a.svs", PIXELS)) == 0.499
    assert scale_of(write_ome_pyramid(tmp_path / "b.tif", PIXELS)) == 0.25
    assert scale_of(write_ome_pyramid(tmp_path / "c.tif", PIXELS, unit="nm", size=250)) == pytest.approx(0.25)
    assert scale_of(write_ome_pyramid(tmp_path / "d.tif", PIXELS, unit="mm", size=0.0005)) == pytest.approx(0.5)
    cm = {"resolution": (20_000, 20_000), "resolutionunit": "centimeter"}
    assert scale_of(write_tiled_pyramid(tmp_path / "e.tif", PIXELS, **cm)) == pytest.approx(0.5)
    assert scale_of(save_strips(tmp_path / "f.tif", **cm)) == pytest.approx(0.5)
    inch = {"resolution": (50_800, 50_800), "resolutionunit": "inch"}
    assert scale_of(save_strips(tmp_path / "g.tif", **inch)) == pytest.approx(0.5)
    tifffile.imwrite(tmp_path / "h.tif", PIXELS, imagej=True, resolution=(4, 4), metadata={"unit": "um"})
    assert scale_of(tmp_path / "h.tif") == pytest.approx(0.25)


def test_what_is_no_scale_is_not_taken_for_one(tmp_path):
    printer = {"resolution": (300, 300), "resolutionunit": "inch"}
    odd = {"resolution": (20_000, 10_000), "resolutionunit": "centimeter"}
    magnified = "Aperio Image Library v12\n603x401|AppMag = 20"
    files = [
        save_png(tmp_path / "a.png"),
        save_strips(tmp_path / "b.tif", **printer),
        write_tiled_pyramid(tmp_path / "c.tif", PIXELS, **printer),
        save_strips(tmp_path / "d.tif", **odd),
        write_aperio(tmp_path / "e.svs", PIXELS, description=magnified),  # 20 x is not a scale
        write_ome_pyramid(tmp_path / "f.tif", PIXELS, unit="reference frame"),
    ]
    for file in files:
        slide = open_slide(file)
        assert slide.mpp is None, file.name
        with pytest.raises(ScaleError, match=f"{slide.name} does not say how many micrometres .* --mpp 0.5"):
            known_scale(slide)


def test_a_stated_scale_wins_over_the_files_own_with_a_warning(tmp_path):
    path = write_aperio(tmp_path / "a.svs", PIXELS)
    assert scale_of(path, mpp=0.52) == 0.52
    for stated in (0.7, 4.99, 0.25):
        with pytest.warns(CmrcnetWarning, match=rf"a: {stated:g} um per px is used, as stated; its file says 0.499"):
            assert scale_of(path, mpp=stated) == stated
    assert scale_of(save_png(tmp_path / "b.png"), mpp=2) == 2.0


@pytest.mark.parametrize("said", [0.000686, 0.049, 10.1, 686.0])
def test_an_implausible_scale_of_any_file_is_unknown_and_says_why(tmp_path, said):
    per_cm = {"resolution": (1e4 / said, 1e4 / said), "resolutionunit": "centimeter"}
    files = [
        write_aperio(tmp_path / "a.svs", PIXELS, mpp=said),
        write_ome_pyramid(tmp_path / "b.ome.tif", PIXELS, size=said),
        write_tiled_pyramid(tmp_path / "c.tif", PIXELS, **per_cm),
        save_strips(tmp_path / "d.tif", **per_cm),
    ]
    for file in files:
        slide = open_slide(file)
        assert slide.mpp is None, file.name
        with pytest.raises(ScaleError, match=r"its file says .* um per px, but slides show 0.05 to 10"):
            known_scale(slide)
        assert scale_of(file, mpp=0.5) == 0.5  # nothing to warn of


def test_a_slide_longer_than_any_glass(tmp_path):
    long = np.zeros((16, 30_000, 3), np.uint8)
    path = write_ome_pyramid(tmp_path / "a.ome.tif", long, size=7.0)
    with pytest.raises(ScaleError, match=r"its 30000 x 16 px would then be 210 x 0 mm, .* longer than 200 mm"):
        known_scale(open_slide(path))
    assert scale_of(write_ome_pyramid(tmp_path / "b.ome.tif", long, size=6.0)) == 6.0
    with pytest.raises(ScaleError, match="is said to show 7 um per px, but its 30000 x 16 px"):
        open_slide(path, mpp=7)


@pytest.mark.parametrize("stated", [0.04, 11.0, 1e9])
def test_an_implausible_scale_that_is_stated_is_refused(tmp_path, stated):
    for source in (save_png(tmp_path / "a.png"), PIXELS):
        with pytest.raises(ScaleError, match=r"is said to show .* um per px, but slides show 0.05 to 10 um"):
            open_slide(source, mpp=stated)


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_none(tmp_path, scale):
    with pytest.raises(BadOption, match="micrometres per pixel, above 0"):
        open_slide(save_png(tmp_path / "a.png"), mpp=scale)


# --- names and fingerprints --------------------------------------------------------------------------------------


def test_names(tmp_path):
    save_png(tmp_path / "my.slide.png")
    assert open_slide(tmp_path / "my.slide.png").name == "my.slide"
    assert open_slide(str(tmp_path / "my.slide.png"), name="C6").name == "C6"
    assert open_slide(write_ome_pyramid(tmp_path / "x.ome.tif", PIXELS)).name == "x"
    assert open_slide(PIXELS, mpp=1, name="made up").name == "made up"
    assert "603 x 401 px, unknown um per px" in repr(open_slide(tmp_path / "my.slide.png"))


def test_a_fingerprint_names_the_content_not_the_place(tmp_path):
    one, two = save_png(tmp_path / "a.png"), tmp_path / "b.png"
    two.write_bytes(one.read_bytes())
    slide = open_slide(one)
    before = slide.fingerprint()
    assert open_slide(two, mpp=3, name="x").fingerprint() == before
    content = bytearray(two.read_bytes())
    content[len(content) // 2] ^= 1
    two.write_bytes(bytes(content))
    assert open_slide(two).fingerprint() != before
    one.write_bytes(b"")
    assert slide.fingerprint() == before  # worked out once an object


def test_a_large_file_is_named_by_samples(tmp_path, monkeypatch):
    from cmrcnet.slides import slide_files as ours

    for name, size in {"WHOLE_BYTES": 1000, "END_BYTES": 100, "SAMPLE_BYTES": 10, "SAMPLES": 8}.items():
        monkeypatch.setattr(ours, name, size)
    path = tmp_path / "large"
    content = np.random.default_rng(0).bytes(5000)
    path.write_bytes(content)
    before = ours.file_fingerprint([path])
    assert before == ours.file_fingerprint([path])
    first_sample = 100
    for place in (0, 99, first_sample + 3, 100 + 600 * 4 + 9, 4905, 4999):  # head, samples, tail
        path.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        assert ours.file_fingerprint([path]) != before, place
    path.write_bytes(content + b"x")
    assert ours.file_fingerprint([path]) != before
    path.write_bytes(content[:150] + bytes([content[150] ^ 255]) + content[151:])
    assert ours.file_fingerprint([path]) == before  # the stated limit: between samples a change is not seen


def test_the_folder_of_an_mrxs_slide_counts(tmp_path):
    from cmrcnet.slides.slide_files import file_fingerprint, files_of_slide

    (tmp_path / "a.mrxs").write_bytes(b"front")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "Data0000.dat").write_bytes(b"pixels")
    files = files_of_slide(tmp_path / "a.mrxs", "mirax")
    before = file_fingerprint(files)
    (tmp_path / "a" / "Data0000.dat").write_bytes(b"pixelS")
    assert len(files) == 2 and file_fingerprint(files) != before


# --- what is no slide --------------------------------------------------------------------------------------------


def test_a_missing_file(tmp_path):
    with pytest.raises(MissingInput, match=r"The slide .*nowhere.jpg does not exist; check the path"):
        open_slide(tmp_path / "nowhere.jpg")


def test_what_is_no_image(tmp_path):
    (tmp_path / "text.jpg").write_text("not a picture at all")
    (tmp_path / "empty.tif").write_bytes(b"")
    (tmp_path / "head.tif").write_bytes(b"II*\0")
    (tmp_path / "junk.tif").write_bytes(b"II*\0\x08\0\0\0" + bytes(range(200)))
    for name, why in {
        "text.jpg": "neither a whole-slide format, a TIFF, nor a picture",
        "empty.tif": "it is empty",
        "head.tif": "truncated",
        "junk.tif": "header is damaged|truncated",
        ".": "it is a folder",
    }.items():
        with pytest.raises(BadInput, match=why):
            open_slide(tmp_path / name)


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_truncated_file_is_never_read_as_something_else(tmp_path, kind):
    """Not as grey, not as one channel of three, not as a smaller page."""
    whole = LOSSLESS[kind](tmp_path).read_bytes()
    path = next(tmp_path.iterdir())
    for share in (0.001, 0.03, 0.1, 0.3, 0.5, 0.6, 0.8, 0.95, 0.995):
        path.write_bytes(whole)
        with pytest.raises(
            BadInput, match=r"truncated|damaged|cannot be decoded|holds no image|picture|OpenSlide says"
        ):
            open_slide(cut(path, share)).read(0, 0, 603, 401)


def test_a_truncated_jpeg_fails_when_it_is_opened(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(PIXELS).save(path)
    with pytest.raises(BadInput, match=r"a.jpg cannot be read as a picture: it is truncated"):
        open_slide(cut(path, 0.6))
    start, rest = path.read_bytes()[:2], path.read_bytes()[2:]
    path.write_bytes(start + b"\xff\xfe\0\4\xff\xd9" + rest)  # the mark of an end in a comment, as in EXIF previews
    with pytest.raises(BadInput, match=r"a.jpg cannot be read as a picture: it is truncated"):
        open_slide(path)


def test_a_jpeg_with_a_preview_filler_and_a_tail_is_whole(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(PIXELS).save(path, quality=95)
    plain = open_slide(path).read(0, 0, 50, 40)
    start, rest = path.read_bytes()[:2], path.read_bytes()[2:]
    path.write_bytes(start + b"\xff\xfe\0\4\xff\xd9" + b"\xff" + rest + b"some scanners write behind the end")
    np.testing.assert_array_equal(open_slide(path).read(0, 0, 50, 40), plain)


def test_damage_inside_a_tiff_is_reported_where_it_is_read(tmp_path):
    path = write_ome_pyramid(tmp_path / "a.ome.tif", PIXELS)
    with tifffile.TiffFile(path) as tiff:
        place = tiff.pages[0].dataoffsets[3]
    content = bytearray(path.read_bytes())
    content[place : place + 60] = b"\0" * 60
    path.write_bytes(bytes(content))
    slide = open_slide(path)
    np.testing.assert_array_equal(slide.read(0, 0, 100, 100), PIXELS[:100, :100])
    with pytest.raises(BadInput, match="its pixels cannot be decoded"):
        slide.read(3 * 128, 0, 50, 50)
    np.testing.assert_array_equal(slide.read(0, 0, 100, 100), PIXELS[:100, :100])


def test_a_damaged_tile_in_openslides_hands(tmp_path):
    path = write_tiled_pyramid(tmp_path / "a.tif", PIXELS, compression="deflate")
    with tifffile.TiffFile(path) as tiff:
        place = tiff.pages[0].dataoffsets[0]
    content = bytearray(path.read_bytes())
    content[place : place + 60] = b"\0" * 60
    path.write_bytes(bytes(content))
    slide = open_slide(path)
    with pytest.raises(BadInput, match="its pixels cannot be decoded"):
        slide.read(0, 0, 50, 50)
    np.testing.assert_array_equal(slide.read(300, 300, 50, 50), PIXELS[300:350, 300:350])


def test_images_that_are_no_slide(tmp_path):
    deep = PIXELS.astype(np.uint16) * 200
    tifffile.imwrite(tmp_path / "deep grey.tif", deep[..., 0], tile=(128, 128), metadata=None)
    tifffile.imwrite(tmp_path / "float.tif", PIXELS[..., 0].astype(np.float32))
    tifffile.imwrite(tmp_path / "stack.tif", np.stack([PIXELS[..., 0]] * 5), photometric="minisblack")
    tifffile.imwrite(tmp_path / "markers.ome.tif", np.stack([PIXELS[..., 0]] * 7), metadata={"axes": "CYX"})
    Image.fromarray(deep[..., 0]).save(tmp_path / "deep.png")
    for name, why in {
        "deep grey.tif": "16-bit uint16; convert it to 8-bit RGB",
        "float.tif": "32-bit float32",
        "stack.tif": "it is a stack",
        "markers.ome.tif": "it has 7 channels",
        "deep.png": "more than 8 bits a pixel",
    }.items():
        with pytest.raises(BadInput, match=why):
            open_slide(tmp_path / name)


# --- memory ------------------------------------------------------------------------------------------------------


def test_opening_reads_the_header_only(tmp_path, monkeypatch):
    path = save_png(tmp_path / "a.png")
    from PIL import PngImagePlugin

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    assert open_slide(path).width_px == 603


def test_pillows_limit_for_large_pictures_does_not_stop_a_slide(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = save_png(tmp_path / "a.png")
    np.testing.assert_array_equal(open_slide(path).read(0, 0, 603, 401), PIXELS)
    assert Image.MAX_IMAGE_PIXELS == 100  # Pillow's own limit stays for everybody else


def test_a_picture_too_large_to_decode_says_what_to_do(tmp_path, monkeypatch):
    from cmrcnet.slides import backends

    monkeypatch.setattr(backends, "LARGEST_PX", 1000)
    with pytest.raises(BadInput, match=r"603 x 401 px are too many .* tiled pyramidal TIFF"):
        open_slide(save_png(tmp_path / "a.png"))


def test_a_small_file_that_declares_a_huge_picture_is_refused(tmp_path):
    path = save_png(tmp_path / "a.png")
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 32_000, 32_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    for tail in (content[:3_000], content[:3_000] + content[-12:]):
        path.write_bytes(tail)
        with pytest.raises(BadInput, match=r"it declares 32000 x 32000 px in 3,0\d\d bytes"):
            open_slide(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.webp", "a.jp2"])
def test_an_empty_picture_is_sound_however_much_it_was_shrunk(tmp_path, name):
    Image.new("1" if name == "a.png" else "RGB", (6_000, 5_000), 1 if name == "a.png" else "white").save(
        tmp_path / name, **({"quality": 10} if name == "a.jpg" else {})
    )
    assert (open_slide(tmp_path / name).read(5_900, 4_900, 100, 100) == 255).all()


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path, monkeypatch):
    from cmrcnet.slides import backends

    monkeypatch.setattr(backends, "_holders", [])
    monkeypatch.setattr(backends, "PICTURE_CACHE_BYTES", 2.5 * 4 * PIXELS[..., 0].size)  # room for two
    slides = [open_slide(save_png(tmp_path / f"{number}.png")) for number in range(4)]

    def held() -> list[bool]:
        return [slide._source._picture is not None for slide in slides]

    for number in (0, 1, 0, 2, 3):
        slides[number].read(0, 0, 5, 5)
        assert sum(held()) <= 2 and held()[number]
    assert held() == [False, False, True, True]
    slides[0].read(0, 0, 5, 5)
    assert held() == [True, False, False, True]
    np.testing.assert_array_equal(slides[1].read(9, 9, 50, 50), PIXELS[9:59, 9:59])
    slides[1].close()
    assert held() == [True, False, False, False]
    slides.clear()
    assert [ref() for ref in backends._holders] == [None]  # a slide that is gone holds nothing


def test_a_tiff_keeps_few_tiles(tmp_path, monkeypatch):
    from cmrcnet.slides import tiff

    tile_bytes = 128 * 128 * 3
    monkeypatch.setattr(tiff, "TILE_CACHE_BYTES", 3 * tile_bytes)
    slide = open_slide(write_ome_pyramid(tmp_path / "a.ome.tif", PIXELS))
    np.testing.assert_array_equal(slide.read(0, 0, 603, 401), PIXELS)
    assert sum(tile.nbytes for tile in slide._source._held.values()) <= 3 * tile_bytes


def test_uncompressed_strips_are_mapped_not_read(tmp_path):
    slide = open_slide(save_strips(tmp_path / "a.tif"))
    slide.read(0, 0, 10, 10)
    assert not slide._source._held


def test_threads_may_share_a_slide(lossless):
    from concurrent.futures import ThreadPoolExecutor

    slide = open_slide(lossless)
    locations = [(x, y) for x in range(0, 550, 61) for y in range(0, 350, 53)]
    with ThreadPoolExecutor(4) as pool:
        regions = list(pool.map(lambda place: slide.read(*place, 50, 50), locations))
    for (x, y), region in zip(locations, regions, strict=True):
        np.testing.assert_array_equal(region, PIXELS[y : y + 50, x : x + 50])
