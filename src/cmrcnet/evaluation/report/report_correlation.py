"""Gene-gene correlation in the report: measured beside predicted, over all test sections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.errors import TooFew
from cmrcnet.evaluation.methods.method import MAIN
from cmrcnet.evaluation.metrics.gene_correlation import gene_correlation, gene_correlation_png
from cmrcnet.evaluation.metrics.scoring import truth_of
from cmrcnet.evaluation.report.page import figure, stamp_line

if TYPE_CHECKING:
    from cmrcnet.evaluation.protocol.evaluation_run import EvaluationRun

_MOST_GENES = 50


def correlation_figure(run: EvaluationRun) -> str:
    """Both matrices of the genes that most folds chose as HVG; empty where there is nothing to correlate."""
    genes = correlated_genes(run)
    try:
        found = gene_correlation(_pairs(run, genes), genes)
    except TooFew:
        return ""
    image = gene_correlation_png(found)
    said = (
        f"{len(genes)} HVG (those that most folds chose, measured in every section shown), all held-out spots of "
        f"{len(run.predictions)} sections, each gene's section mean taken off. Both in the order into which the "
        "measured correlations cluster."
    )
    return (
        "<p>Whether genes that go together in the tissue go together in the prediction.</p>\n"
        + figure(image, "png", "Gene-gene correlation, measured and predicted", "").replace(
            "<figure>", '<figure class="wide">', 1
        )
        + stamp_line(run, said)
    )


def correlated_genes(run: EvaluationRun) -> list[str]:
    """Up to 50 HVG, those of most folds first, that every section with a prediction measured."""
    folds = [fold["gene_sets"].get("HVG", []) for fold in run.facts["folds"]]
    chosen = Counter(gene for genes in folds for gene in genes)
    mine = run.genes[(run.genes.method == MAIN) & run.genes.section.isin(list(run.predictions))]
    everywhere = mine.groupby("gene", sort=False).section.nunique() == len(run.predictions)
    return [gene for gene, _ in chosen.most_common() if everywhere.get(gene, False)][:_MOST_GENES]


def _pairs(run: EvaluationRun, genes: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for name in run.predictions:
        _, truth = truth_of(run.cohort.read(name), genes, run.config.panel.target_sum)
        said = run.predictions[name][:, genes].X
        yield truth, np.asarray(said.todense() if hasattr(said, "todense") else said, np.float64)
