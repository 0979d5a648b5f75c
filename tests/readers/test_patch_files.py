"""Patches and features that another program wrote: what is stated is used, and what is not is asked for."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from cmrcnet import ArraySlide, FeatureSlide, PatchFile
from cmrcnet.errors import BadInput, CmrcnetWarning, Incompatible

COORDS = np.array([[0, 0], [200, 0], [0, 200]])
TRIDENT = {"patch_size": 128, "patch_size_level0": 200, "level0_magnification": 40, "target_magnification": 20}
CLAM = {"patch_size": 50, "patch_level": 1, "downsample": np.array([4.0, 4.0])}


def write(path, attributes, coords=COORDS, features=None, dataset="features", **of_features):
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        file["coords"] = coords
        file["coords"].attrs.update(attributes)
        if features is not None:
            file[dataset] = features
            file[dataset].attrs.update(of_features)
    return path


@pytest.fixture
def slide():
    return ArraySlide(np.full((400, 400, 3), 200, np.uint8), mpp=0.5, name="C6")


@pytest.mark.parametrize(
    ("attributes", "first"),
    [
        (TRIDENT, 100),
        (CLAM, 100),
        ({"patch_size": 200, "patch_level": 0}, 100),
        (TRIDENT | {"anchor": "centre"}, 0),
        ({"patch_size_level0": 200, "anchor": "corner"}, 100),
    ],
)
def test_side_and_anchor_are_those_that_the_programs_state(tmp_path, attributes, first):
    patches = PatchFile.read(write(tmp_path / "C6.h5", attributes))
    assert patches.side_px == 200
    assert patches.centre_px.tolist() == [[first, first], [first + 200, first], [first, first + 200]]


@pytest.mark.parametrize(
    ("attributes", "asked"),
    [
        ({}, "does not state the side"),
        ({"patch_size": 256, "patch_level": 1}, "does not state the side"),
        ({"patch_size_level0": 200}, "corners or centres"),
        ({"patch_size_level0": 200, "anchor": "middle"}, "wanted corner or centre"),
        ({"patch_size_level0": np.nan, "anchor": "corner"}, "wanted a number above 0"),
        ({"patch_size_level0": -5, "anchor": "corner"}, "wanted a number above 0"),
        ({"patch_size_level0": "big", "anchor": "corner"}, "wanted a number above 0"),
        ({"patch_size": 50, "patch_level": 1, "downsample": [4.0, 8.0]}, "wanted a number above 0"),
    ],
)
def test_what_is_not_stated_is_asked_for(tmp_path, attributes, asked):
    with pytest.raises(BadInput, match=asked):
        PatchFile.read(write(tmp_path / "C6.h5", attributes))


@pytest.mark.parametrize(
    ("coords", "features", "why"),
    [
        (np.zeros((3, 3)), None, "wanted numbers"),
        (np.zeros((0, 2)), None, "wanted numbers"),
        (np.array([[np.inf, 0.0]]), None, "no pixel of a slide"),
        (COORDS, np.zeros((2, 4), np.float32), "a row a patch"),
        (COORDS, np.zeros(4, np.float32), "a row a patch"),
        (COORDS, np.zeros((3, 4), np.int64), "wanted floats"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, coords, features, why):
    with pytest.raises(BadInput, match=why):
        PatchFile.read(write(tmp_path / "C6.h5", TRIDENT, coords, features))


def test_the_encoder_is_named_by_attribute_or_by_tridents_folder(tmp_path):
    values = np.zeros((3, 4), np.float32)
    by_attribute = write(tmp_path / "a.h5", TRIDENT, features=values, encoder="uni_v1", savetodir="x/features_conch")
    by_trident = write(tmp_path / "b.h5", TRIDENT, features=values, savetodir="out/20x_256px/features_uni_v2")
    by_folder = write(tmp_path / "features_uni_v1" / "c.h5", TRIDENT, features=values, dataset="embeddings")
    unnamed = write(tmp_path / "d.h5", TRIDENT, features=values)
    found = [PatchFile.read(path).encoder for path in (by_attribute, by_trident, by_folder, unnamed)]
    assert found == ["uni_v1", "uni_v2", "uni_v1", ""]


def test_features_are_those_of_the_patch_at_the_location(tmp_path):
    values = np.arange(12, dtype=np.float16).reshape(3, 4)
    patches = PatchFile.read(write(tmp_path / "C6.h5", TRIDENT, features=values))
    rows = patches.rows_at(np.array([[105.0, 300.0], [100.0, 100.0], [300.0, 95.0], [104.0, 304.0]]), "C6")
    assert patches.features(rows).tolist() == values[[2, 0, 1, 2]].tolist()
    with pytest.raises(Incompatible, match=r"1 of 2 locations of C6 have no patch centred within 20 px .* 40 px away"):
        patches.rows_at(np.array([[100.0, 100.0], [100.0, 140.0]]), "C6")


def test_features_that_are_not_finite_are_refused_by_row(tmp_path):
    values = np.zeros((3, 4), np.float32)
    values[1, 2] = np.nan
    patches = PatchFile.read(write(tmp_path / "C6.h5", TRIDENT, features=values))
    assert patches.features(np.array([0, 2])).shape == (2, 4)
    with pytest.raises(BadInput, match="patch 1 "):
        patches.features(np.array([2, 1]))


def test_patches_of_another_slide_are_refused(tmp_path, slide):
    path = write(tmp_path / "C6.h5", TRIDENT | {"name": "C6"})
    assert PatchFile.read(path).spots(slide).barcodes == ("1", "2", "3")
    small = ArraySlide(np.full((150, 400, 3), 200, np.uint8), mpp=0.5, name="C6")
    with pytest.raises(Incompatible, match="400 x 150 px"):
        FeatureSlide(small, path)
    other = write(tmp_path / "D1.h5", TRIDENT | {"name": "D1"})
    with pytest.raises(Incompatible, match="made from slide D1, not C6"):
        FeatureSlide(slide, other)


def test_patches_that_are_centred_off_the_slide_are_no_locations(tmp_path, slide):
    coords = np.array([[0, 0], [350, 0]])
    with pytest.warns(CmrcnetWarning, match="1 of 2 patches"):
        spots = PatchFile.read(write(tmp_path / "C6.h5", TRIDENT, coords)).spots(slide)
    assert spots.barcodes == ("1",)
    assert spots.diameter_um == 100


def test_a_link_to_another_file_is_not_followed(tmp_path):
    path = write(tmp_path / "C6.h5", TRIDENT)
    with h5py.File(path, "a") as file:
        file["features"] = h5py.ExternalLink("secret.h5", "features")
    with pytest.raises(BadInput, match="not followed"):
        PatchFile.read(path)
