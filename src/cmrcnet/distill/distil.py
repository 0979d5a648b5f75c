"""Distil a model and its bank into a student that predicts without search."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cmrcnet.distill.distillation_set import Lesson, gather_lessons, seen_by
from cmrcnet.distill.head_fit import Exercise, fit_head, head_scores
from cmrcnet.distill.speed import measure_speed
from cmrcnet.distill.student_config import StudentLook, look_of
from cmrcnet.distill.student_report import CAVEAT, HONEST, compare, scored_genes, sections_to_leave_out, summary
from cmrcnet.distill.teacher import Taught, teach, without
from cmrcnet.errors import BadOption, Leakage
from cmrcnet.evaluation.protocol.contamination import refuse_seen
from cmrcnet.inference.location_features import LocationEncoder
from cmrcnet.models.student import Lineage, Student, StudentHead
from cmrcnet.models.trained_model import TrainedModel
from cmrcnet.progress import tracked
from cmrcnet.retrieval.bank import ReferenceBank
from cmrcnet.slides.section import Cohort
from cmrcnet.slides.slide import Slide

if TYPE_CHECKING:
    from cmrcnet.storage.cache import TokenCache

PLAIN = StudentLook()
LEFT_OUT = 5
"""Sections that the card is measured on, at most."""


def distil(
    model: TrainedModel,
    bank: ReferenceBank,
    cohort: Cohort,
    *,
    slides: Sequence[Slide] = (),
    look: StudentLook = PLAIN,
    grid_um: float = 200.0,
    test: Cohort | None = None,
    seed: int = 0,
    cache: TokenCache | None = None,
) -> Student:
    """Teach a small head to say what the model and its bank say, and measure how far it does.

    The teacher of a section is the bank without it: a spot must not find itself. Genes that only some sections
    measured are predicted everywhere, from what the teacher said where it knew.

    Parameters
    ----------
    model : TrainedModel
    bank : ReferenceBank
        Made with this model.
    cohort : Cohort
        That the bank was built from: its slides are looked at again, its counts judge the student.
    slides : sequence of Slide, optional
        Further slides to learn on; they need no counts.
    look : StudentLook
        What the student looks with; as its teacher when left out.
    grid_um : float
        Distance between the locations that are learnt on besides the measured spots; 0: spots only.
    test : Cohort, optional
        Sections that neither model nor bank has seen, nor their patients, for honest values in the card.
    seed : int
        Of every random choice.
    cache : TokenCache, optional
        Where what frozen encoders see is kept from one call to the next.

    Returns
    -------
    Student
        With its card. It remembers the patients of model and bank, whoever is dropped from the bank later.

    Raises
    ------
    Incompatible
        Another model made the bank.
    Leakage
        The test cohort holds a section, patient or slide that somebody has seen.
    BadOption
        The cohort is not the one that the bank was built from; a look that no config can say.
    ScaleError, TooFew, WeightsError, Diverged
    """
    bank.require_model(model)
    if not 0 <= grid_um < np.inf:
        raise BadOption("grid_um", grid_um, want="micrometres between neighbouring locations, or 0 for the spots only")
    sections = tuple(dict.fromkeys((*model.provenance.sections, *bank.sections)))
    patients = tuple(dict.fromkeys((*model.provenance.patients, *bank.patients)))
    if test is not None:
        refuse_seen(
            "The student's teacher",
            seen_sections=sections,
            seen_patients=patients,
            sections=test.sections,
            patients=test.patients,
        )
    encoder, config = look_of(model, look)
    student_encoder = LocationEncoder.of_student(encoder, config)
    lessons, reduction = gather_lessons(
        model, bank, cohort, slides, student_encoder, grid_um=grid_um, seed=seed, cache=cache
    )
    seen_slides = tuple(dict.fromkeys(lesson.slide.fingerprint() for lesson in lessons))
    if test is not None:
        _refuse_seen_slides(test, seen_slides)

    taught, student_head, chosen = _lecture(model, bank, lessons, seed)
    head = model.config.head.within(len(bank))
    student = Student(
        encoder,
        config,
        reduction,
        student_head,
        taught.basis,
        taught.genes,
        bank.target_sum,
        Lineage(
            model.fingerprint,
            bank.fingerprint,
            bank.sections,
            bank.patients,
            sections,
            patients,
            seen_slides,
            {
                "head": head.kind,
                "k": head.k,
                "weighting": head.weighting,
                "grid_um": float(grid_um),
                "seed": seed,
            },
        ),
        model.calibration,
    )
    card: dict[str, Any] = {"set_size": model.config.evaluation.set_size, "head": chosen, "notes": _notes(bank)}
    rows = [
        _left_out(model, bank, cohort, lessons, name, seed)
        for name in tracked(sections_to_leave_out(bank, LEFT_OUT), "measure", unit="sections")
    ]
    card["left_out"] = summary(rows, CAVEAT) if rows else None
    card["test"] = None if test is None else _tested(model, bank, cohort, student, test, cache)
    most = max((lesson for lesson in lessons if lesson.spots is not None), key=len)
    card["speed"] = measure_speed(model, bank, student, most.slide, most.spots)
    return dataclasses.replace(student, card=card)


def _refuse_seen_slides(test: Cohort, seen: Sequence[str]) -> None:
    """Refuse a test section whose slide the student has learnt on, though without counts: `Leakage`."""
    for section in test:
        if section.slide.fingerprint() in seen:
            raise Leakage("The student", [f"the slide of section {section.name}"])


def _lecture(
    model: TrainedModel, bank: ReferenceBank, lessons: Sequence[Lesson], seed: int
) -> tuple[Taught, StudentHead, dict[str, Any]]:
    """What a bank says of some lessons, and a head that was taught it."""
    taught = teach(model, bank, lessons, seed)
    exercises = [
        Exercise(lesson.unit, lesson.student_sees, scores)
        for lesson, scores in zip(lessons, taught.scores, strict=True)
    ]
    return taught, *fit_head(exercises, seed)


def _left_out(
    model: TrainedModel, bank: ReferenceBank, cohort: Cohort, lessons: Sequence[Lesson], name: str, seed: int
) -> dict[str, Any]:
    """A row of the card: neither the bank nor the head has anything of this section."""
    others = without(bank, (name,))
    taught, student_head, _ = _lecture(model, others, [each for each in lessons if name not in each.sections], seed)
    mine = next(each for each in lessons if each.spots is not None and name in each.sections)
    column = {gene: number for number, gene in enumerate(taught.genes)}

    def student_says(genes: Sequence[str]) -> np.ndarray:
        return taught.basis.expression(
            head_scores(student_head, mine.student_sees), np.array([column[g] for g in genes])
        )

    genes = scored_genes(model, others, cohort)
    return compare(model, others, cohort.read(name), mine.teacher_sees, student_says, genes)


def _tested(
    model: TrainedModel,
    bank: ReferenceBank,
    cohort: Cohort,
    student: Student,
    test: Cohort,
    cache: TokenCache | None,
) -> dict[str, Any]:
    """Teacher and student on sections that nobody has seen."""
    column = {gene: number for number, gene in enumerate(student.genes)}
    genes, rows = scored_genes(model, bank, cohort), []
    for section in tracked(test, "test", unit="sections"):
        teacher_sees = seen_by(LocationEncoder.of_model(model), section.slide, section.spots, cache)
        student_sees = seen_by(
            LocationEncoder.of_student(student.encoder, student.config), section.slide, section.spots, cache
        )

        def student_says(genes: Sequence[str], seen: np.ndarray = student_sees) -> np.ndarray:
            return student.predict(seen, np.array([column[gene] for gene in genes]))

        rows.append(compare(model, bank, section, teacher_sees, student_says, genes))
    return summary(rows, HONEST)


def _notes(bank: ReferenceBank) -> list[str]:
    """Sentences that the card must not do without."""
    notes = [
        "The retrieval that taught a section had a bank without that section; network, ridge and kernel of the model "
        "were fitted on all training spots.",
        "The principal components of the student's features were found once, on the pictures of all slides.",
        "The student remembers every patient of its model and bank. When one withdraws consent, train and index "
        "without that patient and distil anew.",
    ]
    if len(bank.sections) == 1:
        notes.insert(
            0,
            "The bank holds one section only: its spots found themselves while they taught, and nothing was left out.",
        )
    if not bank.measured.all():
        some = int((~bank.measured.all(axis=0)).sum())
        notes.append(f"{some:,} genes were measured in some sections only; the student predicts them everywhere.")
    return notes
