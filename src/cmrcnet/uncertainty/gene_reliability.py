"""Reliability of genes: held-out Pearson correlation with an interval, a null and a grade.

The grade follows the mean Pearson correlation of a gene over the held-out sections:

=============  ======================================================================================================
A              the interval's lower end is above the null, and the mean is 0.5 or more
B              the same, and the mean is 0.35 or more
C              the interval's lower end is above the null
D              the interval's lower end is not above the null
not measured   defined on fewer than two held-out sections, so that there is no interval
=============  ======================================================================================================

The null is the 95 % quantile, over genes, of the mean Pearson that a null method (such as permuted pairs) reaches on
the same sections. Intervals are Student's t intervals of the mean, over patients when three or more have the gene, else
over sections; sections of one patient resemble each other, so those are too narrow for new patients.

An evaluation grades its held-out sections (`predictability`). A model stores the same statistics of its validation
sections (`GeneReliability`), each predicted by heads fitted without it; these sections were also used to choose epoch,
penalties and weights, so its values are slightly optimistic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cmrcnet.errors import BadInput, UnknownName
from cmrcnet.genes.mean_interval import mean_interval
from cmrcnet.genes.table import NOT_MEASURED

if TYPE_CHECKING:
    import pandas as pd

GRADES = ("A", "B", "C", "D", NOT_MEASURED)


LEAST_A, LEAST_B = 0.5, 0.35
"""Least mean Pearson of an A and of a B."""
MIN_SECTIONS = 2
"""Fewest held-out sections with a defined correlation; one section has no interval."""
MIN_PATIENTS = 3
"""From this many on, the interval is over patients instead of sections."""
NULL_QUANTILE, LEVEL = 0.95, 0.95
"""Quantile of the null method's per-gene means, and nominal coverage of the interval."""


def grade_of(pearson: float, low: float, null: float, n_sections: int) -> str:
    """Grade a gene by its mean Pearson, the low end of its interval, the null (NaN: no grade) and its sections."""
    if n_sections < MIN_SECTIONS or not np.isfinite([pearson, low, null]).all():
        return NOT_MEASURED
    if not low > null:
        return "D"
    return "A" if pearson >= LEAST_A else "B" if pearson >= LEAST_B else "C"


