"""What a prediction is worth: the held-out truth enters here, after the method has spoken, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from cmrcnet.errors import NoSharedGenes
from cmrcnet.evaluation.methods import Prediction
from cmrcnet.evaluation.metrics import score_genes, score_sets
from cmrcnet.expression.gene_naming import explain_no_shared_genes
from cmrcnet.expression.panel import GenePanel
from cmrcnet.recipe import Recipe
from cmrcnet.tissue.section import Section

if TYPE_CHECKING:
    import pandas as pd

ProtocolName = Literal["strict", "paper"]
Sets = Mapping[str, Sequence[str]]


def score_section(
    section: Section,
    prediction: Prediction,
    genes: Sequence[str],
    sets: Sets,
    recipe: Recipe,
    protocol: ProtocolName = "strict",
) -> tuple[list[dict[str, object]], pd.DataFrame]:
    """Score one section's prediction.

    Parameters
    ----------
    section : Section
        Held out; its truth is read here.
    prediction : Prediction
    genes : sequence of str
        Genes of the training sections: what the method had to predict.
    sets : mapping of str to sequence of str
        Gene sets to average over.
    recipe : Recipe
        `panel.target_sum`, `evaluation.set_size` and `evaluation.undefined`.
    protocol : {"strict", "paper"}
        paper: HEG and HVG are the genes of largest mean and variance in this section's own TRUTH.

    Returns
    -------
    scores : list of dict
        One a set and metric.
    table : pandas.DataFrame
        One row a gene; `sets` names those that hold it ("all" goes without saying).

    Raises
    ------
    NoSharedGenes
    """
    measured, truth = truth_of(section, genes, recipe.panel.target_sum)
    table = score_genes(truth, prediction.take(measured), measured)
    if protocol == "paper":
        sets = {**sets, **sets_of_truth(table, recipe.evaluation.set_size)}
    rows = score_sets(table, sets, recipe.evaluation.undefined)
    of_gene: dict[str, str] = {}
    for name, members in sets.items():
        for gene in members if name != "all" else ():
            of_gene[gene] = f"{of_gene[gene]} {name}" if gene in of_gene else name
    table["sets"] = [of_gene.get(gene, "") for gene in measured]
    return rows, table


def sets_of_truth(table: pd.DataFrame, size: int) -> dict[str, tuple[str, ...]]:
    """HEG and HVG by the truth of the section that is scored, as published studies choose them.

    Parameters
    ----------
    table : pandas.DataFrame
        `gene`, `mean` and `variance` of the measured log-expression.
    size : int
        Genes in each set.
    """
    return {
        name: tuple(table.sort_values(column, ascending=False, kind="stable")["gene"].head(size))
        for name, column in (("HEG", "mean"), ("HVG", "variance"))
    }


def truth_of(section: Section, genes: Sequence[str], target_sum: float | str):
    """Measured log-normalised expression of those of `genes` that the section measured.

    Returns
    -------
    genes : tuple of str
    expression : scipy.sparse.csr_matrix, shape (spots, genes)
        Library sizes are over all genes of the section.
    """
    known = set(section.genes)
    measured = tuple(gene for gene in genes if section.absent_genes == "zero" or gene in known)
    if not measured or known.isdisjoint(measured):
        hint = explain_no_shared_genes(tuple(genes), section.genes)
        raise NoSharedGenes("The training sections", f"section {section.name}", hint)
    return measured, GenePanel(measured, target_sum, {"kind": "evaluation"}).select(section)
