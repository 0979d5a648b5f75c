"""Which sections are left out together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cmrcnet.errors import BadOption, TooFew
from cmrcnet.slides.section import Cohort

Unit = Literal["patient", "section"]


@dataclass(frozen=True)
class Fold:
    """One split of a cohort.

    Parameters
    ----------
    name : str
        The patient or section that is left out.
    train, test : tuple of str
        Names of the sections on either side, in the cohort's order.
    test_patients : tuple of str
        Patients of the test sections.
    patient_disjoint : bool
        False when a patient has sections on both sides: such a score flatters the method.
    """

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    test_patients: tuple[str, ...]
    patient_disjoint: bool


def folds(cohort: Cohort, unit: Unit = "patient") -> tuple[Fold, ...]:
    """Leave one patient, or one section, out at a time.

    Parameters
    ----------
    cohort : Cohort
    unit : {"patient", "section"}
        What is left out whole.

    Returns
    -------
    tuple of Fold
        In the cohort's order of first appearance. Every section is tested exactly once.

    Raises
    ------
    TooFew
        With fewer than two units nothing is left to train on.
    BadOption
        For another unit.
    """
    if unit not in ("patient", "section"):
        raise BadOption("evaluation.group_by", unit, "patient or section")
    names = cohort.patients if unit == "patient" else cohort.sections
    if len(names) < 2:
        hint = (
            f"leave out sections instead (evaluation.group_by: section), or add a {unit}"
            if unit == "patient" and len(cohort.sections) > 1
            else f"add a {unit} to the cohort"
        )
        raise TooFew(f"{unit}(s) in the cohort {cohort.name}", len(names), 2, hint)
    return tuple(_fold(cohort, name, unit) for name in names)


def patient_disjoint(these: tuple[Fold, ...]) -> bool:
    """True when no fold has a patient on both sides."""
    return all(fold.patient_disjoint for fold in these)


def _fold(cohort: Cohort, left_out: str, unit: Unit) -> Fold:
    def is_out(section: str) -> bool:
        return left_out == (cohort.patient_of(section) if unit == "patient" else section)

    train = tuple(s for s in cohort.sections if not is_out(s))
    test = tuple(s for s in cohort.sections if is_out(s))
    test_patients = tuple(dict.fromkeys(cohort.patient_of(s) for s in test))
    shared = {cohort.patient_of(s) for s in train} & set(test_patients)
    return Fold(left_out, train, test, test_patients, patient_disjoint=not shared)
