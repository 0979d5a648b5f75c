"""Grades: the rule at its edges, intervals against the obvious way, and what is not measured stays ungraded."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrcnet.errors import BadInput, UnknownName
from cmrcnet.uncertainty import gene_reliability
from cmrcnet.uncertainty.gene_reliability import (
    NOT_MEASURED,
    grade_of,
    predictability,
)

PATIENT = {f"S{i}": f"P{i}" for i in range(6)}


def frame(**values):
    """One method "m"; each keyword a gene and its Pearson in S0, S1, ..."""
    rows = [
        {"method": "m", "section": f"S{i}", "gene": gene, "pearson": value}
        for gene, each in values.items()
        for i, value in enumerate(each)
    ]
    return pd.DataFrame(rows)


def graded(table, **options):
    found = predictability(table, PATIENT, method="m", **options)
    return found.set_index("gene")


@pytest.mark.parametrize(
    ("pearson", "low", "null", "sections", "grade"),
    [
        (0.5, 0.11, 0.1, 2, "A"),
        (0.499, 0.11, 0.1, 2, "B"),
        (0.35, 0.11, 0.1, 2, "B"),
        (0.349, 0.11, 0.1, 2, "C"),
        (0.9, 0.1, 0.1, 9, "D"),  # not above the null, whatever the mean
        (-0.2, -0.3, 0.1, 9, "D"),
        (0.9, 0.8, 0.1, 1, NOT_MEASURED),
        (float("nan"), float("nan"), 0.1, 0, NOT_MEASURED),
        (0.9, 0.8, float("nan"), 9, NOT_MEASURED),
    ],
)
def test_the_rule_at_its_edges(pearson, low, null, sections, grade):
    assert grade_of(pearson, low, null, sections) == grade


@settings(max_examples=50, deadline=None)
@given(low=st.floats(-1, 1), width=st.floats(0, 1), better=st.floats(0, 0.5), null=st.floats(-0.5, 0.5))
def test_a_better_gene_is_never_graded_lower(low, width, better, null):
    order = "ABCD"
    worse, finer = grade_of(low + width, low, null, 5), grade_of(low + width + better, low + better, null, 5)
    assert order.index(finer) <= order.index(worse)


def test_grades_of_a_small_table():
    found = graded(
        frame(
            good=[0.6, 0.6, 0.6, 0.6, 0.6, 0.6],
            fair=[0.4, 0.4, 0.4, 0.4, 0.4, 0.4],
            weak=[0.2, 0.2, 0.2, 0.2, 0.2, 0.2],
            wild=[0.9, -0.9, 0.9, -0.9, 0.9, -0.9],
            once=[0.9] + [np.nan] * 5,
            never=[np.nan] * 6,
        ),
        null=0.1,
    )
    assert found["grade"].to_dict() == {
        "good": "A", "fair": "B", "weak": "C", "wild": "D", "once": NOT_MEASURED, "never": NOT_MEASURED
    }  # fmt: skip
    assert list(found.index[:3]) == ["good", "fair", "weak"]  # best first
    assert found.loc["once", ["n_sections", "n_undefined", "interval_over"]].tolist() == [1, 5, ""]
    assert np.isnan(found.loc["once", "low"]) and found.loc["once", "pearson"] == pytest.approx(0.9)


def test_three_patients_are_enough_and_two_are_too_few():
    found = graded(frame(three=[0.1, 0.3, 0.5], two=[0.1, 0.3, np.nan]))
    assert found["interval_over"].to_dict() == {"three": "patients", "two": "sections"}
    assert found["n_patients"].to_dict() == {"three": 3, "two": 2}


def test_the_interval_by_hand():
    row = graded(frame(g=[0.1, 0.3, np.nan, 0.2])).loc["g"]
    reach = 4.302653 * 0.1 / np.sqrt(3)  # t of two degrees of freedom
    np.testing.assert_allclose([row.pearson, row.low, row.high], [0.2, 0.2 - reach, 0.2 + reach], rtol=1e-6)


def test_sections_of_a_patient_are_averaged_before_patients_are():
    patients = {f"S{i}": f"P{min(i, 4)}" for i in range(6)}  # S4 and S5 are of one patient
    table = predictability(frame(g=[0.1, 0.1, 0.1, 0.1, 0.9, 0.5]), patients, method="m").iloc[0]
    assert (table.n_patients, table.interval_over) == (5, "patients")
    assert table.pearson == pytest.approx((0.1 * 4 + 0.7) / 5)


def test_the_null_is_the_upper_quantile_of_a_null_methods_genes(monkeypatch):
    table = frame(g=[0.3, 0.3])
    nulls = pd.DataFrame(
        [
            {"method": "permuted-pairs", "section": s, "gene": f"n{i}", "pearson": i / 100}
            for i in range(101)
            for s in ("S0", "S1")
        ]
    )
    both = pd.concat([table, nulls])
    assert graded(both, null="permuted-pairs").loc["g"][["null", "grade"]].tolist() == [pytest.approx(0.95), "D"]
    monkeypatch.setattr(gene_reliability, "NULL_QUANTILE", 0.2)
    low = graded(both, null="permuted-pairs").loc["g"]
    assert (low["null"], low["grade"]) == (pytest.approx(0.2), "C")
    assert graded(both, null={"g": 0.4}).loc["g", "grade"] == "D"


def test_share_of_the_ceiling():
    table = frame(g=[0.2, 0.4], h=[0.2, 0.4]).assign(ceiling=[0.5, 0.7, np.nan, np.nan])
    found = graded(table)
    assert found.loc["g", ["ceiling", "share"]].tolist() == [pytest.approx(0.6), pytest.approx(0.5)]
    assert np.isnan(found.loc["h", "share"])
    assert found["pearson"].to_dict() == {"g": pytest.approx(0.3), "h": pytest.approx(0.3)}


def test_rows_of_several_seeds_are_averaged_first():
    table = pd.concat([frame(g=[0.2, 0.4]), frame(g=[0.4, 0.6])])
    row = graded(table).loc["g"]
    assert (row.pearson, row.n_sections) == (pytest.approx(0.4), 2)


def test_bad_input():
    table = frame(g=[0.1, 0.2])
    with pytest.raises(BadInput, match=r"lacks the column\(s\) pearson"):
        graded(table.drop(columns="pearson"))
    with pytest.raises(UnknownName, match=r"'other'; known: m"):
        predictability(table, PATIENT, method="other")
    with pytest.raises(UnknownName, match=r"patient of section 'S1'"):
        predictability(table, {"S0": "P"}, method="m")
