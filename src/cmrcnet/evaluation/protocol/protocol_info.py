"""How a run is scored: the two protocols, and the sentence about it that stands under every table."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from cmrcnet.config import Config
from cmrcnet.errors import BadOption, UnknownName
from cmrcnet.evaluation import Frame, Sparse
from cmrcnet.evaluation.protocol.folds import GroupBy
from cmrcnet.genes.gene_sets import sets_of_truth
from cmrcnet.genes.scaling import NO_CEILING
from cmrcnet.slides.table_kinds import TableKind, feature_words

ProtocolName = Literal["strict", "paper"]
Sets = Mapping[str, Sequence[str]]
FEWEST_PATIENTS_TO_RANK = 5


@dataclass(frozen=True)
class ScoringProtocol:
    """What an evaluation holds out, and on which genes it scores."""

    name: ProtocolName
    about: str  # one sentence for reports
    sets_from: str  # origin of HEG and HVG, worded to follow "chosen on"
    settings: dict[str, Any] = field(default_factory=dict, hash=False)  # config options that the protocol fixes

    def apply(self, config: Config, group_by: GroupBy | None = None) -> Config:
        """Return the config as this protocol runs it: with `group_by`, where given, and overridden by `settings`.

        Raises
        ------
        BadOption
            Patients held out under ``paper``, which holds out sections.
        """
        if "evaluation.group_by" in self.settings and group_by == "patient":
            raise BadOption("group_by", group_by, f"section, or nothing, with the protocol {self.name}")
        given = {} if group_by is None else {"evaluation.group_by": group_by}
        return config.override(given | self.settings) if given or self.settings else config

    def scored_sets(
        self, sets: Sets, genes: Sequence[str], truth: Sparse, size: int, among: Collection[str] | None = None
    ) -> dict[str, tuple]:
        """Return the gene sets on which one test section is scored; for scoring only, it may use the truth.

        Under ``strict`` the sets of the fold; under ``paper`` HEG and HVG are the `size` genes each of the truth: the
        log-normalised expression (spots, genes) of the test section, its columns named by `genes`; of those in
        `among`, where given.
        """
        chosen = {name: tuple(members) for name, members in sets.items()}
        if self.name != "paper":
            return chosen
        columns = [column for column, gene in enumerate(genes) if among is None or gene in among]
        return chosen | sets_of_truth([genes[column] for column in columns], truth[:, columns], size)


STRICT = ScoringProtocol(
    "strict",
    "Folds hold out whole patients (or sections, which is stated); panel, gene sets and every choice come from the "
    "training sections",
    "the training sections of each fold",
)
PAPER = ScoringProtocol(
    "paper",
    "Scoring as in published studies: one section is held out at a time, the panel is chosen on all sections, and HEG "
    "and HVG are those of the test section's own truth",
    "the test section's own truth, as in the paper",
    {"evaluation.group_by": "section", "panel.sections": "all"},
)
PROTOCOLS = {protocol.name: protocol for protocol in (STRICT, PAPER)}


def protocol_named(name: str) -> ScoringProtocol:
    """Look up a protocol; `UnknownName` for another name."""
    if name not in PROTOCOLS:
        raise UnknownName("protocol", name, tuple(PROTOCOLS))
    return PROTOCOLS[name]


@dataclass(frozen=True)
class ProtocolInfo:
    """How a run was scored; printed under every table."""

    group_by: GroupBy  # what each fold holds out
    patients: int  # numbers tested
    sections: int
    folds: int
    patient_disjoint: bool  # no fold has a patient on both sides
    panel_from_all: bool  # the gene panel was chosen on the test sections too
    set_size: int  # genes in HEG, in HVG and in SVG
    undefined: str  # "skip" or "zero": treatment of undefined correlations in means
    protocol: str = "strict"
    sets_from: str = "the training sections of each fold"  # origin of HEG and HVG
    n_genes: int | None = None  # different genes scored; None before scoring
    n_pairs: int = 0  # gene-section pairs scored
    n_undefined: int = 0  # pairs with a constant truth, where no method has a correlation
    seeds: int = 1  # that scores are averaged over
    all_folds: int | None = None  # when only some were run
    table_kind: TableKind = "counts"
    units: str = ""  # of truth and prediction; "" is the log of counts

    def counted(self, genes: Frame) -> ProtocolInfo:
        """Add the numbers of genes that were scored, from a table as `genes.csv`."""
        pairs = genes.drop_duplicates(["section", "gene"])
        flat = ~(pairs["variance"] > 1e-12)  # `variance` is the truth's; rounding leaves a little in constant genes
        return replace(self, n_genes=pairs["gene"].nunique(), n_pairs=len(pairs), n_undefined=int(flat.sum()))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Short reasons to trust the scores less."""
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
        """One sentence for under a table."""
        undefined = "left out of means" if self.undefined == "skip" else "counted as 0 in means"
        patients = f"{self.patients} patient{'s' if self.patients > 1 else ''}"
        each = f"{self.set_size} genes each, chosen on"
        words = [
            *self.warnings,
            f"protocol {self.protocol}: leave-one-{self.group_by}-out, {self.folds} fold"
            f"{'s' if self.folds > 1 else ''}, {self.sections} sections of {patients}"
            + (f", {self.seeds} seeds" if self.seeds > 1 else ""),
            f"HVG and SVG: {each} {self.sets_from}, both by Moran's I; HEG: the first {self.set_size} of the table"
            if self.table_kind == "continuous" and self.protocol == "strict"
            else f"HEG, HVG and SVG: {each} {self.sets_from}"
            if self.protocol == "strict"
            else f"HEG and HVG: {each} {self.sets_from}; SVG: on the training sections of each fold",
        ]
        if self.n_genes is not None:
            words.append(
                f"{self.n_genes:,} genes scored; in {self.n_undefined:,} of {self.n_pairs:,} gene-section pairs the "
                "truth is constant, so every correlation is undefined"
            )
        words += [
            f"mean over genes, then {'seeds, ' if self.seeds > 1 else ''}sections, then patients",
            f"undefined correlations {undefined} and counted beside them",
        ]
        if self.units:
            words.append(f"table of kind {self.table_kind}, in {self.units}; {NO_CEILING}")
        sentence = feature_words("; ".join(words), self.table_kind)
        return f"{sentence[0].upper()}{sentence[1:]}."
