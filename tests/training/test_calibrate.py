"""What a training knows of its limits, and what predictions then say of themselves."""

from __future__ import annotations

from dataclasses import replace

import anndata
import numpy as np
import pytest
from scipy import sparse

from cmrcnet.errors import BadOption, CmrcnetWarning, Damaged, Incompatible
from cmrcnet.genes.table import check_prediction_table
from cmrcnet.inference.predict import predict
from cmrcnet.models.trained_model import TrainedModel
from cmrcnet.retrieval.bank import build_bank
from cmrcnet.slides.section import Cohort
from cmrcnet.slides.slide import ArraySlide
from cmrcnet.training import fit as fit_module
from cmrcnet.training.calibrate import HeldOutGroup, offset_share, section_statistics


@pytest.fixture(scope="module")
def table(model, bank, cohort, cache):
    section = cohort.read(cohort.sections[1])
    return predict(model, section.slide, bank=bank, spots=section.spots, intervals=True, abstain=0.4, cache=cache)


def test_it_rests_on_every_unit_validation_once(model, cohort):
    facts = model.calibration.reliability.intervals.facts
    assert (facts["groups"], facts["group_by"], facts["sections"], facts["spots"]) == (3, "patient", 3, 72)
    assert facts["names"] == sorted(cohort.patients)
    assert model.calibration.ood_detector.facts["sections"] == 3
    assert len(model.calibration.reliability.gene_reliability.genes) == 120


def test_what_tissue_shows_gets_a_good_grade_and_most_intervals_are_finite(model):
    reliability = model.calibration.reliability
    table = reliability.gene_reliability.table(model.panel.genes)
    assert (table["grade"].isin(["A", "B", "C"])).sum() > 5
    assert np.isfinite(reliability.intervals.low).mean() > 0.9
    assert np.nanmax(reliability.intervals.low) <= 0 <= np.nanmin(reliability.intervals.high)


def test_levels_and_loadings_are_those_of_the_other_units():
    """Whatever the validation unit measured, what its own expression is read from stays the same."""
    rng = np.random.default_rng(0)
    section_of, measured = np.repeat([0, 1, 2], 6), np.ones((3, 4), bool)
    scores, expression = rng.normal(size=(18, 2)), rng.poisson(1.0, (18, 4)).astype(np.float32)
    inside = section_of == 1

    def side():
        statistics = section_statistics(sparse.csc_matrix(expression), measured, section_of, scores)
        return HeldOutGroup.of(inside, section_of, statistics, measured)

    first = side()
    expression[6:12] += 5
    second = side()
    np.testing.assert_array_equal(first.out, np.arange(6, 12))
    np.testing.assert_array_equal(first.decoder.loadings, second.decoder.loadings)
    np.testing.assert_allclose(first.decoder.level, (expression[:6].mean(0) + expression[12:].mean(0)) / 2, rtol=1e-5)


def test_the_share_of_the_units_offset_by_hand():
    residual = np.array([[1.0, 3.0], [1.0, -3.0], [-1.0, np.nan], [-1.0, np.nan]])
    found = offset_share(residual, np.full(4, 0.25), np.array(["A", "A", "B", "B"]))
    np.testing.assert_allclose(found, [1, 0])


