"""Scores by hand, and what happens to undefined correlations."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.stats import pearsonr

from cmrcnet.errors import ShapeMismatch
from cmrcnet.evaluation.metrics import gene_metrics as metrics
from cmrcnet.evaluation.metrics.gene_metrics import over_genes, score_genes, score_sets
from cmrcnet.evaluation.metrics.intervals import by_patient, over_patients

TRUTH = np.array([[0.0, 1.0, 2.0, 5.0], [1.0, 1.0, 0.0, 5.5], [2.0, 1.0, 4.0, 7.0]])
GUESS = np.array([[0.0, 1.0, 4.0, 3.0], [2.0, 3.0, 3.0, 3.0], [1.0, 2.0, 1.0, 3.0]])
GENES = ("up", "flat truth", "down", "flat guess")


def test_scores_equal_those_worked_out_by_hand():
    table = score_genes(sparse.csr_matrix(TRUTH), GUESS, GENES).set_index("gene")
    assert table.pearson["up"] == pytest.approx(0.5)  # deviations (-1, 0, 1) and (-1, 1, 0)
    assert table.pearson["down"] == pytest.approx(pearsonr(TRUTH[:, 2], GUESS[:, 2])[0])
    assert math.isnan(table.pearson["flat truth"]) and math.isnan(table.pearson["flat guess"])
    assert table.mse["up"] == pytest.approx((0 + 1 + 1) / 3)
    assert table["mean"]["up"] == 1.0 and table.variance["up"] == pytest.approx(2 / 3)
    assert table.detected["up"] == pytest.approx(2 / 3) and table.detected["flat truth"] == 1.0


def test_errors_and_variances_equal_those_worked_out_by_hand():
    table = score_genes(sparse.csr_matrix(TRUTH), GUESS, GENES).set_index("gene")
    assert table.mae["up"] == pytest.approx((0 + 1 + 1) / 3)
    assert table.r2["up"] == pytest.approx(1 - (2 / 3) / (2 / 3)) and table.r2["flat guess"] < 0
    assert table.variance_ratio["up"] == pytest.approx(1.0) and table.variance_ratio["flat guess"] == 0.0
    assert math.isnan(table.r2["flat truth"]) and math.isnan(table.variance_ratio["flat truth"])
    assert table.detection_auc["up"] == 1.0 and table.detection_auc["down"] == 0.5  # 3 against 4 and 1
    assert math.isnan(table.detection_auc["flat truth"])


def test_zero_for_undefined_is_said_of_correlations_only():
    table = score_genes(TRUTH, GUESS, GENES)
    rows = {row["metric"]: row for row in score_sets(table, {"S": ("flat truth",)}, "zero")}
    assert rows["pearson"]["value"] == 0.0 and math.isnan(rows["r2"]["value"])
    assert rows["pearson"]["n_undefined"] == rows["r2"]["n_undefined"] == 1


def test_costly_metrics_are_not_averaged_over_all_genes():
    table = score_genes(TRUTH, GUESS, GENES).assign(ssim=0.5)
    rows = score_sets(table, {"HVG": GENES, "all": GENES})
    assert [row["gene_set"] for row in rows if row["metric"] == "ssim"] == ["HVG"]


@pytest.mark.parametrize("block", [1, 3, 100])
def test_blocks_of_genes_change_nothing(monkeypatch, block):
    whole = score_genes(TRUTH, GUESS, GENES)
    monkeypatch.setattr(metrics, "_GENES_AT_A_TIME", block)
    pd.testing.assert_frame_equal(score_genes(sparse.csr_matrix(TRUTH), GUESS, GENES), whole)


def test_undefined_genes_are_skipped_or_zero_as_stated_and_always_counted():
    values = np.array([0.6, np.nan, 0.2, np.nan])
    assert over_genes(values, "skip") == (pytest.approx(0.4), 4, 2)
    assert over_genes(values, "zero") == (pytest.approx(0.2), 4, 2)


def test_nothing_but_undefined_is_nan_and_not_zero_unless_asked():
    value, n_genes, n_undefined = over_genes(np.array([np.nan, np.nan]))
    assert math.isnan(value) and (n_genes, n_undefined) == (2, 2)
    assert over_genes(np.array([np.nan]), "zero") == (0.0, 1, 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(-1, 1)), min_size=1, max_size=20))
def test_counting_undefined_as_zero_pulls_the_mean_towards_zero(values):
    array = np.array([np.nan if v is None else v for v in values])
    skipped, zeroed = over_genes(array, "skip")[0], over_genes(array, "zero")[0]
    if not math.isnan(skipped):
        assert abs(zeroed) <= abs(skipped) + 1e-12


def test_a_gene_that_the_section_did_not_measure_is_not_counted():
    table = score_genes(TRUTH, GUESS, GENES)
    pearson, mse, *_ = score_sets(table, {"HVG": ("up", "not measured", "flat truth")})
    assert (pearson["gene_set"], pearson["metric"]) == ("HVG", "pearson")
    assert pearson["value"] == pytest.approx(0.5) and (pearson["n_genes"], pearson["n_undefined"]) == (2, 1)
    assert mse["metric"] == "mse" and mse["n_undefined"] == 0


def test_sections_are_averaged_within_patients_before_patients_are():
    def row(patient, section, value):
        return ("m", section, section, patient, "HVG", "pearson", value, 50, 1)

    columns = ["method", "fold", "section", "patient", "gene_set", "metric", "value", "n_genes", "n_undefined"]
    scores = pd.DataFrame([row("a", "1", 0.2), row("a", "2", 0.4), row("b", "3", 0.9)], columns=columns)
    assert list(by_patient(scores)["value"]) == pytest.approx([0.3, 0.9])
    (total,) = over_patients(scores).itertuples()
    assert total.value == pytest.approx(0.6)  # the mean over sections would be 0.5
    assert (total.n_patients, total.n_genes, total.n_undefined) == (2, 150, 3)


def test_a_prediction_of_another_shape_is_refused():
    with pytest.raises(ShapeMismatch, match="The prediction has shape"):
        score_genes(TRUTH, GUESS[:, :2], GENES)
