"""Report of a student: its accuracy beside that of its teacher on measured sections, and its speed.

Sections of the bank are left out one at a time: a head is fitted without the section, and teacher (bank without the
section) and student predict its spots. The model itself was trained on these sections, and its ridge and kernel heads
partly reproduce what was measured there, which a head that has not seen the section cannot do. So both Pearson values
are too high, the teacher's more, and the loss is overstated. A test cohort of new patients gives unbiased values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from timeit import timeit
from typing import TYPE_CHECKING, Any

import numpy as np

from cmrcnet.distill.distillation_set import DistillationSet, bank_without, features_at
from cmrcnet.distill.fit_student import fit_student
from cmrcnet.genes.gene_sets import gene_sets
from cmrcnet.genes.scaling import Scaling
from cmrcnet.genes.spatial_stats import pearson_per_gene
from cmrcnet.inference.location_features import LocationEncoder
from cmrcnet.inference.predictor import PredictOptions, gene_columns, make_predictor
from cmrcnet.models.student import Student
from cmrcnet.models.trained_model import TrainedModel
from cmrcnet.progress import tracked
from cmrcnet.retrieval.bank import ReferenceBank
from cmrcnet.slides.section import Cohort, Section, Spots
from cmrcnet.slides.slide import Slide

if TYPE_CHECKING:
    from cmrcnet.storage.cache import TokenCache

LEFT_OUT = 5
"""Sections that are left out in turn, at most."""
TIMED, TIMED_ENCODED = 512, 16
"""Locations that search and head are timed on, and those of them that are encoded as well, at most."""
_ROUNDS = 3
"""Teacher and student are timed in turn this many times, and the fastest round counts: a changing load of the machine
then affects both alike."""
SEEN = (
    "The model was trained on these sections, so both Pearson values are too high, and the teacher's more: it partly "
    "reproduces measurements of the section, which a head fitted without the section cannot. The loss is overstated. "
    "For unbiased values give sections of new patients (--test)."
)
UNSEEN = "Neither model nor bank nor student has seen these sections or their patients."
MEANS = ("teacher", "student", "loss", "student_with_teacher", "mean_absolute_difference")


def make_report(
    model: TrainedModel,
    bank: ReferenceBank,
    cohort: Cohort,
    sets: Sequence[DistillationSet],
    student: Student,
    *,
    test: Cohort | None,
    seed: int,
    cache: TokenCache | None,
) -> dict[str, Any]:
    """Measure a student on sections that are left out and on a test cohort, and its speed; plain values."""
    left_out = [
        _leave_out(model, bank, cohort, sets, name, seed)
        for name in tracked(sections_to_leave_out(bank, LEFT_OUT), "measure", unit="sections")
    ]
    tested = []
    if test is not None:
        genes = scored_genes(model, bank, cohort)
        teacher, own = LocationEncoder.of_model(model), LocationEncoder.of_student(student.encoder, student.config)
        for section in tracked(test, "test", unit="sections"):
            predicted = features_at(own, section.slide, section.spots, cache)
            predicted = student.predict(predicted, gene_columns(genes, student.genes))
            features = features_at(teacher, section.slide, section.spots, cache)
            tested.append(compare(model, bank, section, features, predicted, genes))
    largest = max((each for each in sets if each.measured), key=len)
    return {
        "set_size": model.config.evaluation.set_size,
        "notes": _notes(bank),
        "left_out": comparison(left_out, SEEN) if left_out else None,
        "test": None if test is None else comparison(tested, UNSEEN),
        "speed": measure_speed(model, bank, student, largest.slide, largest.spots),
    }


def sections_to_leave_out(bank: ReferenceBank, most: int) -> list[str]:
    """Choose sections to leave out: one of every patient, then a second of every patient; none of a single section."""
    if len(bank.sections) == 1:
        return []
    of: dict[str, list[str]] = {}
    for part in sorted(bank.entries, key=lambda part: (part.patient, part.section)):
        of.setdefault(part.patient, []).append(part.section)
    rounds = range(max(map(len, of.values())))
    return [names[number] for number in rounds for names in of.values() if number < len(names)][:most]


def scored_genes(model: TrainedModel, bank: ReferenceBank, cohort: Cohort) -> tuple[str, ...]:
    """Choose the genes to score: the HVG of an evaluation that trains on the bank's sections."""
    size = model.config.evaluation.set_size
    return gene_sets(cohort.only(bank.sections), bank.scaling, size, svg=False)["HVG"]


