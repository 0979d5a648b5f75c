"""Scores: per gene and section first, then means over genes, over sections, over patients.

A correlation is undefined where the truth or the prediction is constant over the section. Such genes are counted
beside every mean, and either left out of it ("skip") or taken as 0 ("zero"); nothing happens silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import sparse

from cmrcnet.errors import ShapeMismatch
from cmrcnet.evaluation.seeds import over_seeds
from cmrcnet.expression.correlation import pearson_per_gene

if TYPE_CHECKING:
    import pandas as pd

Undefined = Literal["skip", "zero"]
METRICS = ("pearson", "mse")
_GENES_AT_A_TIME = 2_000  # bounds the memory of a section with many spots


def score_genes(truth: sparse.csr_matrix | np.ndarray, guess: np.ndarray, genes: Sequence[str]) -> pd.DataFrame:
    """Score each gene of one section.

    Parameters
    ----------
    truth, guess : shape (spots, genes)
        Log-normalised expression, measured and predicted.
    genes : sequence of str

    Returns
    -------
    pandas.DataFrame
        One row a gene: `gene`, `pearson` (nan where undefined), `mse`, and of the truth its `mean`, `variance` and
        `detected` (share of spots where it is above 0).
    """
    import pandas as pd

    if truth.shape != guess.shape or truth.shape[1] != len(genes):
        raise ShapeMismatch("The prediction", want=(truth.shape[0], len(genes)), got=guess.shape)
    truth = sparse.csc_matrix(truth) if sparse.issparse(truth) else truth
    columns: dict[str, list[np.ndarray]] = {"pearson": [], "mse": [], "mean": [], "variance": [], "detected": []}
    for start in range(0, len(genes), _GENES_AT_A_TIME):
        block = slice(start, start + _GENES_AT_A_TIME)
        true = truth[:, block]
        true = np.asarray(true.todense() if sparse.issparse(true) else true, dtype=np.float64)
        said = np.asarray(guess[:, block], dtype=np.float64)
        columns["pearson"].append(pearson_per_gene(true, said))
        columns["mse"].append(((true - said) ** 2).mean(axis=0))
        columns["mean"].append(true.mean(axis=0))
        columns["variance"].append(true.var(axis=0))
        columns["detected"].append((true > 0).mean(axis=0))
    return pd.DataFrame({"gene": list(genes)} | {name: np.concatenate(parts) for name, parts in columns.items()})


def over_genes(values: np.ndarray, undefined: Undefined = "skip") -> tuple[float, int, int]:
    """Mean over genes.

    Returns
    -------
    value : float
        nan when every gene is undefined and `undefined` is "skip".
    n_genes, n_undefined : int
        Genes looked at, and how many of them were undefined.
    """
    values = np.asarray(values, dtype=np.float64)
    missing = np.isnan(values)
    if undefined == "zero":
        values = np.where(missing, 0.0, values)
    kept = values[~np.isnan(values)]
    return (float(kept.mean()) if len(kept) else float("nan")), len(values), int(missing.sum())


def score_sets(
    table: pd.DataFrame, sets: Mapping[str, Sequence[str]], undefined: Undefined = "skip"
) -> list[dict[str, object]]:
    """Average one section's gene table over gene sets.

    Genes of a set that the section did not measure are not in `table` and are not counted in `n_genes`.

    Returns
    -------
    list of dict
        `gene_set`, `metric`, `value`, `n_genes`, `n_undefined`: one a set and metric.
    """
    by_gene = table.set_index("gene")
    rows: list[dict[str, object]] = []
    for name, members in sets.items():
        chosen = by_gene.loc[[gene for gene in members if gene in by_gene.index]]
        for metric in METRICS:
            value, n_genes, n_undefined = over_genes(chosen[metric].to_numpy(), undefined)
            rows.append(
                {
                    "gene_set": name,
                    "metric": metric,
                    "value": value,
                    "n_genes": n_genes,
                    "n_undefined": n_undefined,
                }
            )
    return rows


def by_patient(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds, then over each patient's sections: `method, gene_set, metric, patient, value` and counts.

    `n_genes` and `n_undefined` are sums over sections: gene-section pairs looked at, and those undefined.
    """
    keys = ["method", "gene_set", "metric", "patient"]
    return (
        over_seeds(scores)
        .groupby(keys, sort=False, as_index=False)
        .agg(value=("value", "mean"), n_genes=("n_genes", "sum"), n_undefined=("n_undefined", "sum"))
    )


def over_patients(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean over sections, then over patients: `method, gene_set, metric, value, n_patients, n_genes, n_undefined`.

    `n_patients` counts those with a defined value.
    """
    keys = ["method", "gene_set", "metric"]
    return (
        by_patient(scores)
        .groupby(keys, sort=False, as_index=False)
        .agg(
            value=("value", "mean"),
            n_patients=("value", "count"),
            n_genes=("n_genes", "sum"),
            n_undefined=("n_undefined", "sum"),
        )
    )
