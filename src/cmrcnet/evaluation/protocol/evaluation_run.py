"""A finished evaluation: scores, predictions, and what they say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cmrcnet.config import Config
from cmrcnet.evaluation.metrics.gene_metrics import over_patients
from cmrcnet.evaluation.protocol.folds import Fold
from cmrcnet.evaluation.protocol.protocol_info import Stamp
from cmrcnet.evaluation.protocol.summary import table_text, verdict
from cmrcnet.slides.section import Cohort

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


@dataclass(frozen=True, eq=False)
class EvaluationRun:
    """A finished evaluation.

    Parameters
    ----------
    cohort : Cohort
    config : Config
    folds : tuple of Fold
    stamp : Stamp
    methods : dict of str to str
        Name and one sentence of each method, in the order of the tables.
    scores : pandas.DataFrame
        `method, fold, section, patient, gene_set, metric, value, n_genes, n_undefined, seed`.
    genes : pandas.DataFrame
        `method, section, gene, pearson, mse, mean, variance, detected, sets, ceiling`; mean, variance and the share of
        spots where the gene was detected are the truth's; the ceiling is the best Pearson that its noise allows. Means
        over seeds. Every gene of CMRCNet (of the first method, where it was not run); of the others the genes of named
        sets, so that the file stays small.
    predictions : mapping of str to AnnData
        CMRCNet's prediction table of each section.
    facts : dict
        What `run.json` holds.
    """

    cohort: Cohort
    config: Config
    folds: tuple[Fold, ...]
    stamp: Stamp
    methods: dict[str, str]
    scores: pd.DataFrame
    genes: pd.DataFrame
    predictions: Mapping[str, AnnData]
    facts: dict[str, Any] = field(repr=False)

    def summary(self) -> pd.DataFrame:
        """Mean over patients of each method, gene set and metric."""
        return over_patients(self.scores)

    def mean(self, method: str, gene_set: str = "HVG", metric: str = "pearson") -> float:
        """One mean over patients; nan when it is undefined or was not run."""
        table = self.summary()
        found = table[(table.method == method) & (table.gene_set == gene_set) & (table.metric == metric)]
        return float(found["value"].iloc[0]) if len(found) else float("nan")

    def to_text(self) -> str:
        """The table of methods as plain text, with its stamp and the verdict."""
        return f"{table_text(self)}\n{self.stamp.to_text()}\n{verdict(self)}"
