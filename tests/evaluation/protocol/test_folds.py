"""Folds: what is left out together, and whether a patient stands on both sides."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrcnet.errors import BadOption, TooFew
from cmrcnet.evaluation.protocol.folds import folds
from cmrcnet.slides.section import Cohort, CohortEntry


def cohort_of(*patients: str) -> Cohort:
    """Sections s0, s1, ... of these patients; nothing can be read from it."""

    def never():
        raise AssertionError("splitting a cohort must not read it")

    return Cohort("c", tuple(CohortEntry(f"s{i}", patient, never) for i, patient in enumerate(patients)))


def test_a_patient_is_left_out_with_all_her_sections():
    these = folds(cohort_of("b", "a", "b", "c"))
    assert [fold.name for fold in these] == ["b", "a", "c"]
    assert [fold.test for fold in these] == [("s0", "s2"), ("s1",), ("s3",)]
    assert [fold.train for fold in these] == [("s1", "s3"), ("s0", "s2", "s3"), ("s0", "s1", "s2")]
    assert [fold.test_patients for fold in these] == [("b",), ("a",), ("c",)]
    assert all(fold.patient_disjoint for fold in these)


def test_leaving_out_a_section_while_its_patient_trains_is_flagged():
    these = folds(cohort_of("b", "a", "b"), "section")
    assert [fold.test for fold in these] == [("s0",), ("s1",), ("s2",)]
    assert [fold.patient_disjoint for fold in these] == [False, True, False]
    assert not all(fold.patient_disjoint for fold in these)


def test_sections_of_different_patients_are_patient_disjoint():
    assert all(fold.patient_disjoint for fold in folds(cohort_of("a", "b"), "section"))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=9), st.sampled_from(["patient", "section"]))
def test_every_section_is_tested_once_and_never_trained_on_beside(patients, unit):
    cohort = cohort_of(*patients)
    if unit == "patient" and len(set(patients)) < 2:
        return
    these = folds(cohort, unit)
    assert sorted(s for fold in these for s in fold.test) == sorted(cohort.sections)
    for fold in these:
        assert set(fold.train).isdisjoint(fold.test)
        assert set(fold.train) | set(fold.test) == set(cohort.sections)
        overlap = {cohort.patient_of(s) for s in fold.train} & {cohort.patient_of(s) for s in fold.test}
        assert fold.patient_disjoint == (not overlap)
    if unit == "patient":
        assert all(fold.patient_disjoint for fold in these)


def test_one_patient_of_many_sections_is_told_to_leave_out_sections():
    with pytest.raises(TooFew, match=r"1 patient\(s\) in the cohort c, .* leave out sections instead"):
        folds(cohort_of("a", "a"))


def test_one_section_is_too_few():
    with pytest.raises(TooFew, match=r"1 section\(s\) in the cohort c, .* add a section"):
        folds(cohort_of("a"), "section")


def test_another_unit_is_refused():
    with pytest.raises(BadOption, match="wanted patient or section"):
        folds(cohort_of("a", "b"), "spot")
