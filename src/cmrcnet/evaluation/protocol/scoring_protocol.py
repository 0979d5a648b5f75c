"""The two ways of scoring: what is left out, and who chooses the genes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from scipy import sparse

from cmrcnet.config import Config
from cmrcnet.errors import UnknownName
from cmrcnet.genes.gene_sets import sets_of_truth

ProtocolName = Literal["strict", "paper"]
Sets = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class ScoringProtocol:
    """How an evaluation leaves out, and by which genes it scores.

    Parameters
    ----------
    name : {"strict", "paper"}
    about : str
        One sentence for reports.
    sets_from : str
        Where HEG and HVG come from, in words that fit after "chosen on".
    settings : dict
        Settings of the config that the protocol fixes.
    """

    name: ProtocolName
    about: str
    sets_from: str
    settings: dict[str, Any] = field(default_factory=dict, hash=False)

    def apply(self, config: Config) -> Config:
        """The config with what the protocol fixes."""
        return config.override(self.settings) if self.settings else config

    def scored_sets(
        self, sets: Mapping[str, Sequence[str]], genes: Sequence[str], truth: sparse.spmatrix, size: int
    ) -> dict[str, tuple[str, ...]]:
        """The sets that one test section is scored by. For scoring only: what comes out may know the truth.

        Parameters
        ----------
        sets : mapping of str to sequence of str
            Sets of the fold, chosen on its training sections.
        genes : sequence of str
            Columns of `truth`: genes that are predicted and measured.
        truth : sparse matrix, shape (spots, genes)
            The test section's log-normalised expression.
        size : int
            Genes in HEG and in HVG.

        Returns
        -------
        dict of str to tuple of str
            `sets` themselves under ``strict``; under ``paper`` with HEG and HVG of the truth in their place.
        """
        chosen = {name: tuple(members) for name, members in sets.items()}
        return chosen | sets_of_truth(genes, truth, size) if self.name == "paper" else chosen


STRICT = ScoringProtocol(
    "strict",
    "Folds leave out whole patients (or sections, stamped as such); panel, gene sets and every choice come from the "
    "training sections",
    "the training sections of each fold",
)
PAPER = ScoringProtocol(
    "paper",
    "As papers of this field score: one section is left out at a time, the panel is chosen on all sections, and HEG "
    "and HVG are those of the test section's own truth",
    "the test section's own truth, as in the paper",
    {"evaluation.group_by": "section", "panel.sections": "all"},
)
PROTOCOLS = {protocol.name: protocol for protocol in (STRICT, PAPER)}


def protocol_named(name: str) -> ScoringProtocol:
    """The protocol of this name.

    Raises
    ------
    UnknownName
    """
    if name not in PROTOCOLS:
        raise UnknownName("protocol", name, tuple(PROTOCOLS))
    return PROTOCOLS[name]
