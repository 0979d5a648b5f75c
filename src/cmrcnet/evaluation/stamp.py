"""The protocol of a run, as it stands on every table and page."""

from __future__ import annotations

from dataclasses import dataclass

from cmrcnet.evaluation.splits import Unit

FEWEST_PATIENTS_TO_RANK = 5


@dataclass(frozen=True)
class Stamp:
    """How a run was scored; stands on every table and page.

    Parameters
    ----------
    unit : {"patient", "section"}
        What each fold leaves out.
    patients, sections, folds : int
        Tested.
    patient_disjoint : bool
        No fold has a patient on both sides.
    panel_from_all : bool
        The gene panel was chosen on the test sections too.
    set_size : int
        Genes in HEG and in HVG.
    undefined : {"skip", "zero"}
        What an undefined correlation counts as.
    """

    unit: Unit
    patients: int
    sections: int
    folds: int
    patient_disjoint: bool
    panel_from_all: bool
    set_size: int
    undefined: str

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons to trust the scores less, short."""
        found = []
        if not self.patient_disjoint:
            found.append("not patient-disjoint")
        if self.panel_from_all:
            found.append("gene panel chosen on all sections, the test sections included")
        if self.patients < FEWEST_PATIENTS_TO_RANK:
            found.append("too few patients to rank")
        return tuple(found)

    def to_text(self) -> str:
        """One sentence under a table."""
        undefined = "left out of means" if self.undefined == "skip" else "counted as 0 in means"
        patients = f"{self.patients} patient{'s' if self.patients > 1 else ''}"
        words = [
            *self.warnings,
            f"leave-one-{self.unit}-out, {self.folds} folds, {self.sections} sections of {patients}",
            f"HEG and HVG: {self.set_size} genes each, chosen on the training sections of each fold",
            "mean over genes, then sections, then patients",
            f"undefined correlations {undefined} and counted beside them",
        ]
        sentence = "; ".join(words)
        return f"{sentence[0].upper()}{sentence[1:]}."
