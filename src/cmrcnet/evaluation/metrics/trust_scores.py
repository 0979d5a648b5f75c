"""Whether what a prediction says of itself is true: coverage of its intervals, error of what it refuses, alarms.

Of each held-out section, over the genes of a set (HVG) that it measured:

- coverage: share of spots whose measured value lies in the interval, gene by gene, then the mean over genes;
- risk against coverage (El-Yaniv and Wiener 2010): spots are refused in the order of their confidence, least first;
  the risk is the mean squared error of those that are kept, over the mean squared error of all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.evaluation.methods.method import MAIN
from cmrcnet.evaluation.metrics.scoring import truth_of
from cmrcnet.uncertainty.conformal import bounds

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from cmrcnet.evaluation.protocol.evaluation_run import EvaluationRun

KEPT = np.linspace(1.0, 0.3, 15)
"""Shares of the spots that are kept, for curves: all, then ever fewer."""
REFUSED = 0.3
"""Share that is refused for the one number of the table."""


def gene_coverage(
    mean: np.ndarray, factor: np.ndarray, low: np.ndarray, high: np.ndarray, truth: np.ndarray
) -> np.ndarray:
    """Share of spots inside the interval, of each gene; NaN where a gene has no interval.

    Parameters
    ----------
    mean, truth : array, shape (spots, genes)
    factor : array, shape (spots,)
    low, high : array, shape (genes,)
        As in `uncertainty.conformal.bounds`.
    """
    lower, upper = bounds(mean, factor, low, high)
    inside = ((truth >= lower) & (truth <= upper)).mean(axis=0)
    return np.where(np.isfinite(low) & np.isfinite(high), inside, np.nan)


def risk_curve(error: np.ndarray, confidence: np.ndarray, kept: np.ndarray = KEPT) -> np.ndarray:
    """Mean error of the most confident spots over the mean error of all, for each share kept.

    Parameters
    ----------
    error : array, shape (spots,)
        Mean squared error of each spot over genes.
    confidence : array, shape (spots,)
    kept : array
        Shares, above 0 to 1.
    """
    order = np.argsort(-confidence, kind="stable")
    so_far = np.cumsum(error[order]) / np.arange(1, len(error) + 1)
    rows = np.maximum(np.round(kept * len(error)).astype(int), 1) - 1
    return so_far[rows] / so_far[-1]


def risk_column(share: float) -> str:
    """Name of the column that holds the risk with this share of the spots kept."""
    return f"risk_{round(100 * share)}"


def trust_scores(run: EvaluationRun, gene_set: str = "HVG") -> pd.DataFrame:
    """One row a held-out section whose table says how far to believe it.

    Parameters
    ----------
    run : EvaluationRun
    gene_set : str

    Returns
    -------
    pandas.DataFrame
        `section, patient, gene_set, n_genes, coverage, width` (mean of the intervals), `refused` (error of the 70 %
        most confident spots by that of all), `alarm` (kind, or ""), `distance, limit, outside` (share of locations),
        and
        `risk_100, risk_95, ...`, the risk curve. What a table does not say is NaN. Empty where no table says anything.
    """
    import pandas as pd

    rows = []
    for section, table in run.predictions.items():
        if "interval_scale" in table.obs or "ood" in table.uns["cmrcnet"]:
            genes = _genes(run, section, gene_set)
            rows.append(_of_section(run, section, table, genes) | {"gene_set": gene_set})
    head = ["section", "patient", "gene_set", "n_genes", "coverage", "width", "refused", "alarm", "distance", "limit"]
    return pd.DataFrame(rows, columns=[*head, "outside", *map(risk_column, KEPT)])


def _of_section(run: EvaluationRun, section: str, table: AnnData, genes: list[str]) -> dict[str, object]:
    measured = run.cohort.read(section)
    found: dict[str, object] = {"section": section, "patient": measured.patient, "n_genes": len(genes)}
    alarm = table.uns["cmrcnet"].get("ood")
    if alarm is not None:
        found |= {"alarm": str(alarm["kind"]), "distance": float(alarm["distance"]), "limit": float(alarm["limit"])}
        found["outside"] = float(1 - table.obs["in_distribution"].mean())
    if "interval_scale" not in table.obs or not genes:
        return found
    mine = table[:, genes]
    truth = np.asarray(truth_of(measured, genes, run.config.panel.target_sum)[1].todense(), np.float64)
    mean, factor = np.asarray(mine.X, np.float64), mine.obs["interval_scale"].to_numpy(np.float64)
    low, high = (mine.var[name].to_numpy(np.float64) for name in ("interval_low", "interval_high"))
    covered = gene_coverage(mean, factor, low, high, truth)
    lower, upper = bounds(mean, factor, low, high)
    found["n_genes"] = int(np.isfinite(covered).sum())
    if found["n_genes"]:
        found |= {"coverage": float(np.nanmean(covered)), "width": float(np.nanmean(upper - lower))}
    error, confidence = ((truth - mean) ** 2).mean(axis=1), mine.obs["confidence"].to_numpy(np.float64)
    found["refused"] = float(risk_curve(error, confidence, np.array([1 - REFUSED]))[0])
    risks = risk_curve(error, confidence)
    return found | {risk_column(share): float(risk) for share, risk in zip(KEPT, risks, strict=True)}


def _genes(run: EvaluationRun, section: str, gene_set: str) -> list[str]:
    """Genes of the set that the section measured and the table predicts."""
    mine = run.genes[(run.genes.method == MAIN) & (run.genes.section == section)]
    return list(mine.gene[[gene_set in sets.split() for sets in mine.sets]])
