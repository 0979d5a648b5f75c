"""A student's card: how far it is from its teacher on measured sections, and how much faster it is.

Sections of the bank are left out one at a time: the bank without it teaches a head that has not seen it, and both
predict its spots. But the model itself was trained on these sections: its ridge and kernel parts recite some of what
was measured there, which a head that has not seen the section cannot. Both Pearson values are too good then, the
teacher's more, and the loss is overstated. A test cohort that nobody has seen gives honest values of all three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from cmrcnet.genes.gene_sets import gene_sets
from cmrcnet.genes.normalise import normalize
from cmrcnet.genes.spatial_stats import pearson_per_gene
from cmrcnet.inference.predictor import PredictOptions, make_predictor
from cmrcnet.models.trained_model import TrainedModel
from cmrcnet.retrieval.bank import ReferenceBank
from cmrcnet.slides.section import Cohort, Section

CAVEAT = (
    "The model was trained on these sections, so both Pearson values are too good, and the teacher's more: it recites "
    "what a head without the section cannot, which overstates the loss. Honest values need sections that nobody has "
    "seen (--test)."
)
HONEST = "Neither model nor bank nor student has seen these sections or their patients."
MEANS = ("teacher", "student", "loss", "student_with_teacher", "mean_absolute_difference")


def sections_to_leave_out(bank: ReferenceBank, most: int) -> list[str]:
    """Sections that the card is measured on: of every patient one, then of every patient another.

    Parameters
    ----------
    bank : ReferenceBank
    most : int
        Sections at most; none of a bank of one section.
    """
    if len(bank.sections) == 1:
        return []
    of: dict[str, list[str]] = {}
    for part in sorted(bank.entries, key=lambda part: (part.patient, part.section)):
        of.setdefault(part.patient, []).append(part.section)
    rounds = range(max(map(len, of.values())))
    return [names[number] for number in rounds for names in of.values() if number < len(names)][:most]


def scored_genes(model: TrainedModel, bank: ReferenceBank, cohort: Cohort) -> tuple[str, ...]:
    """The genes that vary most among the bank's sections: the HVG of an evaluation that trains on them."""
    size = model.config.evaluation.set_size
    return gene_sets(cohort.only(bank.sections), bank.target_sum, size)["HVG"]


def compare(
    model: TrainedModel,
    bank: ReferenceBank,
    section: Section,
    teacher_sees: np.ndarray,
    student_says: Callable[[Sequence[str]], np.ndarray],
    genes: Sequence[str],
) -> dict[str, Any]:
    """Teacher and student on the measured spots of one section.

    Parameters
    ----------
    model : TrainedModel
    bank : ReferenceBank
        Without this section.
    section : Section
    teacher_sees : array, shape (spots, width)
    student_says : callable
        From genes to the student's prediction of them, (spots, genes).
    genes : sequence of str
        That are scored.

    Returns
    -------
    dict
        A row of the card: mean Pearson with the measured expression of teacher and student, the loss (teacher less
        student), the mean correlation of student and teacher, and their mean absolute difference.
    """
    teacher = make_predictor(model, bank, PredictOptions(genes=genes)).predict_chunk(teacher_sees).mean
    student, truth = student_says(genes), _measured(section, genes, bank.target_sum)
    by = {"teacher": pearson_per_gene(truth, teacher), "student": pearson_per_gene(truth, student)}
    defined = np.isfinite(by["teacher"]) & np.isfinite(by["student"])  # both are judged by the same genes
    means = {name: _mean(values[defined]) for name, values in by.items()}
    alike = pearson_per_gene(teacher, student)
    return {
        "section": section.name,
        "patient": section.patient,
        "spots": len(section.spots),
        "genes": int(defined.sum()),
        **means,
        "loss": means["teacher"] - means["student"] if defined.any() else None,
        "student_with_teacher": _mean(alike[np.isfinite(alike)]),
        "mean_absolute_difference": _mean(np.abs(teacher - student)[np.isfinite(teacher)]),
    }


def summary(rows: Sequence[dict[str, Any]], sentence: str) -> dict[str, Any]:
    """Rows of `compare` with their means over sections.

    Parameters
    ----------
    rows : sequence of dict
    sentence : str
        What they are worth.
    """
    known = {name: [row[name] for row in rows if row[name] is not None] for name in MEANS}
    return {
        "sections": list(rows),
        "mean": {name: _mean(np.array(values)) for name, values in known.items()},
        "sentence": sentence,
    }


def card_text(card: dict[str, Any]) -> str:
    """What to tell of a card.

    Parameters
    ----------
    card : dict
    """
    return "\n".join(_lines(card))


def _lines(card: dict[str, Any]) -> Iterator[str]:
    for name, title in (("left_out", "Sections of the bank, each left out"), ("test", "Sections that nobody has seen")):
        found = card.get(name)
        if not found:
            continue
        yield f"{title}; mean Pearson of the {card['set_size']} genes that vary most:"
        yield f"  {'section':24}{'spots':>7}{'teacher':>9}{'student':>9}{'loss':>9}{'alike':>8}"
        for row in [*found["sections"], {"section": "mean", **found["mean"]}]:
            numbers = [("teacher", 9), ("student", 9), ("loss", 9), ("student_with_teacher", 8)]
            said = "".join(f"{_number(row[key]):>{width}}" for key, width in numbers)
            yield f"  {row['section']:24}{row.get('spots', ''):>7}{said}"
        yield f"  {found['sentence']}"
    speed = card["speed"]
    yield (
        f"Search and head take {_time(speed['teacher_seconds'])} a location, the student's head "
        f"{_time(speed['student_seconds'])}: {speed['times_faster']:.0f} times faster "
        f"({speed['locations']} locations, k "
        f"{speed['k']}, {speed['bank_spots']:,} bank spots, {speed['genes']:,} genes)."
    )
    yield (
        f"With encoding: {_time(speed['teacher_whole_seconds'])} a location ({speed['teacher_passes']} forward passes) "
        f"against {_time(speed['student_whole_seconds'])} ({speed['student_passes']}): "
        f"{speed['times_faster_whole']:.1f} times faster ({speed['locations_encoded']} locations)."
    )
    yield from card["notes"]


def _measured(section: Section, genes: Sequence[str], target_sum: float | str) -> np.ndarray:
    """Log-normalised expression, (spots, genes); 0 for a gene that is not listed where that means none was found."""
    values = normalize(section.counts, target_sum).tocsc()
    column = {gene: number for number, gene in enumerate(section.genes)}
    absent = 0.0 if section.absent_genes == "zero" else np.nan
    found = np.full((len(section.spots), len(genes)), absent)
    for number, gene in enumerate(genes):
        if gene in column:
            found[:, number] = values[:, [column[gene]]].toarray().ravel()
    return found


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"
