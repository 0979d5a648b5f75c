"""Patches: where their middle is, how large they are, and that every way of reading gives the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cmrcnet.errors import BadOption, ScaleError, ShapeMismatch, TooFew
from cmrcnet.slides.patches import crop_patches
from cmrcnet.slides.slide import ArraySlide, PatchScale, open_slide
from cmrcnet.slides.tissue import TissueMask, patch_grid

from .slide_making import halved, tissue_picture, write_aperio, write_ome_pyramid, write_tiled_pyramid

PIXELS = tissue_picture(640, 960)
SAME = PatchScale(size_px=64, mpp=0.5)


def crop(slide, centres, scale=SAME, batch=64) -> np.ndarray:
    return np.concatenate(list(crop_patches(slide, np.array(centres, float), scale, batch=batch)))


def ramp(side: int = 250) -> ArraySlide:
    """Red rises with x, green with y, one a pixel and so without rounding: a colour tells its place."""
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    return ArraySlide(np.dstack([x, y, np.full_like(x, 9)]).astype(np.uint8), 0.5, "ramp")


# --- the middle --------------------------------------------------------------------------------------------------


def test_without_scaling_the_slides_pixels_come_out():
    patch = crop(ArraySlide(PIXELS, 0.5), [[100, 40]])[0]
    np.testing.assert_array_equal(patch, PIXELS[40 - 32 : 40 + 32, 100 - 32 : 100 + 32])


def test_an_odd_patch_is_centred_on_the_middle_of_a_pixel():
    patch = crop(ArraySlide(PIXELS, 0.5), [[100.5, 40.5]], PatchScale(size_px=33, mpp=0.5))[0]
    np.testing.assert_array_equal(patch, PIXELS[24:57, 84:117])


def test_the_middle_of_a_patch_is_the_spot_centre():
    """A red dot of 2 x 2 px around the corner (100, 40); RGB, not BGR; x first in a centre, second in an array."""
    pixels = np.full((80, 200, 3), 255, np.uint8)
    pixels[39:41, 99:101] = (255, 0, 0)
    patch = crop(ArraySlide(pixels, 0.5), [[100, 40]])[0]
    assert np.argwhere((patch != 255).any(axis=2)).tolist() == [[31, 31], [31, 32], [32, 31], [32, 32]]
    assert patch[32, 32].tolist() == [255, 0, 0]


@settings(max_examples=60, deadline=None)
@given(x=st.floats(70, 180), y=st.floats(70, 180), size=st.integers(8, 40), finer=st.floats(0.3, 3.0))
def test_the_middle_stays_the_centre_at_every_scale_and_between_pixels(x, y, size, finer):
    patch = crop(ramp(), [[x, y]], PatchScale(size_px=size, mpp=0.5 * finer))[0].astype(float)
    # a continuous x lies on the ramp at x - 0.5, for pixel i has its middle at i + 0.5; a patch is rounded to whole
    # colours, by half of one at most, and where pixels fall between pixels all of them the same way
    assert patch[..., 0].mean() == pytest.approx(x - 0.5, abs=0.51)
    assert patch[..., 1].mean() == pytest.approx(y - 0.5, abs=0.51)
    # and the patch spans size * finer slide pixels: its pixels lie `finer` apart
    steps = (patch[:, -1, 0].mean() - patch[:, 0, 0].mean()) / (size - 1)
    assert steps == pytest.approx(finer, abs=1.02 / (size - 1))


def test_a_shift_by_a_whole_pixel_shifts_the_patch_by_one():
    one, two = crop(ArraySlide(PIXELS, 0.5), [[200, 300], [201, 300]])
    np.testing.assert_array_equal(one[:, 1:], two[:, :-1])


def test_a_scale_that_floating_point_nearly_meets_does_not_blur():
    assert 56 * 0.3 / 0.3 != 56  # the trap
    patch = crop(ArraySlide(PIXELS, 0.3), [[100, 40]], PatchScale(size_px=56, mpp=0.3))[0]
    np.testing.assert_array_equal(patch, PIXELS[12:68, 72:128])


# --- the size ----------------------------------------------------------------------------------------------------


def test_a_patch_shows_the_same_tissue_whatever_the_slides_scale():
    """The tissue at 0.25 um per px, and the same made half as large at 0.5: the same patches."""
    fine, coarse = ArraySlide(PIXELS, 0.25), ArraySlide(halved(PIXELS), 0.5)
    locations = np.array([[400, 300], [321, 222]])
    found = crop(fine, locations, PatchScale(size_px=48, mpp=0.5)).astype(int)
    want = crop(coarse, locations / 2, PatchScale(size_px=48, mpp=0.5)).astype(int)
    assert abs(found - want).mean() < 1.5
    assert abs(found - want).max() < 12
    assert abs(found[0] - want[1]).mean() > 10  # the patches do differ between locations


def test_making_smaller_is_anti_aliased():
    """Stripes finer than a pixel of the patch become even grey, not a moire."""
    stripes = np.zeros((600, 600, 3), np.uint8)
    stripes[:, ::2] = 255
    patch = crop(ArraySlide(stripes, 0.25), [[300, 300]], PatchScale(size_px=64, mpp=1.0))[0]
    assert abs(patch.astype(int) - 127).max() <= 2


def test_patches_may_be_finer_than_the_slide():
    patch = crop(ArraySlide(halved(PIXELS, 2), 1.0), [[100, 80]], PatchScale(size_px=64, mpp=0.5))[0]
    obvious = Image.fromarray(halved(PIXELS, 2)[64:96, 84:116]).resize((64, 64), Image.Resampling.BICUBIC)
    inner = slice(8, -8)  # at its border the plain crop lacks the neighbours
    np.testing.assert_array_equal(patch[inner, inner], np.asarray(obvious)[inner, inner])


def test_what_lies_outside_is_white():
    patches = crop(ArraySlide(PIXELS, 0.5), [[0, 0], [960, 640], [-500, 10], [5000, 5000]])
    assert (patches[0][:32] == 255).all() and (patches[0][:, :32] == 255).all()
    np.testing.assert_array_equal(patches[0][32:, 32:], PIXELS[:32, :32])
    np.testing.assert_array_equal(patches[1][:32, :32], PIXELS[-32:, -32:])
    assert (patches[1][32:] == 255).all()
    assert (patches[2:] == 255).all()


# --- every format, every level -----------------------------------------------------------------------------------

WRITERS = {
    "png": lambda path: Image.fromarray(PIXELS).save(path, format="png"),
    "tiled": lambda path: write_tiled_pyramid(path, PIXELS),
    "aperio": lambda path: write_aperio(path, PIXELS, mpp=0.5),
    "ome": lambda path: write_ome_pyramid(path, PIXELS, size=0.5),
}
LOCATIONS = np.random.default_rng(0).uniform((100, 100), (860, 540), (20, 2))


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(("mpp", "mean_tolerance"), [(0.25, 0), (0.5, 0), (0.8, 0), (1.0, 1), (1.7, 1), (2.0, 1)])
def test_files_give_the_patches_of_the_array(tmp_path, kind, mpp, mean_tolerance):
    """From level 0 exactly; from a pyramid level up to what its own averaging and rounding change."""
    WRITERS[kind](tmp_path / "a.bin")
    slide = open_slide(tmp_path / "a.bin", mpp=0.5)
    scale = PatchScale(size_px=32, mpp=mpp)
    found, want = (crop(one, LOCATIONS, scale).astype(int) for one in (slide, ArraySlide(PIXELS, 0.5)))
    wrong = abs(found - want)
    assert wrong.mean() <= mean_tolerance and wrong.max() <= 12 * mean_tolerance
    assert abs(want[0] - want[1]).mean() > 10


class Witness(ArraySlide):
    """Notes what is read."""

    def __init__(self, downsamples: tuple[float, ...]) -> None:
        super().__init__(PIXELS, 0.5, "witness")
        self.downsamples, self.seen = downsamples, []

    def read(self, x, y, width, height, level=0):
        self.seen.append((x, y, width, height, level))
        return np.zeros((height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("mpp", "level"), [(0.3, 0), (0.5, 0), (1.0, 0), (1.9, 0), (2.0, 1), (4.0, 1), (8.0, 2), (100.0, 2)]
)
def test_the_coarsest_level_that_is_fine_enough_is_read(mpp, level):
    slide = Witness((1.0, 4.001, 16.0))  # 4.001: a level of an odd size still serves 2.0 um per px
    crop(slide, LOCATIONS, PatchScale(size_px=32, mpp=mpp))
    assert {seen[4] for seen in slide.seen} == {level}


def test_no_more_is_read_than_needed():
    slide = Witness((1.0, 4.0))
    crop(slide, LOCATIONS, PatchScale(size_px=32, mpp=0.7))
    assert max(max(seen[2:4]) for seen in slide.seen) <= 32 * 1.4 + 10


# --- batches and order -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 7, 20, 1000])
def test_batches_change_nothing_and_keep_the_order(batch):
    slide, scale = ArraySlide(PIXELS, 0.5), PatchScale(size_px=16, mpp=0.9)
    pieces = list(crop_patches(slide, LOCATIONS, scale, batch=batch))
    assert [len(piece) for piece in pieces[:-1]] == [batch] * (len(pieces) - 1)
    obvious = np.stack([crop(slide, [place], scale)[0] for place in LOCATIONS])
    np.testing.assert_array_equal(np.concatenate(pieces), obvious)


def test_within_a_batch_the_slide_is_read_row_by_row():
    slide = Witness((1.0,))
    shuffled = np.random.default_rng(1).permutation([[x, y] for x in range(50, 900, 100) for y in range(50, 600, 100)])
    crop(slide, shuffled, batch=1000)
    assert slide.seen == sorted(slide.seen, key=lambda seen: (seen[1], seen[0]))


def test_no_places_give_no_batches():
    assert list(crop_patches(ArraySlide(PIXELS, 0.5), np.empty((0, 2)), SAME)) == []
    assert list(crop_patches(ArraySlide(PIXELS, 0.5), [], SAME)) == []


def test_bad_calls_are_refused_at_once_not_at_the_first_batch():
    slide = ArraySlide(PIXELS, 0.5)
    with pytest.raises(ScaleError, match="array does not say how many micrometres"):
        crop_patches(ArraySlide(PIXELS), LOCATIONS, SAME)
    with pytest.raises(ShapeMismatch, match=r"centre_px has shape \(20, 3\); wanted \(patches, 2\)"):
        crop_patches(slide, np.zeros((20, 3)), SAME)
    with pytest.raises(BadOption, match="not finite"):
        crop_patches(slide, np.array([[1.0, np.nan]]), SAME)
    with pytest.raises(BadOption, match="batch is 0"):
        crop_patches(slide, LOCATIONS, SAME, batch=0)


# --- the grid ----------------------------------------------------------------------------------------------------


def half_tissue() -> tuple[ArraySlide, TissueMask]:
    """1,000 x 600 px at 0.5 um per px; the left half is tissue."""
    pixels = np.zeros((60, 100), bool)
    pixels[:, :50] = True
    return ArraySlide(np.zeros((600, 1000, 3), np.uint8), 0.5, "half"), TissueMask(pixels, 10.0)


def test_the_grid_is_square_and_over_tissue():
    slide, mask = half_tissue()
    spots = patch_grid(slide, mask, pitch_um=100)  # 200 px
    want = [[x, y] for y in (100, 300, 500) for x in (100, 300)]
    np.testing.assert_array_equal(spots.centre_px, want)
    assert spots.barcodes[:3] == ("x00000y00000", "x00001y00000", "x00000y00001")
    assert spots.diameter_um == 100
    assert patch_grid(slide, mask, pitch_um=50, diameter_um=55.0).diameter_um == 55


@settings(max_examples=30, deadline=None)
@given(pitch=st.floats(3, 200), seed=st.integers(0, 100))
def test_grid_places_lie_on_tissue_on_the_slide_and_a_pitch_apart(pitch, seed):
    slide, _ = half_tissue()
    mask = TissueMask(np.random.default_rng(seed).random((60, 100)) < 0.5, 10.0)
    try:
        spots = patch_grid(slide, mask, pitch_um=pitch)
    except TooFew:
        assert pitch > 20  # a fine grid always meets tissue here
        return
    assert mask.contains(spots.centre_px).all()
    assert (spots.centre_px > 0).all() and (spots.centre_px < (1000, 600)).all()
    place = np.array([[int(b[1:6]), int(b[7:])] for b in spots.barcodes])
    np.testing.assert_allclose(spots.centre_px, (place + 0.5) * pitch / 0.5)
    every = (np.indices((int(300 / pitch + 0.5), int(500 / pitch + 0.5))).reshape(2, -1).T[:, ::-1] + 0.5) * pitch / 0.5
    on_slide = every[(every < (1000, 600)).all(axis=1)]
    assert len(spots) == mask.contains(on_slide).sum()  # none is forgotten


def test_no_tissue_no_grid():
    slide, _ = half_tissue()
    with pytest.raises(TooFew, match="No tissue was found on half; check the picture"):
        patch_grid(slide, TissueMask(np.zeros((60, 100), bool), 10.0))
    with pytest.raises(TooFew, match="No location of a grid of 900 um lies on the tissue of half; choose a smaller"):
        patch_grid(*half_tissue(), pitch_um=900)
    with pytest.raises(BadOption, match="pitch_um is 0"):
        patch_grid(*half_tissue(), pitch_um=0)
    with pytest.raises(ScaleError):
        patch_grid(ArraySlide(PIXELS), half_tissue()[1])


# --- real tissue -------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_a_real_section_at_its_own_scale_and_at_ours(her2st_csv, monkeypatch):
    """Level 0 against Pillow's own crop; 0.5 um per px against enlarging that crop."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    path = her2st_csv.parent / "C6.jpg"
    with open_slide(path, mpp=0.688) as slide:
        plain = PatchScale(size_px=200, mpp=0.688)
        patch = crop(slide, [[4000, 5000]], plain)[0]
        ours = crop(slide, [[4000.3, 5000.7]], PatchScale(size_px=224, mpp=0.5))[0]
    picture = Image.open(path)
    np.testing.assert_array_equal(patch, np.asarray(picture.crop((3900, 4900, 4100, 5100))))
    side = 112 / 0.688
    box = (4000.3 - side / 2, 5000.7 - side / 2, 4000.3 + side / 2, 5000.7 + side / 2)
    obvious = np.asarray(picture.resize((224, 224), Image.Resampling.BICUBIC, box=box)).astype(int)
    assert abs(ours - obvious).max() <= 2