def test_it_comes_back_from_disk_and_leaves_the_fingerprint_alone(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    again = TrainedModel.from_pretrained(tmp_path / "model")
    assert again.fingerprint == model.fingerprint
    mine, there = model.calibration.arrays(), again.calibration.arrays()
    assert mine.keys() == there.keys()
    for name, values in mine.items():
        np.testing.assert_array_equal(there[name], values)
    found = {path.name for path in (tmp_path / "model").iterdir() if not path.name.startswith(".")}
    assert found == {"model.json", "weights.safetensors", "calibration.safetensors"}


@pytest.mark.parametrize(
    ("harm", "error", "said"),
    [
        (lambda path: path.unlink(), Damaged, r"calibration\.safetensors is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), Damaged, r"calibration\.safetensors are damaged"),
    ],
)
def test_a_damaged_account_is_refused(model, tmp_path, harm, error, said):
    model.save_pretrained(tmp_path / "model")
    harm(tmp_path / "model" / "calibration.safetensors")
    with pytest.raises(error, match=said):
        TrainedModel.from_pretrained(tmp_path / "model")


def test_a_prediction_tells_how_far_to_believe_it(table, model, tmp_path):
    check_prediction_table(table)
    obs, var = table.obs, table.var
    assert obs["confidence"].between(0, 1).all() and (obs["interval_scale"] > 0).all()
    np.testing.assert_array_equal(obs["abstained"], (obs["confidence"] < 0.4).astype(int))
    lower, upper = table.layers["lower"], table.layers["upper"]
    factor = obs["interval_scale"].to_numpy()[:, None]
    np.testing.assert_allclose(upper, table.X + factor * var["interval_high"].to_numpy(), rtol=1e-4, atol=1e-5)
    known = np.isfinite(lower)
    assert known.mean() > 0.9 and (lower[known] >= 0).all() and (lower[known] <= table.X[known] + 1e-5).all()
    assert set(var["grade"]) <= {"A", "B", "C", "D", "not measured"}
    assert set(var["reliability_is"]) <= {"validation Pearson", "not measured"}
    told = table.uns["cmrcnet"]
    assert told["intervals"] == model.calibration.reliability.intervals.sentence
    assert told["gene_reliability"].startswith("Validation Pearson over 3 sections") and told["abstain"] == 0.4
    table.copy().write_h5ad(tmp_path / "p.h5ad")
    again = anndata.read_h5ad(tmp_path / "p.h5ad")
    np.testing.assert_array_equal(again.layers["upper"], upper)
    assert int(again.uns["cmrcnet"]["ood"]["raised"]) == 0


def test_intervals_are_layers_only_when_asked_for(model, bank, cohort, cache, table):
    section = cohort.read(cohort.sections[1])
    plain = predict(model, section.slide, bank=bank, spots=section.spots, cache=cache)
    assert set(plain.layers) == {"neighbour_std"} and "abstained" not in plain.obs
    np.testing.assert_allclose(plain.obs["interval_scale"], table.obs["interval_scale"], rtol=1e-5)


def test_another_way_of_reading_out_was_not_calibrated(model, bank, cohort, cache):
    section = cohort.read(cohort.sections[0])
    ridge = predict(model, section.slide, bank=bank, spots=section.spots, head="ridge", cache=cache)
    assert ridge.obs["confidence"].isna().all() and "interval_scale" not in ridge.obs
    assert "head ridge was asked for" in ridge.uns["cmrcnet"]["intervals"]
    with pytest.raises(Incompatible, match=r"no calibrated intervals: they were calibrated for head ensemble, k 10"):
        predict(model, section.slide, bank=bank, spots=section.spots, k=3, intervals=True, cache=cache)
    with pytest.raises(BadOption, match=r"abstain is 30; wanted a share between 0 and 1"):
        predict(model, section.slide, bank=bank, spots=section.spots, abstain=30, cache=cache)


def test_one_patient_makes_no_intervals(cohort, plan, cache):
    """Sections of one patient say nothing about how much others differ, however many they are."""
    one = Cohort.of([replace(section, patient="P") for section in cohort], "one patient")
    model = fit_module.fit(one, plan, cache=cache)
    bank, section = build_bank(model, one, cache=cache), one.read(one.sections[0])
    facts = model.calibration.reliability.intervals.facts
    assert (facts["patients"], facts["group_by"]) == (1, "section")
    assert np.isnan(model.calibration.reliability.intervals.low).all()
    with pytest.raises(Incompatible, match="no calibrated intervals: the training sections are of one patient"):
        predict(model, section.slide, bank=bank, spots=section.spots, intervals=True, cache=cache)
    plain = predict(model, section.slide, bank=bank, spots=section.spots, abstain=0.4, cache=cache)
    assert plain.obs["confidence"].notna().all() and "No intervals" in plain.uns["cmrcnet"]["intervals"]


def test_another_bank_is_said(model, cohort, cache):
    fewer = build_bank(model, cohort.only(cohort.sections[:2]), cache=cache)
    section = cohort.read(cohort.sections[2])
    table = predict(model, section.slide, bank=fewer, spots=section.spots, cache=cache)
    assert "The bank does not hold the sections of training" in table.uns["cmrcnet"]["intervals"]


def test_exchanged_channels_are_heard(model, bank, cohort, cache):
    section = cohort.read(cohort.sections[0])
    pixels = section.slide.read(0, 0, section.slide.width_px, section.slide.height_px)
    wrong = ArraySlide(pixels[..., ::-1].copy(), section.slide.mpp, "wrong")
    with pytest.warns(CmrcnetWarning, match="wrong looks as if its red and blue channels were exchanged"):
        table = predict(model, wrong, bank=bank, spots=section.spots, cache=cache)
    assert (table.obs["in_distribution"] == 0).all() and (table.obs["ood_distance"] > 0).all()
    assert (table.uns["cmrcnet"]["ood"]["kind"], table.uns["cmrcnet"]["ood"]["raised"]) == ("red-blue", 1)


def test_a_config_that_holds_in_one_unit_says_that_it_cannot_calibrate(cohort, config, cache):
    model = fit_module.fit(cohort, config, cache=cache)
    assert model.calibration.ood_detector is not None and model.calibration.reliability is None
    bank, section = build_bank(model, cohort, cache=cache), cohort.read(cohort.sections[0])
    with pytest.raises(Incompatible, match="its config does not leave out each group in turn; train with a config"):
        predict(model, section.slide, bank=bank, spots=section.spots, intervals=True, cache=cache)
    silent = fit_module.fit(cohort, config, cache=cache, calibrate=False)
    assert silent.calibration is None and silent.fingerprint == model.fingerprint
