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

Gene cards: how far each gene could be predicted on units that were held in, and whether that is more than chance.

The grades are those of `predictability`. A model makes its own cards while it is trained: each unit is predicted by
heads that had not seen it. They took part in choosing the epoch, penalties and weights, which favours the cards by
a little; an evaluation leaves units out of that as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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


NUMBERS = ("pearson", "low", "high", "null")
COUNTS = ("n_sections", "n_patients")
VALIDATION = "validation Pearson"


@dataclass(frozen=True, eq=False)
class GeneCards:
    """One card a gene.

    Parameters
    ----------
    genes : tuple of str
    pearson, low, high, null : numpy.ndarray, shape (genes,), float32
        Mean Pearson over validation sections, its 95 % interval, and what a model without knowledge reaches.
    n_sections, n_patients : numpy.ndarray, shape (genes,), int64
        On which it is defined.
    grade : numpy.ndarray of int, shape (genes,)
        Location in `predictability.GRADES`.
    facts : dict
        What they rest on.
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
        """What the cards rest on."""
        facts = self.facts
        return (
            f"Validation Pearson over {facts['sections']} sections of {facts['units']} training {facts['unit']}s, each "
            "predicted by heads that had not seen it; they helped to choose epoch, penalties and weights. Null: "
            "ridge regression on permuted pairs, 95 % quantile over genes."
        )

    def table(self, genes: Sequence[str]) -> pd.DataFrame:
        """The cards of these genes; NaN and "not measured" for genes without one.

        Parameters
        ----------
        genes : sequence of str

        Returns
        -------
        pandas.DataFrame
            Indexed by gene: reliability, reliability_low, reliability_high, reliability_null, reliability_sections,
            grade.
        """
        import pandas as pd

        place = {gene: number for number, gene in enumerate(self.genes)}
        at = np.array([place.get(gene, -1) for gene in genes], np.int64)
        known = at >= 0
        columns: dict[str, Any] = {}
        for name in NUMBERS:
            values = np.full(len(at), np.nan, np.float32)
            values[known] = getattr(self, name)[at[known]]
            columns["reliability" if name == "pearson" else f"reliability_{name}"] = values
        sections = np.zeros(len(at), np.int64)
        sections[known] = self.n_sections[at[known]]
        columns["reliability_sections"] = sections
        grades = np.array([*GRADES, NOT_MEASURED], dtype=object)
        columns["grade"] = grades[np.where(known, np.append(self.grade, -1)[at], -1)]
        return pd.DataFrame(columns, index=pd.Index(list(genes), dtype=object))

    def arrays(self) -> dict[str, np.ndarray]:
        """What is stored."""
        return {name: getattr(self, name) for name in (*NUMBERS, *COUNTS, "grade")}


def make_cards(
    genes: Sequence[str],
    pearson: np.ndarray,
    null: np.ndarray,
    sections: Sequence[str],
    patients: Sequence[str],
    facts: dict[str, Any],
    seed: int = 0,
) -> GeneCards:
    """Grade genes by how validation sections were predicted.

    Parameters
    ----------
    genes : sequence of str
    pearson, null : array, shape (genes, sections)
        Of the model, and of one that was fitted on permuted pairs; NaN where undefined.
    sections, patients : sequence of str
        Names; the patient of each section.
    facts : dict
        What the cards rest on.
    seed : int
        Of the bootstrap.
    """
    import pandas as pd

    names = np.repeat(np.asarray(genes, object), len(sections))
    of = np.tile(np.asarray(sections, object), len(genes))
    rows = [
        pd.DataFrame({"method": method, "section": of, "gene": names, "pearson": values.ravel()})
        for method, values in (("model", pearson), ("null", null))
    ]
    patient_of = dict(zip(sections, patients, strict=True))
    graded = predictability(pd.concat(rows), patient_of, method="model", null="null", seed=seed).set_index("gene")
    graded = graded.loc[list(genes)]
    numbers = {name: graded[name].to_numpy(np.float32) for name in NUMBERS}
    counts = {name: graded[name].to_numpy(np.int64) for name in COUNTS}
    grade = np.array([GRADES.index(each) for each in graded["grade"]], np.int64)
    return GeneCards(tuple(genes), **numbers, **counts, grade=grade, facts=facts)
