"""The tissue mask on made-up slides whose tissue is known, and on real sections whose spots are."""

from __future__ import annotations

import csv
import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from cmrcnet.errors import ScaleError, ShapeMismatch
from cmrcnet.slides.slide import ArraySlide, open_slide
from cmrcnet.slides.tissue import TissueMask, find_tissue, patch_grid

from .slide_making import tissue_picture, write_tiled_pyramid

MPP = 4.0
SIDE = 900  # 3.6 mm


def glass(colour=(240, 240, 240), seed: int = 1) -> np.ndarray:
    """Empty glass with the noise of a camera and of JPEG."""
    rng = np.random.default_rng(seed)
    return np.clip(np.array(colour) + rng.normal(0, 2, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)


def disc(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


def with_tissue(background: np.ndarray, where: np.ndarray) -> np.ndarray:
    pixels = background.copy()
    pixels[where] = tissue_picture(SIDE, SIDE)[where]
    return pixels


def mask_of(pixels: np.ndarray, mpp: float = MPP) -> TissueMask:
    return find_tissue(ArraySlide(pixels, mpp))


def on_level_0(mask: TissueMask) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return mask.contains(np.column_stack([columns.ravel(), rows.ravel()]) + 0.5).reshape(SIDE, SIDE)


def overlap(found: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union."""
    return (found & truth).sum() / (found | truth).sum()


@pytest.mark.parametrize(
    "background", [(255, 255, 255), (240, 240, 240), (225, 205, 222), (235, 232, 215), (150, 150, 150)]
)
def test_tissue_is_found_where_it_is(background):
    """Also on glass that a lamp tints, and on grey glass."""
    truth = disc(300, 350, 150) | disc(650, 600, 90)
    mask = mask_of(with_tissue(glass(background), truth))
    assert mask.downsample == 2 and mask.pixels.shape == (450, 450)
    assert overlap(on_level_0(mask), truth) > 0.93
    assert mask.share == pytest.approx(truth.mean(), rel=0.1)


@pytest.mark.parametrize("background", [(255, 255, 255), (240, 240, 240), (225, 205, 222), (20, 20, 20)])
def test_a_blank_slide_has_no_tissue(background):
    assert mask_of(glass(background)).share == 0
    assert mask_of(np.full((SIDE, SIDE, 3), background, np.uint8)).share == 0


def test_a_slide_full_of_tissue_is_tissue():
    assert mask_of(tissue_picture(SIDE, SIDE)).share > 0.99


def test_evenly_dense_tissue_is_tissue():
    """Without any texture, but with a colour that no smear has."""
    pixels = glass()
    pixels[disc(400, 400, 200)] = (150, 70, 160)
    assert overlap(on_level_0(mask_of(pixels)), disc(400, 400, 200)) > 0.9


def test_smeared_stain_is_not_tissue():
    """Eosin that ran: as colourful as pale tissue, but smooth."""
    smear = np.exp(-((np.hypot(*(np.mgrid[:SIDE, :SIDE] - 600)) / 200) ** 2))[..., None] * (0, 40, 22)
    truth = disc(250, 250, 120)
    mask = mask_of(with_tissue((glass() - smear).clip(0).astype(np.uint8), truth))
    assert overlap(on_level_0(mask), truth) > 0.9
    assert not mask.contains([[600, 600], [560, 640], [700, 600]]).any()


def test_black_borders_and_dust_are_not_tissue():
    pixels = with_tissue(glass(), disc(450, 450, 150))
    pixels[:60], pixels[:, -90:] = 0, 5
    for x, y in [(150, 700), (700, 200)]:
        pixels[disc(x, y, 40)] = 60
    pixels[disc(700, 700, 6)] = (120, 50, 140)  # a stained speck of 48 um
    assert overlap(on_level_0(mask_of(pixels)), disc(450, 450, 150)) > 0.93


def test_green_pen_is_not_tissue():
    pixels = with_tissue(glass(), disc(250, 450, 150))
    pixels[100:800, 600:640] = (60, 150, 90)
    mask = mask_of(pixels)
    assert overlap(on_level_0(mask), disc(250, 450, 150)) > 0.9


def test_small_holes_are_filled_and_large_ones_stay():
    truth = disc(450, 450, 350)
    hole, lumen = disc(450, 450, 120), disc(250, 450, 25)  # 960 um and 200 um wide
    mask = mask_of(with_tissue(glass(), truth & ~hole & ~lumen))
    assert mask.contains([[250, 450]])[0]
    assert not mask.contains([[450, 450]])[0]


def test_tissue_at_the_slides_border_is_kept_and_glass_there_is_not_filled():
    _rows, columns = np.mgrid[:SIDE, :SIDE]
    truth = (columns < 300) & ~disc(0, 450, 30)
    mask = mask_of(with_tissue(glass(), truth))
    assert mask.contains([[1, 100], [1, 899], [150, 1]]).all()
    assert not mask.contains([[2, 450]])[0]  # a bay of 120 um radius that the border cuts


@pytest.mark.parametrize("mpp", [1.0, 8.0, 20.0])
def test_the_scale_only_changes_the_size_of_things(mpp):
    truth = disc(450, 450, 300)
    assert overlap(on_level_0(mask_of(with_tissue(glass(), truth), mpp)), truth) > 0.93


def test_a_pyramid_gives_the_mask_of_the_array(tmp_path):
    pixels = with_tissue(glass(), disc(300, 350, 150))
    path = write_tiled_pyramid(tmp_path / "a.tif", pixels)
    found, want = find_tissue(open_slide(path, mpp=2.0)), mask_of(pixels, 2.0)
    assert found.downsample == want.downsample == 4
    assert (found.pixels != want.pixels).mean() < 0.002


def test_the_mask_does_not_depend_on_the_run():
    pixels = with_tissue(glass(), disc(300, 350, 150))
    np.testing.assert_array_equal(mask_of(pixels).pixels, mask_of(pixels).pixels)


def test_places_are_x_y_in_level_0_pixels():
    pixels = np.zeros((3, 5), bool)
    pixels[1, 4] = True
    mask = TissueMask(pixels, 10.0)
    assert mask.contains(
        [[40, 10], [49.9, 19.9], [50, 10], [39.9, 10], [45, 20], [10, 40], [-1, -1], [1e9, 15]]
    ).tolist() == [
        True,
        True,
        *[False] * 6,
    ]
    assert mask.contains(np.empty((0, 2))).shape == (0,)
    assert mask.share == 1 / 15


@pytest.mark.parametrize("pitch_um", [13.0, 50.0, 700.0])
def test_a_grid_has_the_squares_whose_centre_is_on_tissue_row_by_row(pitch_um):
    slide = ArraySlide(np.zeros((900, 1300, 3), np.uint8), mpp=0.7)
    mask = TissueMask(np.random.default_rng(0).random((45, 65)) < 0.5, downsample=20.0)
    mask.pixels[15:25] = False
    pitch_px = pitch_um / 0.7
    wanted = [
        (f"x{x:05d}y{y:05d}", [(x + 0.5) * pitch_px, (y + 0.5) * pitch_px])
        for y in range(99)
        for x in range(99)
        if mask.contains(np.array([[(x + 0.5) * pitch_px, (y + 0.5) * pitch_px]]))[0]
    ]
    spots = patch_grid(slide, mask, pitch_um=pitch_um)
    assert spots.barcodes == tuple(name for name, _ in wanted)
    np.testing.assert_allclose(spots.centre_px, [centre for _, centre in wanted])


def test_a_grid_takes_memory_for_its_locations_and_not_for_the_glass():
    slide: Any = SimpleNamespace(name="glass", mpp=0.5, width_px=20_000, height_px=20_000)
    mask = TissueMask(np.zeros((1250, 1250), bool), 16.0)
    mask.pixels[600:620, 600:620] = True
    tracemalloc.start()
    locations = len(patch_grid(slide, mask, pitch_um=8.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert locations == 400 and peak < 2_000_000  # the grid of the slide has 1,562,500 squares


def test_a_mask_is_true_and_false():
    with pytest.raises(ShapeMismatch, match=r"mask has shape \(3, 5\) uint8; wanted \(height, width\) bool"):
        TissueMask(np.zeros((3, 5), np.uint8), 1.0)


def test_without_a_scale_there_is_no_mask():
    with pytest.raises(ScaleError, match="--mpp"):
        find_tissue(ArraySlide(glass()))


@pytest.mark.shared
@pytest.mark.parametrize("sections", [("B4", "C6"), ("CN51_C2_1", "CN67_E2")])
def test_real_spots_lie_on_real_tissue(request, sections):
    """The authors chose the spots under tissue by eye. B4 has fat and, like C6, a smear of eosin beside the tissue."""
    cohort = request.getfixturevalue("her2st_csv" if sections[0] == "B4" else "als_csv")
    rows = {row["section"]: row for row in csv.DictReader(cohort.open())}
    for section in sections:
        row = rows[section]
        with (cohort.parent / row["spots"]).open() as file:
            spots = [spot for spot in csv.DictReader(file, delimiter="\t") if spot.get("selected", "1") == "1"]
        centres = np.array([[float(spot["pixel_x"]), float(spot["pixel_y"])] for spot in spots])
        with open_slide(cohort.parent / row["image"], mpp=float(row["um_per_px"])) as slide:
            mask = find_tissue(slide)
        assert mask.contains(centres).mean() > 0.95
        assert mask.share < 0.33  # and the glass is not tissue
        assert ndimage.label(mask.pixels)[1] <= 12


@pytest.mark.shared
def test_the_eosin_smear_of_c6_is_not_tissue(her2st_csv):
    with open_slide(her2st_csv.parent / "C6.jpg", mpp=0.688) as slide:
        mask = find_tissue(slide)
    smear = np.array([[500, 530], [560, 620], [560, 500]]) * mask.downsample
    assert not mask.contains(smear).any()
