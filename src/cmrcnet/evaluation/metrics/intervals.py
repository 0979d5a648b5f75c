"""Means over seeds, sections and patients, and bootstrap intervals of means and of paired differences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from cmrcnet.errors import BadOption, UnknownName
from cmrcnet.evaluation.protocol.protocol_info import FEWEST_PATIENTS_TO_RANK

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


DRAWS = 2_000


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


def mean_interval(values: np.ndarray, level: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """Mean, and the percentile bootstrap interval of it (Efron & Tibshirani 1993, chapter 13).

    Parameters
    ----------
    values : array, shape (n,)
        One a patient (or a section); nan is left out.
    level : float
    seed : int
        Of the 2,000 draws.

    Returns
    -------
    mean, low, high : float
        The interval is nan with fewer than two values.
    """
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return float("nan"), float("nan"), float("nan")
    if len(values) == 1:
        return float(values[0]), float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(0, len(values), (DRAWS, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(values.mean()), float(low), float(high)


FEWEST_PATIENTS_TO_RESAMPLE = 3
RESAMPLES = 2_000


@dataclass(frozen=True)
class Units:
    """What is resampled, and how much each unit weighs.

    Parameters
    ----------
    kind : {"patient", "section"}
    names : tuple of str
    patients : int
        Different patients.
    owner : numpy.ndarray, shape (units,), int
        Number of each unit's patient.
    values : numpy.ndarray, shape (units, methods)
        Score of each; nan where undefined.
    """

    kind: Literal["patient", "section"]
    names: tuple[str, ...]
    patients: int
    owner: np.ndarray
    values: np.ndarray

    def weights(self, known: np.ndarray) -> np.ndarray:
        """1 by the number of units of the same patient that are known: their mean is the mean over patients.

        Parameters
        ----------
        known : array, shape (units, columns), bool

        Returns
        -------
        numpy.ndarray, shape (units, columns)
            0 where unknown.
        """
        same = self.owner[:, None] == self.owner[None]
        return known / np.maximum(same @ known.astype(np.float64), 1)

    def to_text(self) -> str:
        """What the interval is over, for under a table."""
        if self.kind == "patient":
            return f"95 % bootstrap interval over {len(self.names)} patients"
        few = f"{self.patients} patients are" if self.patients != 1 else "1 patient is"
        return (
            f"95 % bootstrap interval over {len(self.names)} sections, because {few} too few to resample; sections "
            "of one patient resemble each other, so it is too narrow for new patients"
        )


def intervals(
    scores: pd.DataFrame, gene_set: str = "HVG", metric: str = "pearson", *, seed: int, resamples: int = RESAMPLES
) -> pd.DataFrame:
    """Mean over patients of each method, with its bootstrap interval.

    Percentile intervals (Efron and Tibshirani, "An introduction to the bootstrap", 1993) of the mean over patients;
    with fewer than three patients over sections, weighed so that patients count alike, and the table says so. Every
    method sees the same resamples. With few units such intervals are too narrow; that is the data's limit, and
    `too_few_to_rank` says it.

    Parameters
    ----------
    scores : pandas.DataFrame
        As `scores.csv`. Seeds of one section, where there are several, are averaged first.
    gene_set, metric : str
    seed : int
    resamples : int

    Returns
    -------
    pandas.DataFrame
        One row a method: `method, value, low, high, unit, n, note`. `n` counts units with a defined value; low and
        high are nan with fewer than two.
    """
    import pandas as pd

    methods, units = units_of(scores, gene_set, metric)
    rows = [[m, *row, units.kind, n] for m, row, n in _bootstrap(methods, units.values, units, seed, resamples)]
    table = pd.DataFrame(rows, columns=["method", "value", "low", "high", "unit", "n"])
    table["note"] = units.to_text()
    return table


def paired_differences(
    scores: pd.DataFrame,
    method: str,
    gene_set: str = "HVG",
    metric: str = "pearson",
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """How much one method differs from each other one on the same patients, with the interval of the difference.

    Parameters
    ----------
    scores : pandas.DataFrame
        As `scores.csv`.
    method : str
        The method whose score the others' are taken from.
    gene_set, metric : str
    seed : int
    resamples : int

    Returns
    -------
    pandas.DataFrame
        One row another method: `method, other, difference, low, high, higher_in, unit, n, note`. `higher_in` counts
        the units in which `method` scored strictly higher; `n` those in which both are defined.

    Raises
    ------
    UnknownName
    """
    import pandas as pd

    methods, units = units_of(scores, gene_set, metric)
    if method not in methods:
        raise UnknownName("method", method, methods)
    mine = units.values[:, [methods.index(method)]]
    others = [name for name in methods if name != method]
    gap = mine - units.values[:, [methods.index(name) for name in others]]
    higher = (gap > 0).sum(axis=0).tolist()
    rows = [
        [method, other, *row, wins, units.kind, n]
        for (other, row, n), wins in zip(_bootstrap(others, gap, units, seed, resamples), higher, strict=True)
    ]
    table = pd.DataFrame(
        rows, columns=["method", "other", "difference", "low", "high", "higher_in", "unit", "n"]
    )  # fmt: skip
    table["note"] = units.to_text()
    return table


def too_few_to_rank(patients: int) -> str | None:
    """The sentence that stands in place of a ranking with fewer than five patients; None with enough."""
    if patients >= FEWEST_PATIENTS_TO_RANK:
        return None
    return f"{patients} patient{'s' if patients != 1 else ''}: too few patients to rank methods."


def units_of(scores: pd.DataFrame, gene_set: str, metric: str) -> tuple[list[str], Units]:
    """The methods of a table of scores, and their values on the units that are resampled."""
    picked = scores[(scores.gene_set == gene_set) & (scores.metric == metric)]
    if picked.empty:
        known = [f"{s} {m}" for s, m in scores[["gene_set", "metric"]].drop_duplicates().itertuples(index=False)]
        raise UnknownName("set and metric", f"{gene_set} {metric}", known)
    methods = list(dict.fromkeys(picked.method))
    patients = list(dict.fromkeys(picked.patient))
    # Seeds first, then sections, then patients: each a plain mean of those that are defined.
    sections = picked.groupby(["patient", "section", "method"], sort=False)["value"].mean().unstack("method")[methods]
    if len(patients) >= FEWEST_PATIENTS_TO_RESAMPLE:
        values = sections.groupby(level="patient", sort=False).mean().loc[patients]
        return methods, Units("patient", tuple(patients), len(patients), np.arange(len(patients)), values.to_numpy())
    owner = np.array([patients.index(patient) for patient in sections.index.get_level_values("patient")])
    names = tuple(sections.index.get_level_values("section"))
    return methods, Units("section", names, len(patients), owner, sections.to_numpy())


def _bootstrap(
    names: list[str], values: np.ndarray, units: Units, seed: int, resamples: int
) -> list[tuple[str, tuple[float, float, float], int]]:
    """Weighted mean of each column, its 2.5 and 97.5 percentiles over resamples, and how many units are defined."""
    if resamples < 1:
        raise BadOption("resamples", resamples, want="a number of resamples, 1 or more")
    draws = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    times = np.zeros((resamples, len(values)))  # how often each unit was drawn
    np.add.at(times, (np.arange(resamples)[:, None], draws), 1)
    known = ~np.isnan(values)
    weight = units.weights(known)
    filled = np.where(known, values, 0.0) * weight
    result = []
    for column, name in enumerate(names):
        n = int(known[:, column].sum())
        if n == 0:
            result.append((name, (np.nan,) * 3, 0))
            continue
        mean = float(filled[:, column].sum() / weight[:, column].sum())
        low = high = float("nan")
        if n > 1:
            total = times @ weight[:, column]
            drawn = (times @ filled[:, column])[total > 0] / total[total > 0]
            low, high = (float(edge) for edge in np.percentile(drawn, [2.5, 97.5]))
        result.append((name, (mean, low, high), n))
    return result
