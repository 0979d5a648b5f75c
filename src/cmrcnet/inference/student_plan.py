"""What a distilled student is to predict on one slide: everything checked before any time is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from cmrcnet.genes.table import STUDENT
from cmrcnet.inference.confidence import write_cards
from cmrcnet.inference.feature_spec import Sight, plain_sight
from cmrcnet.inference.gene_columns import columns_of
from cmrcnet.inference.ood_flag import sound_alarm
from cmrcnet.inference.prediction_chunk import PredictionBlock
from cmrcnet.slides.query_grid import make_query_grid
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import Slide
from cmrcnet.slides.tissue_mask import TissueMask

if TYPE_CHECKING:
    from anndata import AnnData

    from cmrcnet.models.student import Student

TEACHERS = "validation Pearson of the teacher"


@dataclass(frozen=True, eq=False)
class StudentPlan:
    """Locations of a slide and genes, for a student; see `plan_student` and `plan.Plan`.

    Parameters
    ----------
    student : Student
    slide : Slide
    locations : Spots
    in_tissue : numpy.ndarray, shape (locations,), bool
    columns : numpy.ndarray, shape (genes,), int
        Of the student's genes.
    """

    student: Student
    slide: Slide
    locations: Spots
    in_tissue: np.ndarray
    columns: np.ndarray

    @property
    def genes(self) -> list[str]:
        """The genes, in the order in which they were asked for."""
        return [self.student.genes[column] for column in self.columns]

    @cached_property
    def sight(self) -> Sight:
        """How locations are looked at: as the student does."""
        return plain_sight(self.student.encoder, self.student.config)

    @property
    def bytes_per_location(self) -> int:
        """Bytes that a location takes in the table, about."""
        return 4 * len(self.columns)

    def block(self, rows: slice, seen: np.ndarray) -> PredictionBlock:
        """Predict some locations.

        Parameters
        ----------
        rows : slice
            Of the locations.
        seen : array, shape (locations, width)
            What the sight gives of them.
        """
        return PredictionBlock(rows, self.student.predict(seen, self.columns))

    def annotate(self, table: AnnData, neighbour_rows: np.ndarray) -> None:
        """Add the teacher's gene cards, and the alarm, to a table of these locations.

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
        sound_alarm(table, trust, self.slide, self.locations)

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
            "config": student.config.name,
            "target_sum": student.target_sum,
            "patch_px": student.config.patch.size_px,
            "patch_mpp": student.config.patch.mpp,
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
    """Check what is asked for, find the tissue and lay the locations; parameters and errors as `predict_by_student`."""
    columns = columns_of(genes, student.genes)
    locations, tissue = make_query_grid(slide, spots, mask, grid_um)
    return StudentPlan(student, slide, locations, tissue.contains(locations.centre_px), columns)