def _leave_out(
    model: TrainedModel, bank: ReferenceBank, cohort: Cohort, sets: Sequence[DistillationSet], name: str, seed: int
) -> dict[str, Any]:
    """Compare teacher and student on a section that neither the bank nor the head has seen."""
    others = bank_without(bank, (name,))
    outputs, head, _ = fit_student(model, others, [each for each in sets if name not in each.sections], seed)
    own = next(each for each in sets if each.measured and name in each.sections)
    genes = scored_genes(model, others, cohort)
    predicted = outputs.basis.expression(
        head.scores(own.student_features), gene_columns(genes, outputs.genes), bank.scaling.limits
    )
    return compare(model, others, cohort.read(name), own.teacher_features, predicted, genes)


def compare(
    model: TrainedModel,
    bank: ReferenceBank,
    section: Section,
    teacher_features: np.ndarray,
    student: np.ndarray,
    genes: Sequence[str],
) -> dict[str, Any]:
    """Compare teacher (model and bank without the section) and student on the measured spots of one section.

    `teacher_features` are those of its spots, `student` the student's prediction (spots, genes). Returns mean Pearson
    of teacher and of student with measured expression, loss (teacher minus student), mean Pearson of student with
    teacher, and their mean absolute difference.
    """
    teacher = make_predictor(model, bank, PredictOptions(genes=genes)).predict_chunk(teacher_features).mean
    assert teacher is not None  # components stand for expression only where they are asked for
    truth = _measured(section, genes, bank.scaling)
    by = {"teacher": pearson_per_gene(truth, teacher), "student": pearson_per_gene(truth, student)}
    defined = np.isfinite(by["teacher"]) & np.isfinite(by["student"])  # both are scored on the same genes
    means = {name: _mean(values[defined]) for name, values in by.items()}
    loss = None if means["teacher"] is None or means["student"] is None else means["teacher"] - means["student"]
    agreement = pearson_per_gene(teacher, student)
    return {
        "section": section.name,
        "patient": section.patient,
        "spots": len(section.spots),
        "genes": int(defined.sum()),
        **means,
        "loss": loss,
        "student_with_teacher": _mean(agreement[np.isfinite(agreement)]),
        "mean_absolute_difference": _mean(np.abs(teacher - student)[np.isfinite(teacher)]),
    }


def _measured(section: Section, genes: Sequence[str], scaling: Scaling) -> np.ndarray:
    """Expression (spots, genes); an unlisted gene is 0 or NaN, as the section states."""
    values = scaling.expression(section).tocsc()
    column = {gene: number for number, gene in enumerate(section.genes)}
    absent = 0.0 if section.absent_genes == "zero" else np.nan
    found = np.full((len(section.spots), len(genes)), absent)
    for number, gene in enumerate(genes):
        if gene in column:
            found[:, number] = values[:, [column[gene]]].toarray().ravel()
    return found


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None


def comparison(rows: Sequence[dict[str, Any]], sentence: str) -> dict[str, Any]:
    """Collect rows of `compare` with their means over sections and a sentence on what they mean."""
    known = {name: [row[name] for row in rows if row[name] is not None] for name in MEANS}
    return {
        "sections": list(rows),
        "mean": {name: _mean(np.array(values)) for name, values in known.items()},
        "sentence": sentence,
    }


def _notes(bank: ReferenceBank) -> list[str]:
    notes = [
        "Each section was predicted by the bank without it; the network, ridge and kernel of the model were fitted on "
        "all training spots.",
        "The PCA of the student's features was fitted once, on the images of all slides.",
        "The student contains every patient of its model and bank. When one withdraws consent, train and index "
        "without that patient and distil again.",
    ]
    if len(bank.sections) == 1:
        notes.insert(0, "The bank holds one section only: spots were their own neighbours, and nothing was left out.")
    if not bank.measured.all():
        some = int((~bank.measured.all(axis=0)).sum())
        notes.append(f"{some:,} genes were measured in some sections only; the student predicts them everywhere.")
    return notes


