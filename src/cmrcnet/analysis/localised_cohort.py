"""Localisation over the labelled sections of a cohort: one table, and what it says in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from cmrcnet.analysis.localisation import coarse, localise, measured_expression, over_sections
from cmrcnet.errors import GenesError, TooFew
from cmrcnet.genes.markers import MarkerList
from cmrcnet.slides.section import Cohort

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


def localise_cohort(
    predictions: Mapping[str, AnnData],
    cohort: Cohort,
    regions: Mapping[str, pd.Series],
    chosen: MarkerList,
    *,
    merge: bool = False,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Localise an organ's signatures in every section that is predicted and labelled.

    Parameters
    ----------
    predictions : mapping of section to prediction table
        Predicted at the cohort's own spots.
    cohort : Cohort
        Gives the measured expression, which is the ceiling. Sections are read one at a time.
    regions : mapping of section to labels
        As `readers.region_table.read_cohort_regions` gives them.
    chosen : MarkerList
        Signatures are scored on the genes that were predicted; the ceiling on the same ones.
    merge : bool
        Drop the numbers and parts of labels: "cancer 2" and "cancer 3" become one region.
    n_bootstrap, seed : int

    Returns
    -------
    pandas.DataFrame
        As `localise`, with `section` and `patient` in front and `expected` behind: whether the signature should be
        high in such a region.

    Raises
    ------
    TooFew, GenesError
    """
    import pandas as pd

    tables = []
    for name in cohort.sections:
        if name not in predictions or name not in regions:
            continue
        prediction = predictions[name]
        section = cohort.read(name)
        known = set(section.genes)
        signatures = chosen.measured([gene for gene in map(str, prediction.var_names) if gene in known])
        signatures = {signature: genes for signature, genes in signatures.items() if genes}
        if not signatures:
            raise GenesError.none_shared(f"The {chosen.organ} markers", f"the prediction of {name}")
        truth = measured_expression(
            section, (gene for genes in signatures.values() for gene in genes), _target_sum(prediction)
        )
        labels = regions[name].map(coarse) if merge else regions[name]
        table = localise(prediction, labels, signatures, truth, n_bootstrap=n_bootstrap, seed=seed)
        table.insert(0, "patient", section.patient)
        table.insert(0, "section", name)
        tables.append(table)
    if not tables:
        raise TooFew("sections are both predicted and labelled", 0, 1, "check the names of sections")
    found = pd.concat(tables, ignore_index=True)
    expected = {label: set(chosen.expected_in(label)) for label in found["region"].unique()}
    found["expected"] = [s in expected[r] for r, s in zip(found["region"], found["signature"], strict=True)]
    return found


def localisation_text(table: pd.DataFrame) -> str:
    """The expected pairs of region and signature as plain text: predicted and measured AUC, means over sections.

    Parameters
    ----------
    table : pandas.DataFrame
        From `localise_cohort`.
    """
    lines = []
    if len(table["section"].unique()) > 1:
        merged = over_sections(table[table["expected"]])
        head, unit = f"Mean over {table['section'].nunique()} sections, 95 % interval over sections.", "n_units"
    else:
        merged = table[table["expected"]]
        head, unit = f"Section {table['section'].iloc[0]}, 95 % interval over spots.", "n_inside"
    lines.append(head)
    lines.append(f"{'region':34}{'signature':24}{'n':>4}  {'predicted AUC':22}measured (ceiling)")
    for row in merged.to_dict("records"):
        lines.append(
            f"{str(row['region'])[:33]:34}{str(row['signature'])[:23]:24}{row[unit]:>4}  "
            f"{_span(row, 'auc'):22}{_span(row, 'ceiling')}"
        )
    if merged.empty:
        lines.append("No signature of this organ is expected in regions of these names; see the table for all pairs.")
    return "\n".join(lines)


def _span(row: Mapping[str, float], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.2f}" + (f" ({low:.2f} to {high:.2f})" if low == low else "")


def _target_sum(prediction: AnnData) -> float | Literal["median"]:
    """Library size of the prediction, as its table says; the default where it does not."""
    value = prediction.uns.get("cmrcnet", {}).get("target_sum", 10_000.0)
    return "median" if value == "median" else float(value)
