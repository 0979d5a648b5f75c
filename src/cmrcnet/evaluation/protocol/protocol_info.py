"""The protocol of a run, as it stands on every table and page."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cmrcnet.evaluation.protocol.folds import Unit

if TYPE_CHECKING:
    import pandas as pd

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
        Genes in HEG, in HVG and in SVG.
    undefined : {"skip", "zero"}
        What an undefined correlation counts as.
    protocol : {"strict", "paper"}
        Who chooses the genes that are scored: training sections, or each test section's own truth.
    sets_from : str
        Where HEG and HVG come from, in words that fit after "chosen on".
    own_sets : tuple of str
        Names of gene lists that were given.
    n_genes : int or None
        Different genes scored; None before scoring.
    n_pairs, n_undefined : int
        Gene-section pairs scored, and those of them where the truth is constant, so that no method has a correlation.
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
    sets_from: str = "the training sections of each fold"
    own_sets: tuple[str, ...] = ()
    n_genes: int | None = None
    n_pairs: int = 0
    n_undefined: int = 0
    seeds: int = 1
    all_folds: int | None = None

    def counted(self, genes: pd.DataFrame) -> Stamp:
        """The stamp with the number of genes that were scored.

        Parameters
        ----------
        genes : pandas.DataFrame
            As `genes.csv`.
        """
        pairs = genes.drop_duplicates(["section", "gene"])
        # `variance` is the truth's; a constant one may leave rounding behind.
        flat = ~(pairs["variance"] > 1e-12)
        return replace(self, n_genes=pairs["gene"].nunique(), n_pairs=len(pairs), n_undefined=int(flat.sum()))

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
        seeds = "seeds, " if self.seeds > 1 else ""
        words = [
            *self.warnings,
            f"protocol {self.protocol}: leave-one-{self.unit}-out, {self.folds} fold{'s' if self.folds > 1 else ''}, "
            f"{self.sections} sections of {patients}" + (f", {self.seeds} seeds" if self.seeds > 1 else ""),
            *self._origins(),
        ]
        if self.n_genes is not None:
            words.append(
                f"{self.n_genes:,} genes scored; in {self.n_undefined:,} of {self.n_pairs:,} gene-section pairs the "
                "truth is constant, so every correlation is undefined"
            )
        words += [
            f"mean over genes, then {seeds}sections, then patients",
            f"undefined correlations {undefined} and counted beside them",
        ]
        sentence = "; ".join(words)
        return f"{sentence[0].upper()}{sentence[1:]}."

    def _origins(self) -> list[str]:
        """Where each kind of gene set comes from."""
        each = f"{self.set_size} genes each, chosen on"
        if self.protocol == "strict":
            found = [f"HEG, HVG and SVG: {each} {self.sets_from}"]
        else:
            found = [f"HEG and HVG: {each} {self.sets_from}; SVG: on the training sections of each fold"]
        return found + ([f"{' and '.join(self.own_sets)}: as listed"] if self.own_sets else [])
