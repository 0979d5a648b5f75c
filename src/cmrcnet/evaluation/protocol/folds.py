"""Folds: which sections are held out together, and the check that a model has not seen them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from cmrcnet.errors import BadOption, Leakage, TooFew, UnknownName
from cmrcnet.slides.section import Cohort

GroupBy = Literal["patient", "section"]


@dataclass(frozen=True)
class Fold:
    """One split of a cohort; names of sections are in the cohort's order."""

    name: str  # of the patient or section that is held out
    train: tuple[str, ...]
    test: tuple[str, ...]
    test_patients: tuple[str, ...]
    patient_disjoint: bool  # False when a patient has sections on both sides, which inflates the scores


def folds(cohort: Cohort, group_by: GroupBy = "patient") -> tuple[Fold, ...]:
    """Hold out one patient, or one section, at a time, in the cohort's order; every section is tested exactly once.

    Raises
    ------
    TooFew
        Fewer than two groups: nothing is left to train on.
    BadOption
        Another value of `group_by`.
    """
    if group_by not in ("patient", "section"):
        raise BadOption("evaluation.group_by", group_by, "patient or section")
    names = cohort.patients if group_by == "patient" else cohort.sections
    if len(names) < 2:
        hint = f"add a {group_by} to the cohort"
        if group_by == "patient" and len(cohort.sections) > 1:
            hint = f"leave out sections instead (evaluation.group_by: section), or add a {group_by}"
        raise TooFew(f"{group_by}(s) in the cohort {cohort.name}", len(names), 2, hint)
    group_of = {s: cohort.patient_of(s) if group_by == "patient" else s for s in cohort.sections}
    found = []
    for name in names:
        train = tuple(s for s in cohort.sections if group_of[s] != name)
        test = tuple(s for s in cohort.sections if group_of[s] == name)
        patients = tuple(dict.fromkeys(cohort.patient_of(s) for s in test))
        disjoint = {cohort.patient_of(s) for s in train}.isdisjoint(patients)
        found.append(Fold(name, train, test, patients, patient_disjoint=disjoint))
    return tuple(found)


def only_folds(folds: tuple[Fold, ...], names: Sequence[str] | None) -> tuple[Fold, ...]:
    """Select folds by name, in the order of the cohort; all of them when `names` is None."""
    if names is None:
        return folds
    known = [fold.name for fold in folds]
    for name in names:
        if name not in known:
            raise UnknownName("fold", name, known, "A fold is named after the patient or section that it leaves out.")
    if not names:
        raise BadOption("folds", "", "at least one fold")
    return tuple(fold for fold in folds if fold.name in names)


def refuse_seen(
    artefact: str,
    *,
    seen_sections: Iterable[str],
    seen_patients: Iterable[str],
    sections: Iterable[str],
    patients: Iterable[str] = (),
) -> None:
    """Raise `Leakage` when a model or bank was made from a section or patient that it is about to be tested on.

    Parameters
    ----------
    artefact : str
        Its name in the error message: "The model", "The bank".
    seen_sections, seen_patients : iterable of str
        From the artefact's provenance.
    sections, patients : iterable of str
        The test data. Leave `patients` empty for a protocol that holds out sections only.
    """
    in_sections, in_patients = set(seen_sections), set(seen_patients)
    seen = [f"section {name}" for name in sections if name in in_sections]
    seen += [f"patient {name}" for name in patients if name in in_patients]
    if seen:
        raise Leakage(artefact, seen)
