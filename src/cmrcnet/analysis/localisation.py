"""Localisation: does a signature of marker genes find its tissue region in predicted expression?

The score of a spot is the mean, over the signature's genes, of the log-normalised expression z-scored over the section.
For each region the score is judged as a detector (region against the rest) by its area under the ROC curve (AUC): 0.5
is chance, 1 is perfect, below 0.5 the signature is low there. The AUC of the measured expression is the ceiling: the
signature itself may not mark the region.

AUC is the probability that a spot inside scores above one outside, ties counting half (Mann and Whitney 1947; Hanley
and McNeil 1982). Intervals are percentiles of bootstrap samples of spots; neighbouring spots are alike, so they are
somewhat too narrow. Over patients it is Student's t interval. The file is one thing: that measure, for a section
and for a cohort.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from cmrcnet.errors import BadOption, CmrcnetWarning, SectionError, TooFew, UnknownName
from cmrcnet.genes.markers import MarkerList
from cmrcnet.genes.mean_interval import mean_interval
from cmrcnet.genes.scaling import COUNTS, Scaling
from cmrcnet.genes.table import scaling_of
from cmrcnet.readers.tables import spot_key
from cmrcnet.slides.section import Cohort

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from cmrcnet.slides.section import Section

UNLABELLED = ("unknown", "undetermined", "unlabelled", "none", "nan", "")
"""Labels of spots that are left out."""

MIN_SPOTS = 5
"""Fewest spots of a region and of its outside."""


def signature_scores(
    expression: pd.DataFrame | AnnData, signatures: Mapping[str, Sequence[str]]
) -> tuple[pd.DataFrame, pd.Series]:
    """Score every spot of a section for every signature: mean of its genes' z-scores over the section.

    `expression` (spots, genes) is log-normalised, predicted or measured. Absent and constant genes of a signature are
    left out of its mean; a table without any gene of the signatures is a `SectionError`. Returns the scores (spots,
    signatures), NaN for a signature without a varying gene, and the number of genes in each score.
    """
    import pandas as pd

    wanted = list(dict.fromkeys(gene for genes in signatures.values() for gene in genes))
    whole: Any = expression
    known = set(whole.var_names if hasattr(whole, "var_names") else whole.columns)
    there = [gene for gene in wanted if gene in known]
    if not there:
        raise SectionError.none_shared(
            "The signatures", "the expression table", "Match them with markers(organ).measured(genes)."
        )
    part = whole[:, there].to_df() if hasattr(whole, "var_names") else whole[there]
    values = part.to_numpy(dtype=np.float64)
    deviation = values.std(axis=0)
    varies = np.isfinite(deviation) & (deviation > 1e-9 * np.maximum(np.abs(values).max(axis=0), 1e-30))
    scaled = (values - values.mean(axis=0)) / np.where(varies, deviation, 1.0)
    column_of = {gene: i for i, gene in enumerate(there)}
    scores, counts = {}, {}
    for name, genes in signatures.items():
        used = [column_of[gene] for gene in dict.fromkeys(genes) if gene in column_of and varies[column_of[gene]]]
        scores[name] = scaled[:, used].mean(axis=1) if used else np.full(len(part), np.nan)
        counts[name] = len(used)
    return pd.DataFrame(scores, index=part.index), pd.Series(counts, dtype=int)


def measured_expression(section: Section, genes: Iterable[str], scaling: Scaling = COUNTS) -> pd.DataFrame:
    """Measured expression (spots, genes) float32 of some genes of a section, the `truth` of `localise`.

    Genes that the section does not list are left out.
    """
    import pandas as pd

    column = {gene: i for i, gene in enumerate(section.genes)}
    there = [gene for gene in dict.fromkeys(genes) if gene in column]
    values = scaling.expression(section)[:, [column[gene] for gene in there]].toarray()
    return pd.DataFrame(values, index=pd.Index(section.spots.barcodes), columns=pd.Index(there))


def localise(
    prediction: pd.DataFrame | AnnData,
    regions: pd.Series | Mapping[str, str],
    signatures: Mapping[str, Sequence[str]],
    truth: pd.DataFrame | AnnData | None = None,
    *,
    unlabelled: Collection[str] = UNLABELLED,
    min_spots: int = MIN_SPOTS,
    n_bootstrap: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """AUC of each signature of a predicted section for each region against the rest.

    Parameters
    ----------
    prediction : pandas.DataFrame (spots, genes) or anndata.AnnData
        A prediction table.
    regions : pandas.Series or mapping of barcode to label
        Labels of the section's spots; `readers.annotations.read_regions` gives it. Spots without one are left out.
    signatures : mapping of str to sequence of str
        ``markers(organ).measured(genes)``, or your own.
    truth : pandas.DataFrame (spots, genes) or anndata.AnnData, optional
        Measured log-normalised expression of the same spots: gives the ceiling.
    unlabelled : collection of str
        Labels to leave out, in lower case.
    min_spots : int
        Regions with fewer spots, or with fewer spots outside, are left out.
    n_bootstrap : int
        Bootstrap samples of the spots; 0 gives no intervals.
    level : float
        Nominal coverage of the interval.
    seed : int
        Of the bootstrap.

    Returns
    -------
    pandas.DataFrame
        One row per region and signature: `region, signature, n_spots` (labelled spots of the section), `n_inside,
        n_genes, auc, auc_low, auc_high`; with `truth` also `ceiling_genes, ceiling, ceiling_low, ceiling_high`.

    Raises
    ------
    SectionError, TooFew, BadOption
    """
    import pandas as pd

    if not 0 < level < 1:
        raise BadOption("level", level, "a share between 0 and 1")
    labels: Any = pd.Series(regions, dtype=object)
    labels = labels[~labels.astype(str).str.strip().str.lower().isin(set(unlabelled))]
    spot_of = {spot_key(spot): spot for spot in _spots(prediction)}  # 9.010x2.100 is 9.01x2.1
    labels.index = [spot_of.get(spot_key(str(spot)), spot) for spot in labels.index]
    spots = [spot for spot in _spots(prediction) if spot in labels.index]
    if truth is not None:
        measured = set(_spots(truth))
        spots = [spot for spot in spots if spot in measured]
    if len(spots) < 2 * min_spots:
        raise TooFew(
            "spots are both predicted and labelled",
            len(spots),
            2 * min_spots,
            "check that both use the same spot names",
        )
    labels = labels.loc[spots].astype(str)
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(spots), (n_bootstrap, len(spots)))
    tables = {"auc": prediction} | ({"ceiling": truth} if truth is not None else {})
    scored = {name: signature_scores(table, signatures) for name, table in tables.items()}
    ranks = {}  # of every signature: the spots themselves, then every bootstrap sample
    for name, (scores, _) in scored.items():
        chosen = scores.loc[spots]
        for signature in signatures:
            values = chosen[signature].to_numpy()
            ranks[name, signature] = _rank(values[None]), _rank(values[draws])
    rows = []
    tail = (1 - level) / 2
    for region in sorted(set(labels)):
        inside = (labels == region).to_numpy()
        if min(inside.sum(), (~inside).sum()) < min_spots:
            continue
        for signature in signatures:
            row: dict[str, object] = {"region": region, "signature": signature}
            row |= {"n_spots": len(spots), "n_inside": int(inside.sum())}
            for name, (_, n_genes) in scored.items():
                whole, sampled = ranks[name, signature]
                again = _auc_of_ranks(sampled, inside[draws])
                again = again[np.isfinite(again)]
                low, high = np.quantile(again, [tail, 1 - tail]) if len(again) else (np.nan, np.nan)
                row["n_genes" if name == "auc" else "ceiling_genes"] = int(n_genes[signature])
                row |= {name: float(_auc_of_ranks(whole, inside[None])[0])}
                row |= {f"{name}_low": float(low), f"{name}_high": float(high)}
            rows.append(row)
    if not rows:
        raise TooFew("regions have enough spots", 0, 1, f"each needs {min_spots} spots inside and as many outside")
    return pd.DataFrame(rows)


def mean_over_patients(table: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """Mean AUC over patients, each the mean of its sections, with its Student t interval.

    Parameters
    ----------
    table : pandas.DataFrame
        As `localise_cohort` gives it.
    level : float
        Nominal coverage of the interval.

    Returns
    -------
    pandas.DataFrame
        One row per region and signature: `region, signature, over` ("patients", or "sections" where the table holds
        only one patient), `n` (of them), and the mean, low and high of `auc` and, where there, `ceiling`. The bounds
        are NaN with fewer than two.
    """
    import pandas as pd

    unit = "patient" if table["patient"].nunique() > 1 else "section"
    columns = [name for name in ("auc", "ceiling") if name in table]
    means = table.groupby(["region", "signature", unit], sort=False)[columns].mean()
    rows = []
    for (region, signature), group in cast(Any, means.groupby(["region", "signature"], sort=False)):
        row: dict[str, object] = {"region": region, "signature": signature, "over": f"{unit}s", "n": len(group)}
        defined = group.notna().all().to_numpy()  # in each of them: a mean over some of them would not say so
        found = mean_interval(group.to_numpy(), level=level)
        found = [np.where(defined, each, np.nan) for each in found]
        for name, mean, low, high in zip(columns, *found, strict=True):
            row |= {
                name: float(mean),
                f"{name}_low": float(np.clip(low, 0, 1)),
                f"{name}_high": float(np.clip(high, 0, 1)),
            }
        rows.append(row)
    return pd.DataFrame(rows)


def coarse(label: str) -> str:
    """Drop the number and the part of a region's label.

    Examples
    --------
    >>> coarse("cancer 2"), coarse("immune : APC, B-cell")
    ('cancer', 'immune')
    """
    return re.sub(r"\s+\d+$", "", re.split(r"\s*:\s*", label.strip(), maxsplit=1)[0])


def _spots(table: pd.DataFrame | AnnData) -> list[str]:
    return [str(name) for name in getattr(table, "obs_names", getattr(table, "index", ()))]


def _rank(scores: np.ndarray) -> np.ndarray:
    """Mid-ranks of each row from 1; NaN throughout where a score is not finite."""
    from scipy.stats import rankdata

    if not scores.size:
        return np.empty(scores.shape)
    return np.where(np.isfinite(scores).all(axis=1, keepdims=True), rankdata(scores, axis=1), np.nan)


def _auc_of_ranks(ranks: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """(sum of ranks inside - n1 (n1 + 1) / 2) / (n1 n0), row by row; NaN where one side is empty."""
    n_in = inside.sum(axis=1).astype(np.float64)
    n_out = inside.shape[1] - n_in
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((ranks * inside).sum(axis=1) - n_in * (n_in + 1) / 2) / np.where(n_in * n_out > 0, n_in * n_out, np.nan)


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
    """Localise an organ's signatures in every section with a prediction and labels.

    Parameters
    ----------
    predictions : mapping of section to prediction table
        Predicted at the cohort's own spots.
    cohort : Cohort
        Gives the measured expression for the ceiling, one section at a time.
    regions : mapping of section to labels
        As `readers.annotations.read_cohort_regions` gives them.
    chosen : MarkerList
        Signatures, scored on the predicted genes.
    merge : bool
        Merge labels by `coarse`: "cancer 2" and "cancer 3" become one region.

    Returns
    -------
    pandas.DataFrame
        As `localise`, with `section` and `patient` first and `expected` last: whether the signature should be high
        in that region.

    Raises
    ------
    UnknownName
        A prediction is of a section that the cohort does not name.
    TooFew, SectionError

    Warns
    -----
    CmrcnetWarning
        Names the predicted sections that have no labels, and with several predictions the labelled ones without one.
    """
    import pandas as pd

    if foreign := [name for name in predictions if name not in cohort.sections]:
        raise UnknownName("section", foreign[0], cohort.sections, "The prediction names it, the cohort file does not.")
    both = [name for name in cohort.sections if name in predictions and name in regions]
    asked = set(predictions) | (set(regions) if len(predictions) > 1 else set())
    if left_out := sorted(asked - set(both)):
        why = "each has a prediction but no labels, or labels but no prediction"
        warnings.warn(f"Left out: {', '.join(left_out)} ({why}).", CmrcnetWarning, stacklevel=2)
    tables = []
    for name in both:
        prediction = predictions[name]
        section = cohort.read(name)
        known = set(section.genes)
        signatures = chosen.measured([gene for gene in map(str, prediction.var_names) if gene in known])
        signatures = {signature: genes for signature, genes in signatures.items() if genes}
        if not signatures:
            raise SectionError.none_shared(f"The {chosen.organ} markers", f"the prediction of {name}")
        truth = measured_expression(
            section, (gene for genes in signatures.values() for gene in genes), scaling_of(prediction)
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
    """Format the expected pairs of region and signature in a table of `localise_cohort` as text: AUC, means over
    sections.
    """
    lines = []
    if len(table["section"].unique()) > 1:
        merged = mean_over_patients(cast("pd.DataFrame", table[table["expected"]]))
        over = merged["over"].iloc[0] if len(merged) else "patients"
        head, unit = f"Mean over {over} ({table['section'].nunique()} sections), t interval over {over}.", "n"
    else:
        merged = table[table["expected"]]
        head, unit = f"Section {table['section'].iloc[0]}, 95 % interval over spots.", "n_inside"
    lines.append(head)
    lines.append(f"{'region':34}{'signature':24}{'n':>4}  {'predicted AUC':22}measured (ceiling)")
    for row in cast(Any, merged).to_dict("records"):
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
