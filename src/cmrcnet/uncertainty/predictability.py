"""How far each gene can be predicted, with an interval, a null beside it, and a grade with a stated rule.

The rule, for the mean Pearson correlation of a gene over the held-out sections:

=============  ======================================================================================================
A              the interval's lower end lies above the null, and the mean is 0.5 or more
B              the same, and the mean is 0.35 or more
C              the interval's lower end lies above the null
D              it does not: nothing better than the null was shown
not measured   defined on fewer than two held-out sections, so that no interval can be given
=============  ======================================================================================================

The null is the upper quantile (95 %) that a method without knowledge reaches: over genes, of the mean Pearson of a
null method (such as permuted pairs) on the same sections. Intervals are percentiles of bootstrap samples: of patients
where there are five or more with the gene, else of sections. With few sections they are coarse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.errors import BadInput, BadOption, UnknownName

if TYPE_CHECKING:
    import pandas as pd

NOT_MEASURED = "not measured"
GRADES = ("A", "B", "C", "D", NOT_MEASURED)

_GENES_AT_A_TIME = 2_000


@dataclass(frozen=True)
class GradeRule:
    """The numbers of the rule.

    Parameters
    ----------
    a, b : float
        Mean Pearson from which a gene may be graded A, B.
    min_sections : int
        Held-out sections on which the correlation must be defined.
    min_patients : int
        From which on patients are drawn in place of sections.
    null_quantile : float
        Of the null method's per-gene means.
    level : float
        Of the interval.
    """

    a: float = 0.5
    b: float = 0.35
    min_sections: int = 2
    min_patients: int = 5
    null_quantile: float = 0.95
    level: float = 0.95

    def __post_init__(self) -> None:
        for name in ("null_quantile", "level"):
            if not 0 < getattr(self, name) < 1:
                raise BadOption(name, getattr(self, name), "a share between 0 and 1")
        if not self.a >= self.b:
            raise BadOption("a", self.a, f"{self.b} (the mark of a B) or more")
        if self.min_sections < 2:
            raise BadOption("min_sections", self.min_sections, "2 or more, because one section has no interval")

    def grade(self, pearson: float, low: float, null: float, n_sections: int) -> str:
        """The grade of one gene.

        Parameters
        ----------
        pearson, low : float
            Mean and lower end of its interval.
        null : float
            What a method without knowledge reaches; NaN where nobody knows, and then there is no grade.
        n_sections : int
            Sections on which it is defined.
        """
        if n_sections < self.min_sections or not np.isfinite([pearson, low, null]).all():
            return NOT_MEASURED
        if not low > null:
            return "D"
        return "A" if pearson >= self.a else "B" if pearson >= self.b else "C"


def predictability(
    genes: pd.DataFrame,
    patient_of: Mapping[str, str],
    *,
    method: str,
    null: str | float | Mapping[str, float] = 0.0,
    rule: GradeRule | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Grade every gene of one method.

    Parameters
    ----------
    genes : pandas.DataFrame
        ``genes.csv`` of a run: `method, section, gene, pearson`, and `ceiling` where it was measured; several rows of a
        gene and section (seeds) are averaged first.
    patient_of : mapping of section to patient
    method : str
        Whose genes are graded.
    null : str, float or mapping of gene to float
        Name of a null method in the same table, such as "permuted-pairs"; or the limit itself, for all genes or for
        each (0 where a gene is not named).
    rule : GradeRule, optional
        The numbers of the rule; its defaults when left out.
    n_bootstrap : int
    seed : int

    Returns
    -------
    pandas.DataFrame
        One row a gene, best first (ties in the order of the table): `gene, grade, pearson, low, high, null, n_sections`
        (where it is defined), `n_undefined` (held-out sections where it is not), `n_patients, interval_over`
        ("patients", "sections" or ""), `ceiling` (mean; NaN where not given) and `share` (pearson / ceiling).

    Raises
    ------
    BadInput, UnknownName
    """
    import pandas as pd

    rule = rule or GradeRule()
    missing = [name for name in ("method", "section", "gene", "pearson") if name not in genes]
    if missing:
        raise BadInput.columns("The gene table", missing, list(genes.columns))
    by_section = _by_section(genes, method, "pearson")
    names, sections = list(by_section.index), list(by_section.columns)
    unknown = [section for section in sections if section not in patient_of]
    if unknown:
        raise UnknownName("patient of section", unknown[0], sorted(patient_of))
    patients = list(dict.fromkeys(patient_of[section] for section in sections))
    member = np.array([[patient_of[s] == p for s in sections] for p in patients], dtype=np.float64)
    limits = _limits(genes, null, names, rule)
    ceilings = np.full(len(names), np.nan)
    if "ceiling" in genes:
        ceilings = _mean(_by_section(genes, method, "ceiling").loc[names].to_numpy())
    values = by_section.to_numpy()
    of_patients = _patient_means(values, member)
    n_sections, n_patients = np.isfinite(values).sum(axis=1), np.isfinite(of_patients).sum(axis=1)
    over_patients = n_patients >= rule.min_patients
    mean = np.where(over_patients, _mean(of_patients), _mean(values))
    low, high = (np.full(len(names), np.nan) for _ in range(2))
    for chosen, table in ((over_patients, of_patients), (~over_patients & (n_sections >= rule.min_sections), values)):
        low[chosen], high[chosen] = _interval(table[chosen], rule.level, n_bootstrap, seed)
    measured = n_sections >= rule.min_sections
    table = pd.DataFrame(
        {
            "gene": names,
            "grade": [rule.grade(*each) for each in zip(mean, low, limits, n_sections, strict=True)],
            "pearson": mean,
            "low": low,
            "high": high,
            "null": limits,
            "n_sections": n_sections,
            "n_undefined": len(sections) - n_sections,
            "n_patients": n_patients,
            "interval_over": np.where(over_patients, "patients", np.where(measured, "sections", "")),
            "ceiling": ceilings,
            "share": np.divide(mean, ceilings, out=np.full(len(names), np.nan), where=ceilings > 0),
        }
    )
    rank = np.where(table["grade"] == NOT_MEASURED, -np.inf, table["pearson"])
    return table.iloc[np.argsort(-rank, kind="stable")].reset_index(drop=True)


