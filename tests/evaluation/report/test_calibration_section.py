"""Coverage, translate_os_errors and alarms of held-out sections, by hand and on a made-up run."""

from __future__ import annotations

import numpy as np
import pytest

from cmrcnet.evaluation.metrics.scoring import truth_of
from cmrcnet.evaluation.report.calibration_section import (
    KEPT,
    calibration_section,
    coverage_svg,
    gene_coverage,
    risk_column,
    risk_curve,
    risk_svg,
    uncertainty_scores,
)
from tests.evaluation.made_run import made_cohort, made_run


@pytest.fixture(scope="module")
def run():
    """Tables that claim certainty where they are right: half the spots of each section are predicted exactly."""
    run = made_run(made_cohort())
    for name, table in run.predictions.items():
        section = run.cohort.read(name)
        genes, truth = truth_of(section, list(table.var_names))
        column = [list(table.var_names).index(gene) for gene in genes]
        half = table.n_obs // 2
        values = np.array(table.X)
        values[:half, column] = truth.toarray()[:half]
        table.X = values
        table.obs["confidence"] = np.where(np.arange(table.n_obs) < half, 0.9, 0.2)
        table.obs["interval_scale"] = 1.0
        table.obs["in_distribution"] = 1
        table.var["interval_low"], table.var["interval_high"] = -100.0, 100.0
        table.uns["cmrcnet"]["ood"] = {"raised": 0, "kind": "", "sentence": "s", "distance": 3.0, "limit": 45.0}
        table.uns["cmrcnet"]["intervals"] = "90% intervals <b>of tests</b>."
    return run


def test_coverage_by_hand():
    mean = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    truth = np.array([[0.0, 0.0], [0.4, 9.0], [2.9, 1.0], [3.1, 1.0]])
    found = gene_coverage(mean, np.ones(4), np.array([-0.7, np.nan]), np.array([2.0, 1.0]), truth)
    np.testing.assert_allclose(found, [0.5, np.nan])  # 0.4 and 2.9 lie in [0.3, 3]


def test_the_risk_of_what_is_kept_by_hand():
    error, confidence = np.array([4.0, 1.0, 3.0, 0.0]), np.array([0.1, 0.8, 0.2, 0.9])
    found = risk_curve(error, confidence, np.array([1.0, 0.75, 0.5, 0.01]))
    np.testing.assert_allclose(found, [1, (4 / 3) / 2, 0.5 / 2, 0])


def test_a_run_is_told_section_by_section(run):
    frame = uncertainty_scores(run)
    assert list(frame["section"]) == list(run.predictions)
    np.testing.assert_allclose(frame["coverage"], 1)
    assert (frame["abstained"] < 0.8).all() and (frame[risk_column(1.0)] == 1).all()
    assert [risk_column(share) for share in KEPT][:2] == ["risk_100", "risk_95"]
    np.testing.assert_allclose(frame[risk_column(KEPT[10])], 0, atol=1e-6)  # half are kept: those that are right
    assert (frame["ood"] == "").all() and (frame["outside"] == 0).all()


def test_the_report_says_it_in_words_and_takes_nothing_for_markup(run):
    page = calibration_section(run)
    assert "Intervals at the 90% level contain 100.0% of the measured values of HVG" in page
    assert "Abstaining from the least certain 30% of spots lowers the squared error by" in page
    assert (
        "0 of 3 held-out sections were flagged as out of distribution, and 0.0% of locations count as outside" in page
    )
    assert "&lt;b&gt;of tests" in page and page.count("data:image/svg+xml") == 2


def test_pictures_are_the_same_every_time(run):
    frame = uncertainty_scores(run)
    assert coverage_svg(frame) == coverage_svg(frame) and risk_svg(frame) == risk_svg(frame)
    assert b"epoch" not in risk_svg(frame)


def test_a_run_without_certainty_has_no_such_part():
    assert calibration_section(made_run(made_cohort())) == ""
