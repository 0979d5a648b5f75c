"""Maps finer than a spot: windows average to the spot, the truth is met, a model without them refuses; and what a table
of many locations holds."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from typing import Any

import anndata
import h5py
import numpy as np
import pytest
from PIL import Image
from scipy import sparse

import cmrcnet
from cmrcnet.analysis.attribution import attribution
from cmrcnet.cli.predict_commands import predict_command
from cmrcnet.config import Config
from cmrcnet.datasets.synthetic import synthetic_section, synthetic_truth
from cmrcnet.errors import BadOption, CmrcnetWarning, Incompatible, TooFew
from cmrcnet.export.formats import export
from cmrcnet.export.stored_prediction import StoredPrediction
from cmrcnet.features.engine import choose_engine
from cmrcnet.features.spec import FeatureSpec
from cmrcnet.genes.spatial_stats import pearson_per_gene
from cmrcnet.genes.table import check_prediction_table, decode
from cmrcnet.heads.ridge import KernelRidge
from cmrcnet.inference.location_features import LocationEncoder, LocationFeatures
from cmrcnet.inference.predict import predict, predict_to_file
from cmrcnet.inference.predictor import PredictOptions, make_predictor
from cmrcnet.inference.slide_batch import BROKEN, DONE_BEFORE, PREDICTED, SlidePredictor, predict_slides
from cmrcnet.models.encoders import create_image_encoder
from cmrcnet.readers.ann_data import read_location
from cmrcnet.slides.section import Spots
from cmrcnet.slides.tissue import FEWEST_ANCHORS, TissueMask, make_query_grid
from cmrcnet.workers import WorkerOptions
from tests.inference.small_model import noise_slide, small_cohort, small_model

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


@pytest.mark.parametrize(
    "side_um, window_um", [(60.0, WINDOW_UM), (120.0, WINDOW_UM), (200.0, WINDOW_UM), (200.0, None)]
)
def test_small_tissue_has_a_map_too(section, config, side_um, window_um):
    """Standardised over its few anchors of 100 um, all its features were 0, or up to 90 deviations from the mean."""
    mask = np.zeros((200, 200), bool)
    mask[40 : 40 + round(side_um / 8), 40 : 40 + round(side_um / 8)] = True
    tissue = TissueMask(mask, 8.0 / section.slide.mpp)
    grid = make_query_grid(section.slide, None, tissue, 16.0, windows=window_um is not None)
    resnet = create_image_encoder("timm:test_resnet", weights="random")
    spec = FeatureSpec.of(config.override({"model.blocks": []}), resnet)
    encoder = LocationEncoder(
        resnet, choose_engine(resnet, spec), lambda tokens: tokens.reshape(len(tokens), -1), resnet.dim, "name"
    )
    features = LocationFeatures(encoder, section.slide, grid.locations, anchor_px=grid.anchor_px, window_um=window_um)
    features.encode()
    found = features.take(slice(0, len(grid.locations)))
    assert np.abs(found).max() < 15 and (found.std(axis=0) > 0.1).mean() > 0.5  # a third of this encoder's are always 0


def test_where_there_are_enough_anchors_they_stay_those_of_100_um(section):
    for grid_um, windows in ((8.0, False), (100.0, True), (250.0, True)):
        anchor_px = make_query_grid(section.slide, None, None, grid_um, windows=windows).anchor_px
        assert len(anchor_px) >= FEWEST_ANCHORS
        np.testing.assert_array_equal(anchor_px, make_query_grid(section.slide, None, None, 100.0)[0].centre_px)
    assert make_query_grid(section.slide, None, None, 100.0).anchor_px is None
    assert make_query_grid(section.slide, section.spots, None, 8.0).anchor_px is None
    one = make_query_grid(section.slide, section.spots.take([0]), None, 8.0, windows=True)
    assert len(one.anchor_px) == len(anchor_px)


def test_one_location_is_refused_and_a_few_are_standardised_with_a_word(trained, section):
    """Of one all features would be 0; with windows they are standardised over the anchors, whatever is asked for."""
    with pytest.raises(TooFew, match=r"1 location of .* to standardise features within, but at least 2 are needed"):
        predict(slide=section.slide, spots=section.spots.take([0]), **trained)
    with pytest.warns(CmrcnetWarning, match="standardised within 2 locations only"):
        predict(slide=section.slide, spots=section.spots.take([0, 1]), **trained)
    assert predict(slide=section.slide, spots=section.spots.take([0]), window_um=WINDOW_UM, **trained).n_obs == 1


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


@pytest.fixture(scope="module")
def few(section) -> dict:
    spots = section.spots
    return {"spots": spots.take(range(10)), "slide": section.slide}


def test_components_are_decoded_to_the_expression_that_they_stand_for(trained, few, tmp_path):
    """Whatever the head, in memory and on disk; and a gene alone, a row alone, a table of some genes."""
    for head in ("ensemble", "ridge"):
        whole = predict(**trained, **few, head=head)
        plain = predict(**trained, **few, head=head, content="expression")
        coded = predict(**trained, **few, head=head, content="components")
        np.testing.assert_array_equal(plain.X, whole.X)
        assert not plain.layers and set(plain.obsm) == {"spatial"} and coded.X is None
        decoded = decode(
            coded.obsm["components"], coded.varm["loadings"], coded.var["level"].to_numpy(), coded.uns["cmrcnet"]
        )
        np.testing.assert_allclose(decoded, whole.X, atol=1e-5)
        wanted = whole.obs if head == "ensemble" else whole.obs.assign(similarity=np.float32("nan"))  # nothing searched
        assert plain.obs.equals(wanted) and coded.obs.equals(wanted)
        for table in (plain, coded):
            check_prediction_table(table)
    options = PredictOptions(spots=few["spots"], head="ridge", content="components")
    predict_to_file(make_predictor(*trained.values(), options), few["slide"], tmp_path / "c.h5ad")
    with StoredPrediction(tmp_path / "c.h5ad") as stored:
        np.testing.assert_allclose(stored.rows(slice(2, 5)), whole.X[2:5], atol=1e-5)
        np.testing.assert_allclose(stored.column(whole.var_names[3]), whole.X[:, 3], atol=1e-5)
        stored.require_unchanged()
        export(stored, tmp_path / "some.h5ad", genes=list(whole.var_names[[5, 1]]))
    some = anndata.read_h5ad(tmp_path / "some.h5ad")
    check_prediction_table(some)
    np.testing.assert_allclose(some.X, whole.X[:, [5, 1]], atol=1e-5)
    row = read_location(tmp_path / "c.h5ad", whole.obs_names[4])
    np.testing.assert_allclose(row.X, whole.X[4:5], atol=1e-5)
    with pytest.raises(Incompatible, match="holds components without neighbours; predict with --content all"):
        attribution(row, whole.obs_names[4])


def test_what_nothing_needs_is_not_searched(trained, few, monkeypatch):
    """The ridge head of windows, of which nothing but components is kept."""
    monkeypatch.setattr(type(trained["bank"].searcher()), "nearest", None)
    monkeypatch.setattr(KernelRidge, "predict", None)
    table = predict(**trained, **few, window_um=WINDOW_UM, content="components")
    assert table.obsm["components"].shape[0] == 10 and np.isnan(table.obs["similarity"]).all()


def test_a_gene_that_no_neighbours_section_measured_is_empty_in_either_content(trained, few):
    """But in expression alone of a head without neighbours, which is said by an empty similarity."""
    model, cohort = trained["model"], cmrcnet.synthetic_cohort(patients=2, spots=50, genes=24, structure=0.25)
    one, two = (dataclasses.replace(section, absent_genes="unmeasured") for section in cohort)
    counts = sparse.hstack([one.counts, one.counts[:, [0]]], format="csr")
    more = dataclasses.replace(one, counts=counts, genes=(*one.genes, "EXTRA"))
    bank = cmrcnet.build_bank(model, cmrcnet.Cohort.of([more, two]))
    how = {**few, "bank": bank, "k": 2, "genes": [*one.genes[:2], "EXTRA"]}
    for head in ("ensemble", "retrieval"):
        whole, plain = (predict(model, head=head, content=content, **how) for content in ("all", "expression"))
        assert 0 < np.isnan(whole.X).sum() < 10 and not np.isnan(whole.X[:, :-1]).any()
        np.testing.assert_array_equal(plain.X, whole.X)
    plain = predict(model, head="ridge", content="expression", **how)
    assert not np.isnan(plain.X).any() and np.isnan(plain.obs["similarity"]).all()


def test_half_precision_has_half_the_size_and_three_digits(trained, few, tmp_path):
    whole = predict(**trained, **few, intervals=False)
    options = PredictOptions(spots=few["spots"], half=True)
    predict_to_file(make_predictor(*trained.values(), options), few["slide"], tmp_path / "h.h5ad")
    found = anndata.read_h5ad(tmp_path / "h.h5ad")
    check_prediction_table(found)
    assert found.X.dtype == found.layers["neighbour_std"].dtype == np.float16
    assert found.uns["cmrcnet"]["values"] == "float16"
    with StoredPrediction(tmp_path / "h.h5ad") as stored:
        assert stored.column(whole.var_names[0]).dtype == stored.rows(slice(0, 3)).dtype == np.float32
        np.testing.assert_allclose(stored.rows(slice(None)), whole.X, rtol=6e-4, atol=1e-6)


def test_contents_that_do_not_fit_are_refused(trained, few, tmp_path):
    for options, why in (
        ({"content": "genes"}, "one of all, expression, components"),
        ({"content": "components", "intervals": True}, "interval_scale in obs"),
        ({"content": "components", "half": True}, "which are kept as float32"),
    ):
        with pytest.raises(BadOption, match=why):
            predict(**trained, **few, **options)
    model = small_model()
    with pytest.raises(BadOption, match="has no components"):
        predict(model, noise_slide(), bank=cmrcnet.build_bank(model, small_cohort()), content="components")
    pytest.importorskip("spatialdata", reason="extra `spatialdata`")
    predictor = make_predictor(*trained.values(), PredictOptions(spots=few["spots"], content="components"))
    with pytest.raises(BadOption, match="holds every gene"):
        predict_to_file(predictor, few["slide"], tmp_path / "c.zarr")


WHERE_AND_HOW = {"slide", "out", "overwrite", "batch", "workers", "bank_shards"}
"""Options of `cmrcnet predict` that say where, or how fast: they change no value."""
ONE_SLIDE_ONLY = {"section", "spots", "mask"}


def test_a_slide_predicted_with_any_other_option_is_not_taken_for_done(trained, section, tmp_path):
    """A new option stands in one of these sets, or here with another value."""
    model, bank = trained.values()
    pixels = section.slide.read(0, 0, section.slide.width_px, section.slide.height_px)
    (tmp_path / "features").mkdir()
    Image.fromarray(pixels).save(tmp_path / "one.png")
    with h5py.File(tmp_path / "features" / "one.h5", "w") as file:
        file["coords"] = np.array([[10.0, 10.0]])
        file["coords"].attrs.update({"patch_size_level0": 100 / section.slide.mpp, "anchor": "centre"})
        file["features"] = np.zeros((1, 4), np.float32)
    fewer = cmrcnet.build_bank(model, cmrcnet.synthetic_cohort(patients=1, spots=50, genes=24, structure=0.25))
    small = small_model()
    values: dict[str, object] = {
        "genes": list(bank.genes[:2]),
        "k": 5,
        "weighting": "mean",
        "head": "ridge",
        "grid_um": 90.0,
        "window_um": WINDOW_UM,
        "intervals": True,
        "abstain": 0.3,
        "content": "expression",
        "half": True,
        "model": (small, cmrcnet.build_bank(small, small_cohort())),
        "bank": (model, fewer),
        "mpp": section.slide.mpp * 1.5,
        "features": tmp_path / "features",
    }
    options = {each.name for each in dataclasses.fields(PredictOptions)}
    assert options | set(inspect.signature(predict_command).parameters) == set(values) | WHERE_AND_HOW | ONE_SLIDE_ONLY

    def outcome(name: str = "", value: object = None):
        pair: Any = value if name in ("model", "bank") else (model, bank)
        changed: Any = {name: value} if name in options else {}
        predictor = make_predictor(*pair, PredictOptions(**changed))
        others: Any = {"mpp": section.slide.mpp} | ({name: value} if name in ("mpp", "features") else {})
        slides = SlidePredictor(lambda: predictor, tmp_path / "out", **others)
        return predict_slides(slides, [tmp_path / "one.png"], WorkerOptions("local", 1)).outcomes[0]

    assert outcome().status == PREDICTED and outcome().status == DONE_BEFORE
    for name, value in values.items():
        found = outcome(name, value)
        assert found.status == BROKEN and "it differs in" in found.problem, f"{name}: {found}"
