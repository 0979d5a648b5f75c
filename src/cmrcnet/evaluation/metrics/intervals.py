"""Means over seeds, sections and patients, and intervals of means and of paired differences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cmrcnet.errors import UnknownName
from cmrcnet.evaluation import Frame
from cmrcnet.genes.mean_interval import mean_interval


def over_seeds(scores: Frame) -> Frame:
    """Mean over the seeds of each method, section, gene set and metric of `scores.csv`, without the column `seed`.

    `n_genes` and `n_undefined` are the largest of any seed; a value that is undefined in some seeds is the mean of the
    others.
    """
    if "seed" not in scores or scores["seed"].nunique() < 2:
        return scores.drop(columns="seed", errors="ignore")
    keys = ["method", "fold", "section", "patient", "gene_set", "metric"]
    means = scores.groupby(keys, sort=False, as_index=False).agg(
        value=("value", "mean"), n_genes=("n_genes", "max"), n_undefined=("n_undefined", "max")
    )
    return means[[column for column in scores if column != "seed"]]


def genes_over_seeds(genes: Frame, seeds: int) -> Frame:
    """Mean over seeds of every number of `genes.csv`, one row a method, section and gene; unchanged with one seed."""
    if seeds < 2:
        return genes
    keys = ["method", "section", "gene"]
    texts = {"sets": "first"} if "sets" in genes else {}
    numbers = {name: "mean" for name in genes.columns if name not in (*keys, *texts)}
    means = genes.groupby(keys, sort=False, as_index=False).agg(numbers | texts)
    return means[list(genes.columns)]


def by_patient(scores: Frame) -> Frame:
    """Mean over seeds, then over each patient's sections: `method, gene_set, metric, patient, value` and counts.

    `n_genes` and `n_undefined` are sums over sections: gene-section pairs scored, and those undefined.
    """
    groups = over_seeds(scores).groupby(["method", "gene_set", "metric", "patient"], sort=False, as_index=False)
    return groups.agg(value=("value", "mean"), n_genes=("n_genes", "sum"), n_undefined=("n_undefined", "sum"))


def over_patients(scores: Frame) -> Frame:
    """Mean over sections, then over patients: `method, gene_set, metric, value, n_patients, n_genes, n_undefined`.

    `n_patients` counts those with a defined value.
    """
    groups = by_patient(scores).groupby(["method", "gene_set", "metric"], sort=False, as_index=False)
    return groups.agg(
        value=("value", "mean"),
        n_patients=("value", "count"),
        n_genes=("n_genes", "sum"),
        n_undefined=("n_undefined", "sum"),
    )


@dataclass(frozen=True)
class ScoreGroups:
    """The groups that an interval is over, and their scores."""

    kind: Literal["patient", "section"]
    names: tuple[str, ...]
    values: np.ndarray  # (groups, methods): score of each; nan where undefined

    def to_text(self) -> str:
        """What the interval is over, for under a table."""
        if self.kind == "patient":
            return f"95 % t interval over {len(self.names)} patients"
        return f"t interval over {len(self.names)} sections of one patient, which says nothing about other patients"


def intervals(scores: Frame, gene_set: str = "HVG", metric: str = "pearson") -> Frame:
    """Mean over patients of each method, with its interval.

    Student's t interval of the mean over patients (`genes.mean_interval`), wide where patients are few; with a single
    patient over its sections, and the table says so. Several seeds of a section are averaged first.

    Returns
    -------
    pandas.DataFrame
        One row a method: `method, value, low, high, group, n, note`. `n` counts groups with a defined value; low and
        high are nan with fewer than two.
    """
    import pandas as pd

    methods, groups = groups_of(scores, gene_set, metric)
    columns = {"method": methods} | _interval_columns("value", groups.values, groups)
    return pd.DataFrame(columns | {"note": groups.to_text()})


def paired_differences(scores: Frame, method: str, gene_set: str = "HVG", metric: str = "pearson") -> Frame:
    """Score of one method minus that of each other one on the same patients, with the interval of the difference.

    Returns
    -------
    pandas.DataFrame
        One row another method: `method, other, difference, low, high, higher_in, group, n, note`. `higher_in` counts
        the groups in which `method` scored strictly higher; `n` those in which both are defined.
    """
    import pandas as pd

    methods, groups = groups_of(scores, gene_set, metric)
    if method not in methods:
        raise UnknownName("method", method, methods)
    others = [name for name in methods if name != method]
    gap = groups.values[:, [methods.index(method)]] - groups.values[:, [methods.index(name) for name in others]]
    columns = {"method": method, "other": others} | _interval_columns("difference", gap, groups)
    return pd.DataFrame(columns | {"higher_in": (gap > 0).sum(axis=0), "note": groups.to_text()})


def groups_of(scores: Frame, gene_set: str, metric: str) -> tuple[list[str], ScoreGroups]:
    """The methods of a table of scores, and their values on each patient, or on each section of a single patient."""
    picked = scores[(scores.gene_set == gene_set) & (scores.metric == metric)]
    if picked.empty:
        known = [f"{s} {m}" for s, m in scores[["gene_set", "metric"]].drop_duplicates().itertuples(index=False)]
        raise UnknownName("set and metric", f"{gene_set} {metric}", known)
    methods = list(dict.fromkeys(picked.method))
    patients = list(dict.fromkeys(picked.patient))
    # Seeds first, then sections, then patients: each a plain mean of those that are defined.
    sections = picked.groupby(["patient", "section", "method"], sort=False)["value"].mean().unstack("method")[methods]
    if len(patients) > 1:
        values = sections.groupby(level="patient", sort=False).mean().loc[patients].to_numpy()
        return methods, ScoreGroups("patient", tuple(patients), values)
    names = tuple(sections.index.get_level_values("section"))
    return methods, ScoreGroups("section", names, sections.to_numpy())


def _interval_columns(name: str, values: np.ndarray, groups: ScoreGroups) -> dict[str, object]:
    """Mean over groups of each column under `name`, its interval, and the number of groups that are defined."""
    mean, low, high = mean_interval(values)
    return {name: mean, "low": low, "high": high, "group": groups.kind, "n": np.isfinite(values).sum(axis=0)}
