"""What a distilled student is to predict on one slide: everything checked before any time is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from cmrcnet.expression.table import STUDENT
from cmrcnet.prediction.alarm import sound_alarm
from cmrcnet.prediction.confidence import write_cards
from cmrcnet.prediction.gene_columns import columns_of
from cmrcnet.prediction.laid_places import lay_places
from cmrcnet.prediction.prediction_block import PredictionBlock
from cmrcnet.prediction.sight import Sight, plain_sight
from cmrcnet.tissue.mask import TissueMask
from cmrcnet.tissue.slide import Slide
from cmrcnet.tissue.spots import Spots

if TYPE_CHECKING:
    from anndata import AnnData

    from cmrcnet.model.student import Student

TEACHERS = "held-in Pearson of the teacher"


@dataclass(frozen=True, eq=False)
class StudentPlan:
    """Places of a slide and genes, for a student; see `plan_student` and `plan.Plan`.

    Parameters
    ----------
    student : Student
    slide : Slide
    places : Spots
    in_tissue : numpy.ndarray, shape (places,), bool
    columns : numpy.ndarray, shape (genes,), int
        Of the student's genes.
    """

    student: Student
    slide: Slide
    places: Spots
    in_tissue: np.ndarray
    columns: np.ndarray

    @property
    def genes(self) -> list[str]:
        """The genes, in the order in which they were asked for."""
        return [self.student.genes[column] for column in self.columns]

    @cached_property
    def sight(self) -> Sight:
        """How places are looked at: as the student does."""
        return plain_sight(self.student.encoder, self.student.recipe)

    @property
    def bytes_a_place(self) -> int:
        """Bytes that a place takes in the table, about."""
        return 4 * len(self.columns)

    def block(self, rows: slice, seen: np.ndarray) -> PredictionBlock:
        """Predict some places.

        Parameters
        ----------
        rows : slice
            Of the places.
        seen : array, shape (places, width)
            What the sight gives of them.
        """
        return PredictionBlock(rows, self.student.predict(seen, self.columns))

    def annotate(self, table: AnnData, neighbour_rows: np.ndarray) -> None:
        """Add the teacher's gene cards, and the alarm, to a table of these places.

        Parameters
        ----------
        table : anndata.AnnData
            A prediction table, or its frame: X and layers are not looked at.
        neighbour_rows : array of int
            None: a student has no neighbours.
        """
        trust = self.student.trust
        table.uns["cmrcnet"]["intervals"] = "No intervals: they were calibrated for the teacher, not for its student."
        if trust is not None and trust.reliability is not None:
            write_cards(table, trust.reliability.cards, TEACHERS)
        sound_alarm(table, trust, self.slide, self.places)

    def provenance(self) -> dict[str, Any]:
        """What a prediction table says of where it comes from."""
        student, taught = self.student, self.student.lineage
        return {
            STUDENT: student.fingerprint,
            "model_fingerprint": taught.model_fingerprint,
            "bank_fingerprint": taught.bank_fingerprint,
            "bank_sections": list(taught.bank_sections),
            "bank_patients": list(taught.bank_patients),
            "sections_seen": list(taught.sections),
            "patients_seen": list(taught.patients),
            "recipe": student.recipe.name,
            "target_sum": student.target_sum,
            "patch_px": student.recipe.patch.size_px,
            "patch_um_per_px": student.recipe.patch.um_per_px,
        }


def plan_student(
    student: Student,
    slide: Slide,
    *,
    spots: Spots | None = None,
    mask: TissueMask | None = None,
    genes: Sequence[str] | None = None,
    grid_um: float = 100.0,
) -> StudentPlan:
    """Check what is asked for, find the tissue and lay the places; parameters and errors as `predict_by_student`."""
    columns = columns_of(genes, student.genes)
    places, tissue = lay_places(slide, spots, mask, grid_um)
    return StudentPlan(student, slide, places, tissue.contains(places.centre_px), columns)