def measure_speed(
    model: TrainedModel, bank: ReferenceBank, student: Student, slide: Slide, spots: Spots
) -> dict[str, Any]:
    """Time teacher and student on the same locations, for all genes, with and without encoding.

    The first of `spots` are used, repeatedly where they are few. Returns seconds per location and ratios, plain
    values. When teacher and student encode alike, encoding is timed once.
    """
    few = spots.take(np.arange(min(TIMED_ENCODED, len(spots))))
    options = PredictOptions()
    predictors = {"teacher": make_predictor(model, bank, options), "student": make_predictor(student, None, options)}
    alike = len({(each.encoder.encoder.fingerprint(), each.encoder.spec) for each in predictors.values()}) == 1
    features = {name: features_at(predictor.encoder, slide, few, None) for name, predictor in predictors.items()}
    many = np.resize(np.arange(len(few)), TIMED)
    encoding, head = dict.fromkeys(predictors, np.inf), dict.fromkeys(predictors, np.inf)
    for _ in range(_ROUNDS):
        for name, predictor in predictors.items():
            seconds = timeit(partial(predictor.predict_chunk, features[name][many]), number=1)
            head[name] = min(head[name], seconds / TIMED)
            if name == "teacher" or not alike:
                seconds = timeit(partial(features_at, predictor.encoder, slide, few, None), number=1)
                encoding[name] = min(encoding[name], seconds / len(few))
    if alike:
        encoding["student"] = encoding["teacher"]
    specs = {name: predictor.encoder.spec for name, predictor in predictors.items()}
    passes = {name: sum(map(each.augmentations_of, range(len(each.scales)))) for name, each in specs.items()}
    whole = {name: encoding[name] + head[name] for name in predictors}
    return {
        "locations": TIMED,
        "locations_encoded": len(few),
        "k": model.config.head.within(len(bank)).k,
        "bank_spots": len(bank),
        "genes": len(bank.genes),
        "search": "exact" if bank.index is None else bank.index["kind"],
        "teacher_passes": passes["teacher"],
        "student_passes": passes["student"],
        "teacher_seconds": head["teacher"],
        "student_seconds": head["student"],
        "times_faster": head["teacher"] / head["student"],
        "teacher_whole_seconds": whole["teacher"],
        "student_whole_seconds": whole["student"],
        "times_faster_whole": whole["teacher"] / whole["student"],
    }


def report_lines(report: dict[str, Any]) -> Iterator[str]:
    """Write a student report as text, line by line: tables of accuracy, speed, notes."""
    for name, title in (("left_out", "Sections of the bank, each left out"), ("test", "Sections of new patients")):
        found = report.get(name)
        if not found:
            continue
        yield f"{title}; mean Pearson of the {report['set_size']} most variable genes:"
        yield f"  {'section':24}{'spots':>7}{'teacher':>9}{'student':>9}{'loss':>9}{'alike':>8}"
        for row in [*found["sections"], {"section": "mean", **found["mean"]}]:
            columns = [("teacher", 9), ("student", 9), ("loss", 9), ("student_with_teacher", 8)]
            numbers = "".join(f"{'-' if row[key] is None else f'{row[key]:.4f}':>{width}}" for key, width in columns)
            yield f"  {row['section']:24}{row.get('spots', ''):>7}{numbers}"
        yield f"  {found['sentence']}"
    speed = report["speed"]
    yield (
        f"Search and head take {_time(speed['teacher_seconds'])} per location, the student's head "
        f"{_time(speed['student_seconds'])}: {speed['times_faster']:.0f} times faster ({speed['locations']} locations, "
        f"k {speed['k']}, {speed['bank_spots']:,} bank spots, {speed['genes']:,} genes)."
    )
    yield (
        f"With encoding: {_time(speed['teacher_whole_seconds'])} per location ({speed['teacher_passes']} forward "
        f"passes) against {_time(speed['student_whole_seconds'])} ({speed['student_passes']}): "
        f"{speed['times_faster_whole']:.1f} times faster ({speed['locations_encoded']} locations)."
    )
    yield from report["notes"]


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"