def grade_counts(table: pd.DataFrame) -> dict[str, int]:
    """How many genes have each grade, in the order of the grades; grades that nobody has are 0.

    Parameters
    ----------
    table : pandas.DataFrame
        From `predictability`.
    """
    return {grade: int((table["grade"] == grade).sum()) for grade in GRADES}


def _by_section(genes: pd.DataFrame, method: str, column: str) -> pd.DataFrame:
    """(genes, sections), both in the order of their first appearance; NaN where undefined or not measured."""
    rows = genes[genes["method"] == method]
    if rows.empty:
        raise UnknownName("method in the gene table:", method, sorted(set(genes["method"])))
    means = rows.groupby(["gene", "section"], sort=False)[column].mean().unstack("section")
    return means.reindex(index=rows["gene"].unique(), columns=rows["section"].unique())


def _limits(
    genes: pd.DataFrame, null: str | float | Mapping[str, float], names: list[str], rule: GradeRule
) -> np.ndarray:
    if isinstance(null, str):
        reached = _mean(_by_section(genes, null, "pearson").to_numpy())
        reached = reached[np.isfinite(reached)]
        return np.full(len(names), float(np.quantile(reached, rule.null_quantile)) if len(reached) else np.nan)
    if isinstance(null, Mapping):
        return np.array([float(null.get(name, 0.0)) for name in names])
    return np.full(len(names), float(null))


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean of each row over what is defined; NaN where nothing is."""
    defined = np.isfinite(values)
    number = defined.sum(axis=1)
    total = np.where(defined, values, 0.0).sum(axis=1)
    return np.divide(total, number, out=np.full(len(values), np.nan), where=number > 0)


def _patient_means(values: np.ndarray, member: np.ndarray) -> np.ndarray:
    """(genes, sections) and (patients, sections) to (genes, patients)."""
    defined = np.isfinite(values)
    number = defined @ member.T
    total = np.where(defined, values, 0.0) @ member.T
    return np.divide(total, number, out=np.full(number.shape, np.nan), where=number > 0)


def _interval(values: np.ndarray, level: float, n_bootstrap: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of each row's mean, columns drawn with replacement; the same draws for every row.

    Samples in which a row has no defined column are left out for that row.
    """
    rng = np.random.default_rng(seed)
    units = values.shape[1]
    times = rng.multinomial(units, np.full(units, 1 / units), size=n_bootstrap).astype(np.float64)
    tail = (1 - level) / 2
    low, high = (np.full(len(values), np.nan) for _ in range(2))
    for start in range(0, len(values), _GENES_AT_A_TIME):
        block = values[start : start + _GENES_AT_A_TIME]
        defined = np.isfinite(block)
        number = times @ defined.T
        total = times @ np.where(defined, block, 0.0).T
        means = np.divide(total, number, out=np.full(number.shape, np.nan), where=number > 0)
        if len(block) and n_bootstrap:
            bounds = np.nanquantile(means, [tail, 1 - tail], axis=0)
            low[start : start + len(block)], high[start : start + len(block)] = bounds
    return low, high
