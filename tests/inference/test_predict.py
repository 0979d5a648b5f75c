"""Predicting on a slide: equal to the obvious path, and indifferent to order, batches, caches and disks."""

from __future__ import annotations

import dataclasses
import inspect
import json

import anndata
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrcnet.config import HeadConfig
from cmrcnet.errors import BadOption, Incompatible, ScaleError, SectionError, TooFew, UnknownName
from cmrcnet.features.extract import extract
from cmrcnet.features.spec import FeatureSpec
from cmrcnet.genes.table import check_prediction_table
from cmrcnet.inference import predict as predict_module
from cmrcnet.inference.predict import predict
from cmrcnet.inference.predictor import average_expression, embedding_bag_sums
from cmrcnet.readers.cohort import read_cohort
from cmrcnet.retrieval.bank import ReferenceBank, build_bank
from cmrcnet.search.aggregate import average
from cmrcnet.search.exact import Neighbours
from cmrcnet.slides.section import Cohort, Spots
from cmrcnet.slides.slide import ArraySlide, Slide
from cmrcnet.storage.cache import TokenCache
from tests.inference.small_model import GENES, locations, noise_slide, small_cohort, small_model, small_section

SPOTS = locations(10, seed=3)


@pytest.fixture(scope="module")
def table(model, bank):
    """Ten locations, all genes."""
    return predict(model, noise_slide(9), bank=bank, spots=SPOTS)


