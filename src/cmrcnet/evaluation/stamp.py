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
    protocol : {"strict", "paper"}
        Who chooses the genes that are scored: training sections, or each test section's own truth.
    seeds : int
        Seeds that scores are means over.
    all_folds : int or None
        Folds that there are, where only some were run.
    """

    unit: Unit
    patients: int
    sections: int
    folds: int
    patient_disjoint: bool
    panel_from_all: bool
    set_size: int
    undefined: str
    protocol: str = "strict"
    seeds: int = 1
    all_folds: int | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons to trust the scores less, short."""
        found = []
        if not self.patient_disjoint:
            found.append("not patient-disjoint")
        if self.protocol == "paper":
            found.append("scored genes chosen by the test truth")
        if self.panel_from_all:
            found.append("gene panel chosen on all sections, the test sections included")
        if self.all_folds is not None:
            found.append(f"only {self.folds} of {self.all_folds} folds")
        if self.patients < FEWEST_PATIENTS_TO_RANK:
            found.append("too few patients to rank")
        return tuple(found)

    def to_text(self) -> str:
        """One sentence under a table."""
        undefined = "left out of means" if self.undefined == "skip" else "counted as 0 in means"
        patients = f"{self.patients} patient{'s' if self.patients > 1 else ''}"
        origin = "by the measured truth of each test section"
        if self.protocol == "strict":
            origin = "on the training sections of each fold"
        seeds = "seeds, " if self.seeds > 1 else ""
        words = [
            *self.warnings,
            f"protocol {self.protocol}: leave-one-{self.unit}-out, {self.folds} fold{'s' if self.folds > 1 else ''}, "
            f"{self.sections} sections of {patients}" + (f", {self.seeds} seeds" if self.seeds > 1 else ""),
            f"HEG and HVG: {self.set_size} genes each, chosen {origin}",
            f"mean over genes, then {seeds}sections, then patients",
            f"undefined correlations {undefined} and counted beside them",
        ]
        sentence = "; ".join(words)
        return f"{sentence[0].upper()}{sentence[1:]}."
