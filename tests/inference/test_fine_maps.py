"""Maps finer than a spot: windows average to the spot, the truth is met, and a model without them refuses."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest

import cmrcnet
from cmrcnet.config import Config
from cmrcnet.datasets.synthetic import synthetic_section, synthetic_truth
from cmrcnet.errors import BadOption, CmrcnetWarning, Incompatible
from cmrcnet.genes.spatial_stats import pearson_per_gene
from cmrcnet.inference.predict import predict
from cmrcnet.slides.section import Spots
from cmrcnet.slides.tissue import TissueMask, make_query_grid
from tests.inference.small_model import noise_slide, small_model

WINDOW_UM = 28.0
SETTINGS = {
    "model.encoder": "timm:test_resnet",
    "model.weights": "random",
    "model.blocks": [0],
    "model.embedding_dim": 16,
    "model.fusion_dim": 16,
    "model.cross_heads": 2,
    "model.fusion_heads": 2,
    "patch.size_px": 112,
    "features.augmentations": 1,
    "features.window_um": WINDOW_UM,
    "features.engine": "torch",
    "panel.n_hvg": 24,
    "evaluation.set_size": 10,
    "train.epochs": 2,
    "train.device": "cpu",
    "train.precision": "float32",
    "head.k": 10,
}


@pytest.fixture(scope="module")
def config() -> Config:
    return Config.load("default").override(SETTINGS)


@pytest.fixture(scope="module")
def trained(config):
    cohort = cmrcnet.synthetic_cohort(patients=2, spots=50, genes=24, structure=0.25)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CmrcnetWarning)  # the network is at chance; the ridge head is not
        model = cmrcnet.fit(cohort, config)
    return {"model": model, "bank": cmrcnet.build_bank(model, cohort)}


@pytest.fixture(scope="module")
def section():
    return synthetic_section(spots=50, genes=24, structure=0.25)


@pytest.fixture(scope="module")
def everywhere(section) -> TissueMask:
    return TissueMask(np.ones((1, 1), bool), float(max(section.slide.width_px, section.slide.height_px)))


def parts_of(spots: Spots, mpp: float, window_um: float, whole_um: float) -> Spots:
    """Centres of the windows that fill the square of each spot, spot by spot."""
    count = round(whole_um / window_um)
    steps = (np.arange(count) - (count - 1) / 2) * window_um / mpp
    apart = np.array([(x, y) for y in steps for x in steps])
    centres = (spots.centre_px[:, None] + apart).reshape(-1, 2)
    return Spots(tuple(f"w{number}" for number in range(len(centres))), centres, window_um)


@pytest.mark.parametrize("window_um", [28.0, 56.0])
def test_the_mean_over_a_spot_is_the_prediction_of_the_spot(trained, section, everywhere, window_um):
    """Exact before values below 0 are cut off, which a few genes are; here those are left out."""
    how = {"mask": everywhere, "head": "ridge", **trained}
    whole = predict(slide=section.slide, spots=section.spots, window_um=112.0, **how).X
    parts = parts_of(section.spots, section.slide.mpp, window_um, 112.0)
    table = predict(slide=section.slide, spots=parts, window_um=window_um, **how)
    split = np.asarray(table.X).reshape(len(whole), -1, whole.shape[1])
    cut = (split == 0).any(axis=1) | (whole == 0)
    assert cut.mean() < 0.1
    assert split.std(axis=1).mean() > 0.2 * whole.std(axis=0).mean()  # the parts do differ
    np.testing.assert_allclose(split.mean(axis=1)[~cut], whole[~cut], atol=1e-3 * whole.std())
    facts = table.uns["cmrcnet"]
    assert facts["window_um"] == window_um and facts["head"] == "ridge"
    assert np.isnan(table.obs["confidence"]).all() and "whole spots" in facts["intervals"]


def test_fine_windows_are_nearer_to_the_fine_truth_than_a_coarse_map_blown_up(trained, section):
    fine, tissue, anchor_px = make_query_grid(section.slide, None, None, WINDOW_UM)
    how = {"slide": section.slide, "mask": tissue, **trained}
    truth = synthetic_truth(section, fine.centre_px, diameter_um=WINDOW_UM)
    coarse = predict(grid_um=100.0, head="ridge", **how)
    np.testing.assert_array_equal(coarse.obsm["spatial"], anchor_px)
    nearest = ((fine.centre_px[:, None] - coarse.obsm["spatial"]) ** 2).sum(axis=2).argmin(axis=1)

    def score(values) -> float:
        columns = [i for i, gene in enumerate(truth.genes) if gene.startswith(("LYMPH", "STROMA", "FAT"))]
        return float(np.mean(pearson_per_gene(truth.expected[:, columns], np.asarray(values)[:, columns])))

    assert score(predict(grid_um=WINDOW_UM, window_um=WINDOW_UM, **how).X) > score(coarse.X[nearest]) + 0.1


def test_the_pitch_and_the_company_of_a_location_do_not_matter(trained, section):
    """Its neighbourhood and its standardisation are those of the anchors."""
    how = {"slide": section.slide, "window_um": WINDOW_UM, **trained}
    table = predict(grid_um=80.0, **how)
    some = Spots(tuple(table.obs_names[:7]), table.obsm["spatial"][:7], WINDOW_UM)
    np.testing.assert_allclose(predict(spots=some, **how).X, table.X[:7], atol=2e-4)


@pytest.mark.parametrize("window_um", [0.0, -28.0, 10.0, 42.0, 140.0, float("nan")])
def test_other_windows_are_refused_with_those_that_can_be_had(trained, section, window_um):
    with pytest.raises(BadOption, match=r"wanted one of 28, 56, 84, 112 um"):
        predict(slide=section.slide, window_um=window_um, **trained)


def test_intervals_of_windows_are_refused(trained, section):
    with pytest.raises(Incompatible, match="calibrated for whole spots"):
        predict(slide=section.slide, window_um=WINDOW_UM, intervals=True, **trained)


def test_a_model_without_windows_refuses_them(trained, section):
    plain = dataclasses.replace(trained["model"], config=trained["model"].config.override({"features.window_um": 0.0}))
    with pytest.raises(BadOption, match=r"whole window of 112 um; for smaller ones train with features\.window_um"):
        predict(plain, section.slide, bank=trained["bank"], window_um=WINDOW_UM)
    with pytest.raises(BadOption, match="whole window of 80 um"):
        predict(small_model(), noise_slide(), bank=trained["bank"], window_um=WINDOW_UM)


def test_the_config_refuses_windows_that_cannot_be_trained(config):
    for settings, why in (
        ({"features.window_um": 30.0}, "divided by 2 to 16"),
        ({"features.window_um": -28.0}, "divided by 2 to 16"),
        ({"features.window_um": 112.0}, "divided by 2 to 16"),
        ({"features.window_um": 4.0}, "divided by 2 to 16"),
        ({"features.method": "patches"}, "auto or dense"),
        ({"target.ranks": [], "head.kind": "retrieval", "target.depth_weights": False}, "unless target.ranks is set"),
    ):
        with pytest.raises(BadOption, match=why):
            config.override(settings)
    with pytest.raises(BadOption, match="no convolutional network"):
        cmrcnet.fit(
            cmrcnet.synthetic_cohort(patients=2, spots=4, genes=24), config.override({"model.encoder": "timm:test_vit"})
        )
