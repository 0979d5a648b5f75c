"""Slides pooled to patients: what each block holds, what a planted programme gives, and which models are refused."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest

from cmrcnet.cli.app import main
from cmrcnet.errors import BadInput, Incompatible
from cmrcnet.genes.spatial_stats import morans_i, spot_graph
from cmrcnet.genes.table import prediction_table
from cmrcnet.outcomes.cohort import Columns, Permuted
from cmrcnet.outcomes.models import ModelOptions
from cmrcnet.outcomes.pooling import SlideStack, slide_colour, with_slides
from cmrcnet.outcomes.protocol import ProtocolOptions, compare, methods_of
from cmrcnet.outcomes.report import report_html, verdict, warnings_of
from cmrcnet.outcomes.risk_maps import location_risks, risk_maps
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import ArraySlide
from tests.outcomes.made_slides import GENES, SIGNATURES, made_cohort, made_slides

OTHER = {"units": "log", "slide_fingerprint": "other"}

QUICK = ProtocolOptions(folds=3, repeats=1, permutations=0, bootstrap=100, models=ModelOptions(penalties=(0.1,)))


def methods(cohort, *names):
    return [method for method in methods_of(cohort) if method.name in names]


@pytest.fixture(scope="module")
def run():
    cohort, _ = made_cohort(patients=90)
    wanted = methods(cohort, "none", "clinical", "expression", "spatial", "colour", "attention")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cmrcnet.outcomes.attention.EPOCHS", 25)
        return compare(cohort, QUICK, methods=wanted)


def test_a_region_programme_is_found_near_the_oracle(run):
    from lifelines.utils import concordance_index

    _, table = made_cohort(patients=90)
    oracle = concordance_index(table.months, -table.oracle, table.dead)
    assert run.score("expression").value > oracle - 0.06
    assert run.score("spatial").value > oracle - 0.06
    assert run.score("attention").value > oracle - 0.12
    assert abs(run.score("colour").value - 0.5) < 0.12
    assert not any("colour" in warning and "alone" in warning for warning in warnings_of(run))


def test_a_scanner_in_place_of_the_tissue_is_flagged():
    cohort, _ = made_cohort(patients=90, confounded=True)
    wanted = methods(cohort, "clinical", "expression", "clinical + expression", "colour", "colour + expression")
    found = compare(cohort, QUICK, methods=wanted)
    assert found.score("expression").value > 0.65, "the confounder reaches expression"
    assert any("colour alone predicts the outcome" in warning for warning in warnings_of(found))
    assert "expression is not shown to add to" in verdict(found)


def test_what_locations_add_sums_to_the_risk(run):
    case = 5
    mine = location_risks(run, case)
    assert mine["attention"].sum() == pytest.approx(run.predicted["attention"].risk[0, case], abs=1e-4)
    both = [location_risks(run, each)["expression"].mean() for each in range(30)]
    risks = run.predicted["expression"].risk[0, :30]
    for fold in range(3):
        inside = run.folds.of[0, :30] == fold  # the level differs between folds, the differences do not
        gap = np.array(both)[inside] - risks[inside]
        assert np.ptp(gap) < 0.05
    # Immune tissue lowers the planted hazard.
    immune = run.cohort.stack.slides[run.cohort.stack.of_case[case][0]].expression[:, :3].mean(axis=1)
    assert np.corrcoef(immune, mine["expression"][: len(immune)])[0, 1] < -0.7
    assert risk_maps(run).count("data:image/jpeg") == 8
    assert "Risk on the slide" in report_html(run, maps=risk_maps(run))


def test_blocks_by_hand():
    cohort, _ = made_cohort(patients=6)
    stack = cohort.stack
    every = np.arange(6)
    two = [stack.expression(int(number)).mean(axis=0) for number in stack.of_case[0]]
    np.testing.assert_allclose(cohort.blocks["expression"].features(every).iloc[0], np.mean(two, axis=0), rtol=1e-6)
    spatial = cohort.blocks["spatial"].features(every)
    slide = stack.slides[stack.of_case[5][0]]
    immune = slide.expression[:, :3].mean(axis=1)
    graph = spot_graph(slide.centre_px)
    assert spatial["q90 immune"][5] == pytest.approx(np.quantile(immune, 0.9), rel=1e-5)
    assert spatial["moran immune"][5] == pytest.approx(float(morans_i(immune[:, None], graph)[0]), rel=1e-5)
    np.testing.assert_allclose(spatial[[f"share {name}" for name in ("immune", "tumour", "fat")]].sum(axis=1), 1)
    assert spatial["immune with tumour"].between(-1, 1).all()


def test_blocks_learn_from_training_slides_only():
    cohort, _ = made_cohort(patients=8)
    stack, train = cohort.stack, np.arange(5)
    before = {name: cohort.blocks[name].features(train).iloc[:5] for name in ("components", "spatial")}
    for number in range(5, 8):
        for slide in stack.of_case[number]:
            stack.slides[slide].expression[:] = 100.0
    again = with_slides(replace(cohort, blocks={}), stack, SIGNATURES)
    for name, frame in before.items():
        pd.testing.assert_frame_equal(again.blocks[name].features(train).iloc[:5], frame)


def test_a_permuted_block_learns_where_its_rows_come_from():
    class Recorder(Columns):
        def features(self, train):
            asked.append(train.tolist())
            return super().features(train)

    asked: list = []
    order = np.array([2, 0, 1])
    found = Permuted(Recorder(pd.DataFrame({"x": [10.0, 11, 12]})), order).features(np.array([0, 1]))
    assert found["x"].tolist() == [12, 10, 11] and asked == [[2, 0]]


def test_colour_is_read_under_the_locations():
    picture = np.zeros((10, 10, 3), np.uint8)
    picture[:5] = (255, 0, 51)
    found = slide_colour(picture, 10.0, np.array([[25.0, 25.0], [75.0, 25.0]]), 40.0)
    np.testing.assert_allclose(found[:3], [1.0, 0.0, 0.2])
    np.testing.assert_allclose(found[3:6], 0)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda slides: slides[:-1], BadInput, "has no slide"),
        (lambda slides: [*slides, slides[0]], BadInput, "is there twice"),
        (lambda slides: [*slides[:-1], _with(slides[-1], facts=slides[0].facts)], BadInput, "are one picture"),
        (lambda slides: [*slides[:-1], _with(slides[-1], case="stranger")], BadInput, "does not name"),
        (lambda slides: [*slides[:-1], _with(slides[-1], genes=(*GENES[1:], "X"))], Incompatible, "genes or units"),
        (lambda slides: [*slides[:-1], _with(slides[-1], facts=OTHER)], Incompatible, "another model"),
    ],
)
def test_slides_that_do_not_fit_are_refused(change, error, words):
    table, slides = made_slides(5)
    with pytest.raises(error, match=words):
        SlideStack.of(change(slides), list(table["patient"]))


def _with(slide, **changes):
    return replace(slide, **changes)


# --- the command ---------------------------------------------------------------------------------------------------


def _written(folder, patients: int = 16, second: str = "", **facts) -> None:
    """Prediction tables of tiny slides, and the tables of slides and patients; `second`: the model of `shuffled`."""
    given = {"target_sum": 10_000, "model_fingerprint": "m", "bank_patients": ["A"], "patients_seen": ["A", "B"]}
    given |= {"bank_sections": ["A1"], "sections_seen": ["A1", "B1"]} | facts
    rng = np.random.default_rng(0)
    centres = np.stack(np.meshgrid(np.arange(3), np.arange(3)), axis=-1).reshape(-1, 2) * 20.0 + 10
    rows, people = [], []
    for patient in range(patients):
        kind = patient % 2
        slide = ArraySlide(rng.integers(0, 255, (60, 60, 3), np.uint8), 5.0, f"s{patient}")
        spots = Spots(tuple(map(str, range(9))), centres, 100.0)
        mean = rng.normal(1 + kind, 0.5, (9, 4))
        told = {key: value for key, value in given.items() if value is not None}
        table = prediction_table(
            mean, np.ones((9, 4)), genes=list("WXYZ"), spots=spots, slide=slide, neighbours=None, provenance=told
        )
        anndata.AnnData.write_h5ad(table, folder / f"s{patient}.h5ad")
        rows.append({"slide": f"s{patient}", "patient": f"p{patient}", "table": f"s{patient}.h5ad"})
        if second:
            table.uns["cmrcnet"]["model_fingerprint"] = second
            table.X = rng.normal(1, 0.5, (9, 4)).astype(np.float32)
            anndata.AnnData.write_h5ad(table, folder / f"shuffled{patient}.h5ad")
            rows[-1]["shuffled"] = f"shuffled{patient}.h5ad"
        people.append({"patient": f"p{patient}", "kind": "LumA" if kind else "Basal", "age": 50 + patient, "score": 1})
    for name, found in (("slides.csv", rows), ("patients.csv", people)):
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(found[0]))
            writer.writeheader()
            writer.writerows(found)


def outcomes(folder, *more: str, folds: int = 2) -> int:
    words = ["outcomes", str(folder / "patients.csv"), "--slides", str(folder / "slides.csv"), "--out"]
    options = ["--clinical", "age", "--folds", str(folds), "--repeats", "1", "--permutations", "1", "--workers", "1"]
    return main([*words, str(folder / "run"), *options, *more])


def test_the_command_writes_a_report_of_slides(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cmrcnet.outcomes.attention.EPOCHS", 10)
    _written(tmp_path, second="shuffled")
    assert outcomes(tmp_path, "--label", "kind") == 0
    said = capsys.readouterr().out
    assert "expression minus shuffled: +" in said
    assert "Too few events to say: 8 patients in the smallest class" in said
    names = {path.name for path in (tmp_path / "run").iterdir()} - {".cmrcnet"}
    assert names >= {"report.html", "scores.csv", "differences.csv", "null.csv", "predictions.csv", "run.json"}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["options"]["folds"] == 2
    data = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert (data["label"], data["clinical"], data["table"]) == ("kind", ["age"], "patients.csv") and data["checksum"]
    scores = pd.read_csv(tmp_path / "run" / "scores.csv").set_index(["method", "metric"])["value"]
    assert scores["shuffled", "auroc"] < 0.85 < 0.9 < scores["expression", "auroc"]
    assert {"attention", "components", "colour"} <= set(scores.index.get_level_values(0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shuffled": "s0.h5ad"}, "one model predicted"),
        ({"shuffled": "shuffled1.h5ad"}, "predicted on another slide than"),
    ],
)
def test_a_shuffled_table_of_this_model_or_of_another_slide_is_refused(tmp_path, capsys, change, words):
    _written(tmp_path, patients=4, second="shuffled")
    rows = pd.read_csv(tmp_path / "slides.csv")
    rows.loc[0, list(change)] = list(change.values())
    rows.to_csv(tmp_path / "slides.csv", index=False)
    assert outcomes(tmp_path, "--label", "kind") == 2
    assert words in capsys.readouterr().err


def test_more_folds_than_cases_of_a_class_are_refused(tmp_path, capsys):
    _written(tmp_path, patients=4)
    assert outcomes(tmp_path, "--label", "kind", folds=5) == 2
    assert "give --folds 2" in capsys.readouterr().err


def test_a_slide_whose_case_is_of_another_patient_is_refused(tmp_path, capsys):
    _written(tmp_path, patients=4)
    rows = pd.read_csv(tmp_path / "slides.csv")
    rows.assign(case=["p0", "p1", "p3", "p2"]).to_csv(tmp_path / "slides.csv", index=False)
    assert outcomes(tmp_path, "--label", "kind") == 2
    assert "slide s2 is of patient p2, and its case p3 of p3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"patients_seen": ["p3"]}, "has seen patient p3 in training"),
        ({"bank_patients": ["p3"]}, "has seen patient p3 in training"),
        ({"patients_seen": None}, "does not say which patients its model has seen"),
        ({"sections_seen": ["s3"]}, "has seen section s3 in training"),
        ({"bank_sections": ["s3"]}, "has seen section s3 in training"),
        ({"sections_seen": None}, "does not say which sections its model has seen"),
    ],
)
def test_a_model_that_saw_a_patient_is_refused(tmp_path, capsys, facts, words):
    _written(tmp_path, patients=4, **facts)
    assert outcomes(tmp_path, "--label", "kind") == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "either --time and --event, or --label"),
        (("--label", "kind", "--time", "age"), "either --time and --event, or --label"),
        (("--label", "kind", "--organ", "lung"), "lung"),
        (("--label", "kind", "--model", "m"), "a column image"),
        (("--label", "kind", "--features", "score"), "none beside slides or paired sections"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(tmp_path, capsys, options, words):
    _written(tmp_path, patients=4)
    assert outcomes(tmp_path, *options) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_image_features_are_of_the_slide_that_was_predicted(tmp_path):
    from cmrcnet.errors import Leakage
    from cmrcnet.export.stored_prediction import StoredPrediction
    from cmrcnet.inference.predict import predict
    from cmrcnet.outcomes.slide_features import SlideFeatures
    from cmrcnet.retrieval.bank import build_bank
    from tests.inference.small_model import locations, noise_slide, small_cohort, small_model

    model, slide = small_model(), noise_slide()
    table = predict(model, slide, bank=build_bank(model, small_cohort()), spots=locations(4))
    assert json.loads(table.uns["cmrcnet"]["patients_seen"]) == ["A", "B"]
    table.write_h5ad(tmp_path / "slide.h5ad")
    made = SlideFeatures(None, ["p1"], model)
    with StoredPrediction(tmp_path / "slide.h5ad") as stored:
        found = made.of(slide, stored)
        assert found["embedding"].shape == (model.config.model.embedding_dim,)
        assert found["imagenet"].ndim == 1 and np.isfinite(found["imagenet"]).all()
        with pytest.raises(Incompatible, match="another slide"):
            made.of(noise_slide(seed=1), stored)
    with pytest.raises(Leakage, match="has seen patient B"):
        SlideFeatures(None, ["p1", "B"], model)