def test_it_equals_the_obvious_path(model, bank, table):
    """Embed, sort all cosines, and average the rows one by one; genes that B1 did not measure from A1 and A2 alone."""
    tokens = extract(
        model.encoder, noise_slide(9), SPOTS.centre_px, FeatureSpec(patch=model.config.patch, device="cpu")
    )
    cosine = model.embed_tokens(tokens) @ bank.vectors.T
    expression, measured = bank.expression.toarray(), bank.measured[bank.section_of_spot]
    for place in range(len(SPOTS)):
        ids = np.argsort(-cosine[place], kind="stable")[:4]
        np.testing.assert_array_equal(np.sort(table.obsm["neighbour_ids"][place]), np.sort(ids))
        weight = np.exp(cosine[place, ids] / model.config.head.temperature)[:, None] * measured[ids]
        with np.errstate(invalid="ignore"):
            wanted = (weight * expression[ids]).sum(axis=0) / weight.sum(axis=0)
        np.testing.assert_allclose(table.X[place], wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(table.obs["similarity"].iloc[place], cosine[place, ids].mean(), rtol=1e-5)


def test_the_table_says_where_it_comes_from(model, bank, table):
    ours = table.uns["cmrcnet"]
    assert (ours["model_fingerprint"], ours["bank_fingerprint"]) == (model.fingerprint, bank.fingerprint)
    assert (ours["k"], ours["weighting"], ours["temperature"]) == (4, "similarity", 0.1)
    assert (ours["patch_px"], ours["patch_mpp"], ours["units"]) == (160, 0.5, "log1p of counts per 10,000")
    assert tuple(table.var_names) == bank.genes and tuple(table.obs_names) == SPOTS.barcodes
    np.testing.assert_array_equal(table.obsm["spatial"], SPOTS.centre_px)
    assert table.obsm["neighbour_ids"].dtype == np.int64


def test_every_neighbour_can_be_looked_up_without_the_bank(bank, table, tmp_path):
    table.copy().write_h5ad(tmp_path / "p.h5ad")
    for read in (table, anndata.read_h5ad(tmp_path / "p.h5ad")):
        known = read.uns["cmrcnet"]["neighbour_spots"]
        for row in np.unique(read.obsm["neighbour_ids"]):
            assert list(known.loc[str(row)]) == list(bank.spots.iloc[row])
        assert len(known) == len(np.unique(read.obsm["neighbour_ids"]))


def test_a_plain_slide_is_predicted_on_a_grid(model, bank):
    table = predict(model, noise_slide(4, side=900), bank=bank, genes=list(GENES[:3]), grid_um=90.0)
    assert table.n_obs >= 9 and (table.obs["in_tissue"] == 1).all()
    assert len(np.unique(table.obs["x_um"])) > 1 and np.diff(np.unique(table.obs["x_um"])).min() == pytest.approx(90)
    check_prediction_table(table)


def test_places_beside_the_tissue_are_marked(model, bank):
    pixels = np.full((600, 600, 3), 250, np.uint8)
    pixels[:, :300] = noise_slide(4, side=600).read(0, 0, 300, 600)
    table = predict(model, ArraySlide(pixels, 0.5), bank=bank, spots=locations(30, side=600), genes=["GENE1"])
    left = table.obsm["spatial"][:, 0] < 300
    assert table.obs["in_tissue"][left].mean() > 0.8 and table.obs["in_tissue"][~left].mean() < 0.3


def test_it_takes_a_slide_and_no_counts():
    """A section, which holds counts, is not what it asks for: truth cannot enter."""
    asked = inspect.signature(predict).parameters
    assert asked["slide"].annotation == "Slide" and not {"section", "counts", "cohort"} & set(asked)
    assert not any("counts" in name or "expression" in name for name in dir(Slide))


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 1000))
def test_permuting_places_permutes_predictions(model, bank, table, seed):
    order = np.random.default_rng(seed).permutation(len(SPOTS))
    other = predict(model, noise_slide(9), bank=bank, spots=SPOTS.take(order))
    assert list(other.obs_names) == [SPOTS.barcodes[i] for i in order]
    np.testing.assert_allclose(other.X, table.X[order], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(other.obsm["neighbour_ids"], table.obsm["neighbour_ids"][order])


@pytest.mark.parametrize("at_once", [1, 3, 1024])
def test_batches_change_nothing(model, bank, table, monkeypatch, at_once):
    monkeypatch.setattr(predict_module, "chunk_size", lambda genes: at_once)
    other = predict(model, noise_slide(9), bank=bank, spots=SPOTS)
    np.testing.assert_allclose(other.X, table.X, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(other.obsm["neighbour_ids"], table.obsm["neighbour_ids"])


def test_the_cache_changes_nothing(model, bank, table, tmp_path):
    cache = TokenCache(tmp_path / "cache")
    for _ in range(2):
        other = predict(model, noise_slide(9), bank=bank, spots=SPOTS, cache=cache)
        np.testing.assert_allclose(other.X, table.X, rtol=1e-4, atol=1e-5)
    assert cache.size_bytes() > 0


def test_a_bank_from_disk_predicts_the_same(model, bank, table, tmp_path):
    bank.save(tmp_path / "bank")
    other = predict(model, noise_slide(9), bank=ReferenceBank.load(tmp_path / "bank"), spots=SPOTS)
    np.testing.assert_array_equal(other.X, table.X)
    np.testing.assert_array_equal(other.layers["neighbour_std"], table.layers["neighbour_std"])
    assert other.uns["cmrcnet"]["bank_fingerprint"] == bank.fingerprint


def test_chosen_genes_are_the_same_numbers_in_the_order_asked(model, bank, table):
    genes = ["NEW1", "GENE3", "GENE0"]
    other = predict(model, noise_slide(9), bank=bank, spots=SPOTS, genes=genes)
    assert list(other.var_names) == genes
    np.testing.assert_array_equal(other.X, table[:, genes].X)
    np.testing.assert_array_equal(other.layers["neighbour_std"], table[:, genes].layers["neighbour_std"])


@pytest.mark.parametrize("off", [[400.0, 10.0], [10.0, -1.0]])
def test_a_place_outside_the_picture_is_refused(model, bank, off):
    spots = Spots(("in", "out"), np.array([[200.0, 200.0], off]), 55.0)
    with pytest.raises(SectionError, match=r"1 of 2 spots of .* lie outside its image \(400 x 400 px; the spots"):
        predict(model, noise_slide(9), bank=bank, spots=spots)


def test_k_and_weighting_can_be_chosen(model, bank):
    one = predict(model, noise_slide(9), bank=bank, spots=SPOTS, k=1, genes=["GENE0", "GENE5"])
    nearest = one.obsm["neighbour_ids"][:, 0]
    np.testing.assert_array_equal(one.X, bank.expression.toarray()[nearest][:, [0, 5]])
    assert (one.layers["neighbour_std"] == 0).all()
    every = predict(model, noise_slide(9), bank=bank, spots=SPOTS, k=24, weighting="mean", genes=["GENE0"])
    np.testing.assert_allclose(every.X, bank.expression.toarray()[:, :1].mean(), rtol=1e-5)
    assert (every.uns["cmrcnet"]["k"], every.uns["cmrcnet"]["weighting"]) == (24, "mean")


def test_a_gene_that_no_neighbour_measured_is_unknown_and_not_zero(model):
    """Now the one, now the other section has an assay without GENE11."""
    seen = set()
    for lacking in ("A1", "B1"):
        sections = [
            small_section(name, name[0], genes=GENES[:9], absent="unmeasured")
            if name == lacking
            else small_section(name, name[0])
            for name in ("A1", "B1")
        ]
        bank = build_bank(model, Cohort.of(sections))
        table = predict(model, noise_slide(9), bank=bank, spots=SPOTS, k=1)
        unknown = bank.spots["section"].to_numpy()[table.obsm["neighbour_ids"][:, 0]] == lacking
        np.testing.assert_array_equal(np.isnan(table[:, "GENE11"].X[:, 0]), unknown)
        np.testing.assert_array_equal(np.isnan(table[:, "GENE11"].layers["neighbour_std"][:, 0]), unknown)
        assert np.isfinite(table[:, "GENE0"].X).all()
        check_prediction_table(table)
        seen |= set(unknown.tolist())
    assert seen == {True, False}


def test_a_config_that_wants_more_spots_than_the_bank_has_takes_them_all(model, bank):
    wide = dataclasses.replace(model, config=model.config.override({"head.k": 500}))
    table = predict(wide, noise_slide(9), bank=bank, spots=SPOTS)
    assert table.uns["cmrcnet"]["k"] == 24
    np.testing.assert_array_equal(table.X, predict(model, noise_slide(9), bank=bank, spots=SPOTS, k=24).X)


def test_bad_input_is_refused(model, bank):
    slide = noise_slide(9)
    with pytest.raises(UnknownName, match=r"There is no gene in the bank 'Gene0'; known: GENE0.*match when upper"):
        predict(model, slide, bank=bank, spots=SPOTS, genes=["Gene0"])
    with pytest.raises(TooFew, match="0 genes to predict, but at least 1 are needed"):
        predict(model, slide, bank=bank, spots=SPOTS, genes=[])
    with pytest.raises(BadOption, match="k is 25; wanted 1 to 24, the number of spots in bank"):
        predict(model, slide, bank=bank, spots=SPOTS, k=25)
    with pytest.raises(BadOption, match=r"head.k is 0; wanted a whole number, 1 or more"):
        predict(model, slide, bank=bank, spots=SPOTS, k=0)
    with pytest.raises(BadOption, match="weighting is 'median'; wanted mean or similarity"):
        predict(model, slide, bank=bank, spots=SPOTS, weighting="median")
    with pytest.raises(TooFew, match="0 locations to predict"):
        predict(model, slide, bank=bank, spots=SPOTS.take(np.arange(0)))
    with pytest.raises(Incompatible):
        predict(small_model(seed=1), slide, bank=bank, spots=SPOTS)
    with pytest.raises(TooFew):
        predict(model, ArraySlide(np.full((500, 500, 3), 250, np.uint8), 0.5, "blank"), bank=bank)
    with pytest.raises(ScaleError):
        predict(model, ArraySlide(np.zeros((500, 500, 3), np.uint8)), bank=bank, spots=SPOTS)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 24), weighting=st.sampled_from(["mean", "similarity"]))
