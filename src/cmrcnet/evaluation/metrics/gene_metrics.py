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
from cmrcnet.evaluation.metrics.rank_metrics import detection_auc
from cmrcnet.evaluation.metrics.seeds import over_seeds
from cmrcnet.genes.gene_sets import EVERYTHING
from cmrcnet.genes.spatial_stats import pearson_per_gene, varies

if TYPE_CHECKING:
    import pandas as pd

Undefined = Literal["skip", "zero"]
METRICS = (
    "pearson", "mse", "mae", "r2", "variance_ratio", "detection_auc", "moran_error", "spearman", "ssim",
)  # fmt: skip
"""Metrics that each gene of a section has, in the order of the tables."""
NAMED_SETS_ONLY = ("spearman", "ssim")
"""Costly metrics: worked out for genes of named sets, NaN for the others, and not given for the set of all genes."""
ZERO_WITHOUT_SKILL = ("pearson", "spearman")
"""Where undefined may count as 0. Of an error, 0 would say that an undefined gene was predicted perfectly."""
_GENES_AT_A_TIME = 2_000  # bounds the memory of a section with many spots


def score_genes(truth: sparse.csr_matrix | np.ndarray, guess: np.ndarray, genes: Sequence[str]) -> pd.DataFrame:
    """Score each gene of one section, spot against spot.

    Parameters
    ----------
    truth, guess : shape (spots, genes)
        Log-normalised expression, measured and predicted.
    genes : sequence of str

    Returns
    -------
    pandas.DataFrame
        One row a gene: `gene`, `pearson` (nan where undefined), `mse`, and of the truth its `mean`, `variance` and
        `detected` (share of spots where it is above 0). Then `mae`; `r2`, which is ``1 - squared error / squared
        distance from the gene's mean in this section``, so the unknown mean counts too; `variance_ratio`, predicted by
        true variance over spots, below 1 for a prediction that is too smooth; `detection_auc` (see
        `rank_metrics.detection_auc`). `r2` and `variance_ratio` are nan where the truth is constant.
    """
    import pandas as pd

    if truth.shape != guess.shape or truth.shape[1] != len(genes):
        raise ShapeMismatch("The prediction", want=(truth.shape[0], len(genes)), got=guess.shape)
    truth = sparse.csc_matrix(truth) if sparse.issparse(truth) else truth
    blocks: list[dict[str, np.ndarray]] = []
    for start in range(0, max(1, len(genes)), _GENES_AT_A_TIME):
        block = slice(start, start + _GENES_AT_A_TIME)
        true = truth[:, block]
        true = np.asarray(true.todense() if sparse.issparse(true) else true, dtype=np.float64)
        blocks.append(_score_block(true, np.asarray(guess[:, block], dtype=np.float64)))
    return pd.DataFrame({"gene": list(genes)} | {name: np.concatenate([b[name] for b in blocks]) for name in blocks[0]})


def _score_block(true: np.ndarray, said: np.ndarray) -> dict[str, np.ndarray]:
    error, varying = said - true, varies(true)
    mse, variance = (error**2).mean(axis=0), true.var(axis=0)
    out = np.full(len(mse), np.nan)
    return {
        "pearson": pearson_per_gene(true, said),
        "mse": mse,
        "mean": true.mean(axis=0),
        "variance": variance,
        "detected": (true > 0).mean(axis=0),
        "mae": np.abs(error).mean(axis=0),
        "r2": 1 - np.divide(mse, variance, out=out.copy(), where=varying),
        "variance_ratio": np.divide(said.var(axis=0), variance, out=out.copy(), where=varying),
        "detection_auc": detection_auc(true > 0, said),
    }


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

    Genes of a set that the section did not measure are not in `table` and are not counted in `n_genes`. Metrics that
    `table` lacks are left out. `undefined` speaks of correlations; elsewhere undefined genes are always skipped.

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
            if metric not in chosen or (name == EVERYTHING and metric in NAMED_SETS_ONLY):
                continue
            as_what = undefined if metric in ZERO_WITHOUT_SKILL else "skip"
            value, n_genes, n_undefined = over_genes(chosen[metric].to_numpy(), as_what)
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
