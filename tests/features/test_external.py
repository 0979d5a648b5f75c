"""Features that were computed elsewhere: the same model as by our own encoding, or a refusal that says what differs."""

from __future__ import annotations

import dataclasses

import h5py
import numpy as np
import pytest

import cmrcnet
from cmrcnet import Cohort, FeatureSlide, FeatureSpec, PatchScale, Spots
from cmrcnet.datasets.cohort_files import write_cohort
from cmrcnet.errors import BadOption, Incompatible, MissingInput
from cmrcnet.testing import quick_config

pytestmark = pytest.mark.filterwarnings("ignore:This training found no signal")

WIDTH, SIDE_UM = 64, 90.0
OURS = quick_config().override({"features.scales_um": [SIDE_UM], "features.engine": "torch"})
EXTERNAL = OURS.override({"model.encoder": f"external:test_vit:{WIDTH}", "model.weights": "pretrained"})


def write_features(section, path, encoder="test_vit", side_um=SIDE_UM, centres=None):
    """What TRIDENT would have written, had it run our encoder on patches around the spots."""
    spec = FeatureSpec(patch=PatchScale(size_px=160), scales_um=(SIDE_UM,), engine="torch")
    ours = cmrcnet.create_image_encoder("timm:test_vit", weights="random")
    centres = section.spots.centre_px if centres is None else centres
    values = cmrcnet.extract(ours, section.slide, centres, spec)[:, 0]
    side_px = side_um / section.slide.mpp
    with h5py.File(path, "w") as file:
        file["coords"] = centres - side_px / 2
        file["coords"].attrs.update({"patch_size_level0": side_px, "target_magnification": 20, "name": section.name})
        file["features"] = values
        file["features"].attrs["encoder"] = encoder
    return path


@pytest.fixture(scope="module")
def ours():
    return cmrcnet.synthetic_cohort(patients=2, spots=16, genes=24, seed=0)


@pytest.fixture(scope="module")
def external(ours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    return Cohort.of(
        dataclasses.replace(s, slide=FeatureSlide(s.slide, write_features(s, folder / f"{s.name}.h5"))) for s in ours
    )


@pytest.fixture(scope="module")
def model(external):
    return cmrcnet.fit(external, EXTERNAL)


@pytest.fixture(scope="module")
def bank(model, external):
    return cmrcnet.build_bank(model, external)


@pytest.fixture(scope="module")
def native(ours):
    return cmrcnet.fit(ours, OURS)


def test_training_and_prediction_equal_those_by_the_encoder_itself(ours, external, model, bank, native):
    one, other = cmrcnet.build_bank(native, ours), bank
    plain, featured = ours.read("P1S1"), external.read("P1S1")
    wanted = cmrcnet.predict(native, plain.slide, bank=one, spots=plain.spots)
    found = cmrcnet.predict(model, featured.slide, bank=other)  # at the patches of the file
    np.testing.assert_allclose(found.X, wanted.X, atol=1e-5)
    np.testing.assert_allclose(found.obsm["spatial"], wanted.obsm["spatial"])
    assert found.uns["cmrcnet"]["features_of"] == "test_vit"
    assert found.uns["cmrcnet"]["features_made_by"] == "another program"
    assert found.uns["cmrcnet"]["spot_diameter_um"] == pytest.approx(SIDE_UM)


def test_a_model_is_saved_without_weights_and_reads_the_same_features_again(model, external, tmp_path):
    model.save_pretrained(tmp_path / "model")
    again = cmrcnet.TrainedModel.from_pretrained(tmp_path / "model")
    assert again.fingerprint == model.fingerprint
    assert again.provenance.facts["licences"] == {
        "encoder": "external:test_vit:64: not known here: see the encoder's model card",
        "slides of training": "not stated (2 sections)",
    }
    bank = cmrcnet.build_bank(again, external)
    assert np.isfinite(cmrcnet.predict(again, external.read("P2S1").slide, bank=bank).X).all()


@pytest.mark.parametrize(
    ("written", "error", "why"),
    [
        ({"encoder": "uni_v1"}, Incompatible, "64 numbers of uni_v1, and the model needs 64 of test_vit"),
        ({"encoder": ""}, Incompatible, r'attrs\["encoder"\] = "test_vit"'),
        ({"side_um": 128.0}, Incompatible, "show 128 um a side on P1S1, and the model needs 90 um"),
    ],
)
def test_features_of_another_encoder_or_scale_are_refused(ours, model, bank, tmp_path, written, error, why):
    section = ours.read("P1S1")
    slide = FeatureSlide(section.slide, write_features(section, tmp_path / "f.h5", **written))
    with pytest.raises(error, match=why):
        cmrcnet.predict(model, slide, bank=bank)


def test_locations_without_a_patch_and_slides_without_features_are_refused(ours, model, bank, external):
    section = external.read("P1S1")
    with pytest.raises(MissingInput, match="P1S1 comes without features"):
        cmrcnet.predict(model, ours.read("P1S1").slide, bank=bank)
    moved = Spots(section.spots.barcodes, section.spots.centre_px + 20 / section.slide.mpp, 100.0)
    with pytest.raises(Incompatible, match="16 of 16 locations of P1S1 have no patch"):
        cmrcnet.predict(model, section.slide, bank=bank, spots=moved)


def test_a_model_that_encodes_slides_itself_takes_no_features(native, external):
    with pytest.raises(BadOption, match="encodes slides itself with timm:test_vit"):
        cmrcnet.predict(native, external.read("P1S1").slide, bank=cmrcnet.build_bank(native, external))


@pytest.mark.parametrize(
    "setting",
    [
        {"features.scales_um": [90, 200]},
        {"features.augmentations": 4},
        {"model.blocks": [1]},
        {"features.method": "dense"},
    ],
)
def test_what_only_an_encoder_can_do_is_refused_of_an_external_one(setting):
    with pytest.raises(BadOption, match="external"):
        EXTERNAL.override(setting)


@pytest.mark.parametrize("name", ["external:", "external:uni", "external:uni:0", "external:uni:many", "external::8"])
def test_a_name_without_encoder_or_width_is_refused(name):
    with pytest.raises(BadOption, match="external:NAME:WIDTH"):
        cmrcnet.create_image_encoder(name)


def test_the_column_features_of_a_cohort_file_gives_them(ours, tmp_path):
    csv = write_cohort(ours, tmp_path / "cohort")
    lines = csv.read_text().splitlines()
    for section in cmrcnet.read_cohort(csv):
        write_features(section, csv.parent / f"{section.name}.h5")
    csv.write_text("\n".join([lines[0] + ",features", *(f"{line},{line.split(',')[0]}.h5" for line in lines[1:])]))
    model = cmrcnet.fit(cmrcnet.read_cohort(csv), EXTERNAL)
    assert model.encoder.dim == WIDTH
    csv.write_text(csv.read_text().replace("P1S1.h5", "absent.h5"))
    with pytest.raises(MissingInput, match=r"line 2 \(P1S1\): The file of features .*absent.h5"):
        cmrcnet.read_cohort(csv)
