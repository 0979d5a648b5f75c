"""What slides are predicted with: a model and its bank, or a student alone. Many slides share one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from cmrcnet.errors import BadOption

if TYPE_CHECKING:
    from cmrcnet.inference.plan import Plan
    from cmrcnet.models.student import Student
    from cmrcnet.models.trained_model import TrainedModel
    from cmrcnet.retrieval.bank import ReferenceBank
    from cmrcnet.slides.section import Spots
    from cmrcnet.slides.slide import Slide
    from cmrcnet.slides.tissue_mask import TissueMask


class Predictor(Protocol):
    """Plans predictions on slides."""

    @property
    def genes(self) -> Sequence[str]:
        """All genes that it can predict."""

    def check(self) -> None:
        """Refuse what would be wrong with every slide."""

    def facts(self) -> dict[str, Any]:
        """What the provenance of its tables says, by which a table that is there is known for its own."""

    def plan(
        self,
        slide: Slide,
        *,
        spots: Spots | None = None,
        mask: TissueMask | None = None,
        genes: Sequence[str] | None = None,
        grid_um: float = 100.0,
    ) -> Plan:
        """Check what is asked for, find the tissue and lay the locations."""


@dataclass(frozen=True, eq=False)
class BankPredictor:
    """A model and its bank; parameters as `predict`."""

    model: TrainedModel
    bank: ReferenceBank
    k: int | None = None
    intervals: bool = False
    abstain: float | None = None

    @property
    def genes(self) -> Sequence[str]:
        """All that the bank measured."""
        return self.bank.genes

    def check(self) -> None:
        """Refuse another model's bank (`Incompatible`) and a k that the bank does not hold (`BadOption`)."""
        self.bank.require_model(self.model)
        if self.k is not None and not 1 <= self.k <= len(self.bank):
            raise BadOption("k", self.k, want=f"1 to {len(self.bank)}, the number of spots in {self.bank.name}")

    def facts(self) -> dict[str, Any]:
        """What the provenance of its tables says."""
        return {
            "model_fingerprint": self.model.fingerprint,
            "bank_fingerprint": self.bank.fingerprint,
            "k": self.model.config.head.within(len(self.bank)).k if self.k is None else self.k,
            "with_intervals": int(self.intervals),
            "abstain": self.abstain or 0.0,
        }

    def plan(
        self,
        slide: Slide,
        *,
        spots: Spots | None = None,
        mask: TissueMask | None = None,
        genes: Sequence[str] | None = None,
        grid_um: float = 100.0,
    ) -> Plan:
        """As `plan_prediction`."""
        from cmrcnet.inference.plan import plan_prediction

        return plan_prediction(
            self.model,
            self.bank,
            slide,
            spots=spots,
            mask=mask,
            genes=genes,
            k=self.k,
            grid_um=grid_um,
            intervals=self.intervals,
            abstain=self.abstain,
        )


@dataclass(frozen=True, eq=False)
class StudentPredictor:
    """A distilled student."""

    student: Student

    @property
    def genes(self) -> Sequence[str]:
        """All that its teacher's bank measured."""
        return self.student.genes

    def check(self) -> None:
        """Nothing to abstain from."""

    def facts(self) -> dict[str, Any]:
        """What the provenance of its tables says."""
        from cmrcnet.genes.table import STUDENT

        return {STUDENT: self.student.fingerprint}

    def plan(
        self,
        slide: Slide,
        *,
        spots: Spots | None = None,
        mask: TissueMask | None = None,
        genes: Sequence[str] | None = None,
        grid_um: float = 100.0,
    ) -> Plan:
        """As `plan_student`."""
        from cmrcnet.inference.student_plan import plan_student

        return plan_student(self.student, slide, spots=spots, mask=mask, genes=genes, grid_um=grid_um)
