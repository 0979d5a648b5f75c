"""Predictions on real pyramids equal those on the plain picture.

Where a view is read from level 0 nothing may differ: the same pixels, the same numbers. Where it is read from a
reduced level (means of 2 x 2 or 4 x 4 pixels, brought to size by a bicubic filter) it differs from a view filtered
down from level 0 in one step by what two good filters differ in, and tolerances say how much.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cmrcnet.inference.predict import predict
from cmrcnet.readers.cohort import read_cohort
from cmrcnet.retrieval.bank import build_bank
from cmrcnet.slides.patches import crop_patches
from cmrcnet.slides.slide import ArraySlide, PatchScale, open_slide
from tests.inference.small_model import locations, small_cohort, small_model
from tests.slides.slide_making import tissue_picture, write_aperio, write_ome_pyramid, write_tiled_pyramid

SIDE, MPP = 1200, 0.5
GREY_LEVELS = 2.0
"""Mean difference of a view from a reduced level and one from level 0."""
SPREAD_SHARE = 0.05
"""Largest difference of predictions, beside the deviation of the gene over the slide."""


def write_tiff(path: Path, pixels: np.ndarray) -> Path:
    return write_tiled_pyramid(path.with_suffix(".tiff"), pixels)


def write_svs(path: Path, pixels: np.ndarray) -> Path:
    return write_aperio(path.with_suffix(".svs"), pixels, mpp=MPP)


def write_ome(path: Path, pixels: np.ndarray) -> Path:
    return write_ome_pyramid(path.with_suffix(".ome.tiff"), pixels, size=MPP)


WRITERS = pytest.mark.parametrize("write", [write_tiff, write_svs, write_ome])


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return tissue_picture(SIDE, SIDE, seed=4)


def plain(pixels: np.ndarray) -> ArraySlide:
    return ArraySlide(pixels, MPP, "plain")


@WRITERS
def test_patches_of_a_pyramid_are_direct_crops(pixels, tmp_path, write):
    slide = open_slide(write(tmp_path / "slide", pixels), mpp=MPP)
    assert len(slide.downsamples) > 1
    centres = np.array([[100.0, 700.0], [601.0, 333.0], [1150.0, 40.0], [80.0, 80.0]])
    (patches,) = crop_patches(slide, centres, PatchScale(size_px=160, mpp=MPP))
    padded = np.pad(pixels, ((80, 80), (80, 80), (0, 0)), constant_values=255)
    for patch, (x, y) in zip(patches, centres.astype(int), strict=True):
        np.testing.assert_array_equal(patch, padded[y : y + 160, x : x + 160])


@WRITERS
def test_a_view_of_a_reduced_level_is_the_view_of_level_0_within_two_grey_levels(pixels, tmp_path, write):
    slide = open_slide(write(tmp_path / "slide", pixels), mpp=MPP)
    scale = PatchScale(size_px=100, mpp=slide.downsamples[1] * MPP * 1.3)
    centres = np.array([[600.0, 600.0], [400.5, 777.25]])
    (from_level,), (from_whole,) = (crop_patches(each, centres, scale) for each in (slide, plain(pixels)))
    assert np.abs(from_level.astype(float) - from_whole.astype(float)).mean() < GREY_LEVELS


@WRITERS
def test_predictions_equal_those_on_the_plain_picture(model, bank, pixels, tmp_path, write):
    slide = open_slide(write(tmp_path / "slide", pixels), mpp=MPP)
    spots = locations(40, seed=2, side=SIDE)
    found, wanted = (predict(model, each, bank=bank, spots=spots) for each in (slide, plain(pixels)))
    np.testing.assert_array_equal(found.X, wanted.X)
    np.testing.assert_array_equal(found.obsm["neighbour_ids"], wanted.obsm["neighbour_ids"])


@WRITERS
def test_the_tissue_found_and_so_the_grid_is_the_same(model, bank, pixels, tmp_path, write):
    sheet = np.full((SIDE, SIDE, 3), 245, np.uint8)
    sheet[200:1000, 300:900] = pixels[200:1000, 300:900]
    slide = open_slide(write(tmp_path / "slide", sheet), mpp=MPP)
    found, wanted = (predict(model, each, bank=bank, grid_um=60.0) for each in (slide, plain(sheet)))
    assert list(found.obs_names) == list(wanted.obs_names)
    np.testing.assert_array_equal(found.X, wanted.X)


@pytest.mark.shared
@WRITERS
def test_real_tissue(her2st_csv, tmp_path, write):
    """A part of a real section, at a scale for which the pyramid's reduced level is read."""
    section = read_cohort(her2st_csv).read("B4")
    middle = section.spots.centre_px.mean(axis=0).astype(int)
    pixels = section.slide.read(*(middle - 1000), 2000, 2000)
    model = small_model(patch_mpp=1.3)
    bank = build_bank(model, small_cohort())
    spots = locations(24, seed=1, side=2000)
    slide = open_slide(write(tmp_path / "slide", pixels), mpp=MPP)
    found, wanted = (predict(model, each, bank=bank, spots=spots, k=24) for each in (slide, plain(pixels)))
    (from_level,), (from_whole,) = (
        crop_patches(each, spots.centre_px, model.config.patch) for each in (slide, plain(pixels))
    )
    assert np.abs(from_level.astype(float) - from_whole.astype(float)).mean() < GREY_LEVELS
    assert np.abs(found.X - wanted.X).max() < SPREAD_SHARE * wanted.layers["neighbour_std"].mean()
