"""The gene sets that scores are given for: highly expressed, highly or spatially variable, the user's own, all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadOption, GenesError
from cmrcnet.genes.measured import MeasuredGenes
from cmrcnet.genes.morans_i import morans_i
from cmrcnet.genes.normalize import normalize
from cmrcnet.genes.panel import GenePanel
from cmrcnet.genes.spot_graph import spot_graph
from cmrcnet.slides.section import Cohort

EVERYTHING = "all"
"""Name of the set of all genes; it holds no choice, so costly metrics are not worked out for it."""
CHOSEN = ("HEG", "HVG", "SVG")
"""Sets chosen from expression."""
LEAST_DETECTED = 0.1
"""Share of spots in which a gene must be counted to stand as spatially variable: among thousands of rare genes, some
have their three counts in neighbouring spots by chance, and so a high Moran's I."""


def gene_sets(
    cohort: Cohort,
    scaling: GenePanel | float | Literal["median"] = 10_000.0,
    size: int = 50,
    lists: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Choose HEG, HVG and SVG from the sections given: in an evaluation, the training sections of the fold.

    Of the genes that every section measures: HEG have the highest mean log-normalised expression over all spots, HVG
    the highest variance of it WITHIN sections (each spot's distance from its own section's mean). Differences between
    sections, such as batch effects, make no gene an HVG: a prediction is scored within a section. SVG have the highest
    Moran's I (`morans_i` on the section's `spot_graph`), mean over the sections, of the genes counted in a tenth of all
    spots or more (the others follow); a section in which a gene is constant counts as 0, no pattern.

    One section is in memory at a time.

    Parameters
    ----------
    cohort : Cohort
    scaling : GenePanel, float or "median"
        Library size before log1p, or the panel that says it.
    size : int
        Genes in each chosen set; all, where fewer are measured.
    lists : mapping of str to sequence of str, optional
        Sets of your own, such as marker genes (``MG``): name and genes. Genes that are not measured in every section
        fall out.

    Returns
    -------
    dict of str to tuple of str
        ``HEG``, ``HVG`` and ``SVG``, highest first (ties in the order of the sections' genes), then the lists, each in
        its own order, and ``all``.

    Raises
    ------
    GenesError
        Also when no gene of a list is measured in every section.
    BadOption
    """
    if size < 1:
        raise BadOption("size", size, want="a number of genes, 1 or more")
    target_sum = scaling.target_sum if isinstance(scaling, GenePanel) else scaling
    lists = {name: tuple(dict.fromkeys(genes)) for name, genes in (lists or {}).items()}
    for name in lists:
        if name in (*CHOSEN, EVERYTHING) or not name.strip():
            raise BadOption("name of a gene list", name, want=f"a name other than {', '.join(CHOSEN)}, {EVERYTHING}")
    measured = MeasuredGenes()
    total: dict[str, float] = {}
    scatter: dict[str, float] = {}
    pattern: dict[str, float] = {}
    found_in: dict[str, int] = {}
    spots = 0
    for section in cohort:
        measured.add(section)
        expression = normalize(section.counts, target_sum).astype(np.float64)
        rows = expression.shape[0]
        sums = np.asarray(expression.sum(axis=0)).ravel()
        around = np.asarray(expression.multiply(expression).sum(axis=0)).ravel() - sums**2 / rows
        for gene, s, v in zip(section.genes, sums.tolist(), around.tolist(), strict=True):
            total[gene] = total.get(gene, 0.0) + s
            scatter[gene] = scatter.get(gene, 0.0) + v
        alike = np.nan_to_num(morans_i(expression, spot_graph(section.spots.centre_px)))
        spots += rows
        held = expression.getnnz(axis=0)
        for gene, i, n in zip(section.genes, alike.tolist(), held.tolist(), strict=True):
            pattern[gene] = pattern.get(gene, 0.0) + i
            found_in[gene] = found_in.get(gene, 0) + n
    shared = measured.shared()

    pattern |= {gene: -np.inf for gene in shared if found_in[gene] < LEAST_DETECTED * spots}
    chosen = {
        name: _highest(shared, np.array([of[gene] for gene in shared]), size)
        for name, of in zip(CHOSEN, (total, scatter, pattern), strict=True)
    }
    known = frozenset(shared)
    own = {name: tuple(gene for gene in genes if gene in known) for name, genes in lists.items()}
    for name, genes in own.items():
        if not genes:
            raise GenesError.none_shared(
                f"The gene list {name}", "these sections", "Are its genes named in the same way?"
            )
    return chosen | own | {EVERYTHING: shared}


def sets_of_truth(genes: Sequence[str], expression: sparse.spmatrix, size: int = 50) -> dict[str, tuple[str, ...]]:
    """HEG and HVG of ONE section's own expression, as the paper chooses them on the test section.

    For scoring under the protocol ``paper`` only: genes chosen by the truth they are scored on flatter every method,
    and no method may ever be given them.

    Parameters
    ----------
    genes : sequence of str
    expression : sparse matrix, shape (spots, genes)
        Log-normalised.
    size : int
        Genes in each set.

    Returns
    -------
    dict of str to tuple of str
        ``HEG`` by the mean, ``HVG`` by the variance over the section's spots, highest first.
    """
    expression = sparse.csr_matrix(expression).astype(np.float64)
    mean = np.asarray(expression.mean(axis=0)).ravel()
    variance = np.asarray(expression.multiply(expression).mean(axis=0)).ravel() - mean**2
    return {"HEG": _highest(genes, mean, size), "HVG": _highest(genes, variance, size)}


def _highest(genes: Sequence[str], values: np.ndarray, size: int) -> tuple[str, ...]:
    """Names of the highest values, ties in the order of the genes."""
    return tuple(genes[place] for place in np.argsort(-values.round(9), kind="stable")[:size])