def predictability(
    genes: pd.DataFrame,
    patient_of: Mapping[str, str],
    *,
    method: str,
    null: str | float | Mapping[str, float] = 0.0,
) -> pd.DataFrame:
    """Grade every gene of one method.

    Parameters
    ----------
    genes : pandas.DataFrame
        ``genes.csv`` of a run: `method, section, gene, pearson`, optionally `ceiling`; several rows of a gene and
        section (seeds) are averaged first.
    method : str
        Method whose genes are graded.
    null : str, float or mapping of gene to float
        Name of a null method in the same table, such as "permuted-pairs"; or the null itself, for all genes or for
        each (0 for a gene that is not named).

    Returns
    -------
    pandas.DataFrame
        One row a gene, best first (ties in the order of the table): `gene, grade, pearson, low, high, null, n_sections`
        (with a defined correlation), `n_undefined` (without), `n_patients, interval_over` ("patients", "sections" or
        ""), `ceiling` (mean; NaN if not given) and `share` (pearson / ceiling).

    Raises
    ------
    BadInput, UnknownName
    """
    import pandas as pd

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
    limits = _limits(genes, null, names)
    ceilings = np.full(len(names), np.nan)
    if "ceiling" in genes:
        ceilings = _mean(_by_section(genes, method, "ceiling").loc[names].to_numpy())
    values = by_section.to_numpy()
    of_patients = _patient_means(values, member)
    n_sections, n_patients = np.isfinite(values).sum(axis=1), np.isfinite(of_patients).sum(axis=1)
    over_patients = n_patients >= MIN_PATIENTS
    measured = n_sections >= MIN_SECTIONS
    mean, low, high = (np.full(len(names), np.nan) for _ in range(3))
    for chosen, groups in ((over_patients, of_patients), (~over_patients, values)):
        mean[chosen], low[chosen], high[chosen] = mean_interval(groups[chosen].T, level=LEVEL)
    low, high = (np.where(over_patients | measured, bound, np.nan) for bound in (low, high))
    table = pd.DataFrame(
        {
            "gene": names,
            "grade": [grade_of(*each) for each in zip(mean, low, limits, n_sections, strict=True)],
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


def _by_section(genes: pd.DataFrame, method: str, column: str) -> pd.DataFrame:
    """Values as (genes, sections), both in order of first appearance; NaN where undefined or not measured."""
    rows: Any = genes[genes["method"] == method]
    if rows.empty:
        raise UnknownName("method in the gene table:", method, sorted(set(genes["method"])))
    means = rows.groupby(["gene", "section"], sort=False)[column].mean().unstack("section")
    return means.reindex(index=rows["gene"].unique(), columns=rows["section"].unique())


def _limits(genes: pd.DataFrame, null: str | float | Mapping[str, float], names: list[str]) -> np.ndarray:
    if isinstance(null, str):
        reached = _mean(_by_section(genes, null, "pearson").to_numpy())
        reached = reached[np.isfinite(reached)]
        return np.full(len(names), float(np.quantile(reached, NULL_QUANTILE)) if len(reached) else np.nan)
    if isinstance(null, Mapping):
        return np.array([float(null.get(name, 0.0)) for name in names])
    return np.full(len(names), float(null))


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean of the finite values of each row; NaN where there is none."""
    defined = np.isfinite(values)
    number = defined.sum(axis=1)
    total = np.where(defined, values, 0.0).sum(axis=1)
    return np.divide(total, number, out=np.full(len(values), np.nan), where=number > 0)


def _patient_means(values: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Patient means (genes, patients) of values (genes, sections) under a membership (patients, sections)."""
    defined = np.isfinite(values)
    number = defined @ member.T
    total = np.where(defined, values, 0.0) @ member.T
    return np.divide(total, number, out=np.full(number.shape, np.nan), where=number > 0)


_VALUES = ("pearson", "low", "high", "null")
_COUNTS = ("n_sections", "n_patients")
VALIDATION = "validation Pearson"


@dataclass(frozen=True, eq=False)
class GeneReliability:
    """Validation Pearson, interval, null and grade of each gene, as a model stores them.

    The mean Pearson over validation sections, its 95 % interval and the null are (genes,) float32; the numbers of
    sections and patients with a defined correlation (genes,) int64; `grade` is the index in `GRADES`. `facts` holds
    sections, groups, group_by: the validation data.
    """

    genes: tuple[str, ...]
    pearson: np.ndarray
    low: np.ndarray
    high: np.ndarray
    null: np.ndarray
    n_sections: np.ndarray
    n_patients: np.ndarray
    grade: np.ndarray
    facts: dict[str, Any]

    @property
    def sentence(self) -> str:
        """Data and null that the values are based on."""
        facts = self.facts
        return (
            f"Validation Pearson over {facts['sections']} sections of {facts['groups']} training {facts['group_by']}s, "
            "each predicted by heads fitted without it; the same sections chose epoch, penalties and weights. Null: "
            "ridge regression on permuted pairs, 95 % quantile over genes."
        )

    def table(self, genes: Sequence[str]) -> pd.DataFrame:
        """Look up genes, in the order given; NaN and "not measured" for unknown ones.

        The table is indexed by gene: reliability, reliability_low, reliability_high, reliability_null,
        reliability_sections, grade.
        """
        import pandas as pd

        columns: dict[str, Any] = {
            f"reliability_{name}".removesuffix("_pearson"): getattr(self, name) for name in _VALUES
        }
        columns |= {"reliability_sections": self.n_sections, "grade": np.array(GRADES, object)[self.grade]}
        found = pd.DataFrame(columns, index=pd.Index(list(self.genes), dtype=object)).reindex(list(genes))
        sections = found["reliability_sections"].fillna(0).astype(np.int64)
        return found.assign(reliability_sections=sections, grade=found["grade"].fillna(NOT_MEASURED))


def fit_gene_reliability(
    genes: Sequence[str],
    pearson: np.ndarray,
    null: np.ndarray,
    sections: Sequence[str],
    patients: Sequence[str],
    facts: dict[str, Any],
) -> GeneReliability:
    """Grade genes by the correlations (genes, sections) on validation sections, NaN where undefined.

    `pearson` is that of the model, `null` that of one fitted on permuted pairs; `facts` as in `GeneReliability`.
    """
    import pandas as pd

    names = np.repeat(np.asarray(genes, object), len(sections))
    of = np.tile(np.asarray(sections, object), len(genes))
    rows = [
        pd.DataFrame({"method": method, "section": of, "gene": names, "pearson": values.ravel()})
        for method, values in (("model", pearson), ("null", null))
    ]
    patient_of = dict(zip(sections, patients, strict=True))
    graded = predictability(pd.concat(rows), patient_of, method="model", null="null").set_index("gene")
    graded = graded.loc[list(genes)]
    numbers = {name: graded[name].to_numpy(np.float32) for name in _VALUES}
    counts = {name: graded[name].to_numpy(np.int64) for name in _COUNTS}
    grade = np.array([GRADES.index(each) for each in graded["grade"]], np.int64)
    return GeneReliability(tuple(genes), **numbers, **counts, grade=grade, facts=facts)
