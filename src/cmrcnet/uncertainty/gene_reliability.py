"""Gene cards: how far each gene could be predicted on units that were held in, and whether that is more than chance.

The grades are those of `predictability`. A model makes its own cards while it is trained: each unit is predicted by
heads that had not seen it. They took part in choosing the epoch, penalties and weights, which favours the cards by
a little; an evaluation leaves units out of that as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cmrcnet.uncertainty.predictability import GRADES, NOT_MEASURED, predictability

if TYPE_CHECKING:
    import pandas as pd

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
