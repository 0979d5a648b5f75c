"""The gene sets that scores are given for: highly expressed (HEG), highly variable (HVG), all."""

from __future__ import annotations

from typing import Literal

import numpy as np

from cmrcnet.errors import BadOption
from cmrcnet.expression.measured import MeasuredGenes
from cmrcnet.expression.normalize import normalize
from cmrcnet.expression.panel import GenePanel
from cmrcnet.tissue.section import Cohort


def gene_sets(
    cohort: Cohort, scaling: GenePanel | float | Literal["median"] = 10_000.0, size: int = 50
) -> dict[str, tuple[str, ...]]:
    """Choose HEG and HVG from the sections given: in an evaluation, the training sections of the fold.

    Of the genes that every section measures: HEG have the highest mean log-normalised expression over all spots, HVG
    the highest variance of it WITHIN sections (each spot's distance from its own section's mean). Differences between
    sections, such as batch effects, make no gene an HVG: a prediction is scored within a section. One section is
    in memory at a time.

    Parameters
    ----------
    cohort : Cohort
    scaling : GenePanel, float or "median"
        Library size before log1p, or the panel that says it.
    size : int
        Genes in each set; all, where fewer are measured.

    Returns
    -------
    dict of str to tuple of str
        ``HEG`` and ``HVG``, highest first (ties in the order of the sections' genes), and ``all``.

    Raises
    ------
    NoSharedGenes, BadOption
    """
    if size < 1:
        raise BadOption("size", size, want="a number of genes, 1 or more")
    target_sum = scaling.target_sum if isinstance(scaling, GenePanel) else scaling
    measured = MeasuredGenes()
    total: dict[str, float] = {}
    scatter: dict[str, float] = {}
    for section in cohort:
        measured.add(section)
        expression = normalize(section.counts, target_sum).astype(np.float64)
        rows = expression.shape[0]
        sums = np.asarray(expression.sum(axis=0)).ravel()
        around = np.asarray(expression.multiply(expression).sum(axis=0)).ravel() - sums**2 / rows
        for gene, s, v in zip(section.genes, sums.tolist(), around.tolist(), strict=True):
            total[gene] = total.get(gene, 0.0) + s
            scatter[gene] = scatter.get(gene, 0.0) + v
    shared = measured.shared()

    def highest(of: dict[str, float]) -> tuple[str, ...]:
        values = np.array([of[gene] for gene in shared]).round(9)
        return tuple(shared[place] for place in np.argsort(-values, kind="stable")[:size])

    return {"HEG": highest(total), "HVG": highest(scatter), "all": shared}