def test_torchs_sum_of_rows_equals_scipys(bank, seed, k, weighting):
    rng = np.random.default_rng(seed)
    ids = np.array([rng.permutation(24)[:k] for _ in range(5)])
    neighbours = Neighbours(ids, -np.sort(-rng.random((5, k), np.float32), axis=1))
    given_mask = {"section_of_spot": bank.section_of_spot, "measured": bank.measured}
    slow = average(neighbours, bank.expression, weighting=weighting, temperature=0.3, **given_mask)
    fast = average_expression(neighbours, bank, HeadConfig(k=k, weighting=weighting, temperature=0.3))
    np.testing.assert_allclose(fast[0], slow[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fast[1], slow[1], rtol=1e-3, atol=5e-3)


def test_the_bag_of_no_places_is_empty():
    empty = np.empty((0, 3), np.int64)
    assert embedding_bag_sums(empty, empty.astype(np.float32), 4)(np.ones((4, 2), np.float32)).shape == (0, 2)


def test_real_sections(als_csv, tmp_path):
    """Two mice in the bank, locations of a third mouse's section, from its picture alone."""
    cohort = read_cohort(als_csv)
    first, second, other = (next(s for s in cohort.sections if cohort.patient_of(s) == p) for p in cohort.patients[:3])
    sections = cohort.only([first, second])
    shared = set(sections.read(first).genes) & set(sections.read(second).genes)
    model = small_model(panel=tuple(sorted(shared)[:20]))
    build_bank(model, sections).save(tmp_path / "bank")
    bank = ReferenceBank.load(tmp_path / "bank")
    assert len(bank.genes) == len(set(sections.read(first).genes) | set(sections.read(second).genes)) > 10_000
    unseen = cohort.read(other)
    table = predict(model, unseen.slide, bank=bank, spots=unseen.spots.take(np.arange(8)), k=20)
    check_prediction_table(table)
    assert table.shape == (8, len(bank.genes)) and table.obs["in_tissue"].mean() > 0.5
    assert table.X.min() >= 0 and table.X.max() <= max(part.expression.data.max() for part in bank.entries)
    assert set(table.uns["cmrcnet"]["neighbour_spots"]["section"]) <= {first, second}


def test_the_licences_of_the_banks_slides_reach_the_table(model):
    licensed = [dataclasses.replace(s, metadata={"licence": "CC BY 4.0"}) for s in small_cohort()]
    table = predict(model, noise_slide(9), bank=build_bank(model, Cohort.of(licensed)), spots=SPOTS)
    told = json.loads(table.uns["cmrcnet"]["licences"])
    assert told["slides of the bank"] == "CC BY 4.0 (3 sections)"
