"""Intervals over patients: by scipy, by hand, and what is said where patients are few."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cmrcnet.errors import UnknownName
from cmrcnet.evaluation.metrics.intervals import intervals, paired_differences


def scores_of(values: dict[str, dict[str, list[float]]]) -> pd.DataFrame:
    """Rows of scores: method -> patient -> value of each of its sections."""
    rows = [
        {"method": method, "fold": patient, "section": f"{patient}{n}", "patient": patient, "gene_set": "HVG",
         "metric": "pearson", "value": value, "n_genes": 50, "n_undefined": 0}
        for method, patients in values.items() for patient, own in patients.items() for n, value in enumerate(own)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def eight_patients(seed: int = 0) -> dict[str, list[float]]:
    random = np.random.default_rng(seed)
    return {f"p{n}": list(random.normal(0.4, 0.1, 1 + n % 3)) for n in range(8)}


def test_the_interval_is_students_over_patients():
    patients = eight_patients()
    (row,) = intervals(scores_of({"m": patients})).itertuples()
    means = np.array([np.mean(own) for own in patients.values()])
    theirs = stats.ttest_1samp(means, 0.0).confidence_interval(0.95)
    assert [row.value, row.low, row.high] == pytest.approx([means.mean(), theirs.low, theirs.high])
    assert (row.group, row.n) == ("patient", 8) and "95 % t interval over 8 patients" in row.note


def test_two_patients_are_two_groups_however_many_sections():
    scores = scores_of({"m": {"B": [0.2], "C": [0.4, 0.5, 0.45, 0.45]}})
    (row,) = intervals(scores).itertuples()
    assert row.value == pytest.approx((0.2 + 0.45) / 2) and (row.group, row.n) == ("patient", 2)
    assert row.high - row.value == pytest.approx(12.7062 * 0.125, rel=1e-4)


def test_a_single_patient_has_an_interval_over_sections_that_promises_nothing():
    (row,) = intervals(scores_of({"m": {"B": [0.2, 0.3, 0.4]}})).itertuples()
    assert (row.group, row.n) == ("section", 3) and row.low < row.value < row.high
    assert "sections of one patient, which says nothing about other patients" in row.note and "95" not in row.note


def test_differences_are_taken_on_the_same_patients():
    patients = eight_patients()
    better = {name: [value + 0.01 for value in own] for name, own in patients.items()}
    scores = scores_of({"a": better, "b": patients})
    (row,) = paired_differences(scores, "a").itertuples()
    # Patients differ by far more than the methods do; within patients the difference is always 0.01.
    assert (row.method, row.other, row.higher_in, row.n) == ("a", "b", 8, 8)
    assert [row.difference, row.low, row.high] == pytest.approx([0.01] * 3)
    (back,) = paired_differences(scores, "b").itertuples()
    assert back.difference == pytest.approx(-0.01) and back.higher_in == 0


def test_undefined_values_are_left_out_and_counted():
    scores = scores_of(
        {"a": {"1": [0.1], "2": [0.3], "3": [0.5]}, "b": {"1": [np.nan], "2": [0.1], "3": [0.2]},
         "c": {"1": [np.nan], "2": [np.nan], "3": [np.nan]}}
    )  # fmt: skip
    table = intervals(scores).set_index("method")
    assert table.n.to_dict() == {"a": 3, "b": 2, "c": 0}
    assert table.value["b"] == pytest.approx(0.15) and math.isnan(table.value["c"])
    gaps = paired_differences(scores, "a").set_index("other")
    assert gaps.difference["b"] == pytest.approx((0.2 + 0.3) / 2) and gaps.n["b"] == 2


def test_seeds_of_a_section_are_averaged_first():
    once = scores_of({"m": {"1": [0.2], "2": [0.4], "3": [0.6]}})
    twice = pd.concat([once.assign(seed=0, value=once["value"] - 0.1), once.assign(seed=1, value=once["value"] + 0.1)])
    pd.testing.assert_frame_equal(intervals(twice), intervals(once))


def test_one_unit_has_a_mean_and_no_interval():
    (row,) = intervals(scores_of({"m": {"1": [0.2]}})).itertuples()
    assert row.value == 0.2 and math.isnan(row.low) and math.isnan(row.high)


def test_an_undefined_section_is_left_out_of_its_patient():
    scores = scores_of({"m": {"B": [-0.1], "C": [math.nan, 0.1, 0.3]}})
    (row,) = intervals(scores).itertuples()
    assert row.value == pytest.approx((-0.1 + 0.2) / 2) and row.n == 2


def test_what_is_not_in_the_table_is_refused():
    scores = scores_of({"m": eight_patients()})
    with pytest.raises(UnknownName, match="There is no set and metric 'SVG pearson'; known: HVG pearson"):
        intervals(scores, "SVG")
    with pytest.raises(UnknownName, match="There is no method 'x'"):
        paired_differences(scores, "x")
