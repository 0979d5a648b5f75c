"""Scores over seeds: the mean over seeds is taken first, section by section, then over sections and patients."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_KEYS = ["method", "fold", "section", "patient", "gene_set", "metric"]


def over_seeds(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean over the seeds of each method, section, gene set and metric.

    Parameters
    ----------
    scores : pandas.DataFrame
        `scores.csv`: one row a method, section, gene set, metric and seed.

    Returns
    -------
    pandas.DataFrame
        The same columns without `seed`. `n_genes` and `n_undefined` are the largest of any seed; a value that is
        undefined in some seeds is the mean of the others.
    """
    if "seed" not in scores or scores["seed"].nunique() < 2:
        return scores.drop(columns="seed", errors="ignore")
    means = scores.groupby(_KEYS, sort=False, as_index=False).agg(
        value=("value", "mean"), n_genes=("n_genes", "max"), n_undefined=("n_undefined", "max")
    )
    return means[[column for column in scores if column != "seed"]]


def genes_over_seeds(genes: pd.DataFrame, seeds: int) -> pd.DataFrame:
    """Mean over seeds of every number of `genes.csv`, one row a method, section and gene.

    Parameters
    ----------
    genes : pandas.DataFrame
        Rows of all seeds.
    seeds : int
        How many; with one, nothing is changed.
    """
    if seeds < 2:
        return genes
    keys = ["method", "section", "gene"]
    texts = {"sets": "first"} if "sets" in genes else {}
    numbers = {name: "mean" for name in genes.columns if name not in (*keys, *texts)}
    means = genes.groupby(keys, sort=False, as_index=False).agg(numbers | texts)
    return means[list(genes.columns)]
