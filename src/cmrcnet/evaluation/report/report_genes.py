"""The gene explorer of the report: rows for the page's script to sort, search and filter; and what the grades mean."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from cmrcnet.errors import BadOption, UnknownName
from cmrcnet.evaluation.protocol.summary import number
from cmrcnet.evaluation.report.page import folded, stamp_line, table, text
from cmrcnet.evaluation.report.report_methods import first_method
from cmrcnet.genes.markers import MarkerList, markers, organ_of_cohort
from cmrcnet.uncertainty.gene_reliability import GRADES, grade_counts, predictability

if TYPE_CHECKING:
    import pandas as pd

    from cmrcnet.evaluation.protocol.evaluation_run import EvaluationRun

MOST_GENES = 2_000
"""Genes that the page carries; `genes.csv` holds all."""
LEAST_DETECTED = 0.2
"""A gene seen in fewer spots is not shown off as well predicted: one lucky spot makes a Pearson of 1."""
NULL = "permuted-pairs"


def gene_explorer(run: EvaluationRun) -> str:
    """Grades and their counts, and the table that the page's script fills from the rows embedded here."""
    frame = gene_frame(run)
    counts = grade_counts(frame.reset_index())
    said = ", ".join(f"{text(grade)}: {counts[grade]:,}" for grade in GRADES)
    null = f"the 95 % quantile of {NULL}" if NULL in run.methods else "0"
    rows = _rows(run, frame)
    sets = list(dict.fromkeys(name for entry in frame.sets for name in entry.split()))
    choices = "".join(f"<option>{text(name)}</option>" for name in [*sorted(sets), "other"])
    grades = "".join(f'<option value="{text(grade)}">{text(grade)} ({counts[grade]:,})</option>' for grade in GRADES)
    # Closing tags inside the rows would end the element: "<" is written as its JSON escape.
    data = json.dumps(rows, separators=(",", ":"), allow_nan=False, ensure_ascii=False).replace("<", "\\u003c")
    return (
        f"<p>Grade of every gene, by its mean Pearson over held-out sections: {said}. A: the interval lies above the "
        f"null and the mean is 0.5 or more; B: 0.35 or more; C: the interval lies above the null; D: nothing better "
        f"than the null was shown. The null is {text(null)}.</p>\n"
        '<div class="tools" id="gene-tools">'
        '<label>Find a gene <input type="search" id="gene-search" placeholder="part of its name"></label>'
        f'<label>Set <select id="gene-set"><option value="">any</option>{choices}</select></label>'
        f'<label>Grade <select id="gene-grade"><option value="">any</option>{grades}</select></label>'
        '<span class="soft" id="gene-count" aria-live="polite"></span></div>\n'
        '<noscript><p class="soft">The table of genes needs JavaScript; genes.csv holds the same.</p></noscript>\n'
        '<div class="scroll tall"><table id="genes"><thead></thead><tbody></tbody></table></div>\n'
        '<p><button type="button" id="gene-more" hidden>Show more</button></p>\n'
        f'<script type="application/json" id="gene-rows">{data}</script>\n'
        + stamp_line(
            run,
            f"{len(rows['rows']):,} of {len(frame):,} scored genes: those of named sets, then the best others, picked "
            f"by their score, so they flatter; others that are seen in fewer than {LEAST_DETECTED:.0%} of spots come "
            "last. Pearson: mean over sections, then patients where there are five or more; low and high: its 95 % "
            "interval; share: of the noise ceiling; detected: share of spots; mean and variance: of the measured "
            "log-expression; defined: sections where the correlation is defined. Other methods were scored by gene in "
            "the named sets only.",
        )
    )


def marker_table(run: EvaluationRun) -> str:
    """How well the published signatures of the cohort's organ are predicted; empty where the organ is not known."""
    found = _markers(run)
    if found is None:
        return ""
    organ, measured = found
    frame = gene_means(run, first_method(run))
    rows = []
    for name, signature in organ.signatures.items():
        mine = frame[frame.index.isin(measured[name])].sort_values("pearson", ascending=False, kind="stable")
        best = f"{mine.index[0]} {number(float(mine.pearson.iloc[0]))}" if mine.pearson.notna().any() else ""
        mean = number(float(mine.pearson.mean())) if len(mine) else "undefined"
        rows.append([name, f"{len(mine)}/{len(signature.genes)}", mean, best, signature.sources[0].cite])
    heads = ["signature", "measured", "mean Pearson", "best gene", "source"]
    body = table(heads, rows, words=(4,)) + stamp_line(run, f"Mean over genes of {first_method(run)}'s Pearson.")
    return folded(f"Marker signatures, {organ.organ}", body)


def gene_frame(run: EvaluationRun) -> pd.DataFrame:
    """Every gene of the first method, in the order of the explorer: named sets first, each part by its Pearson.

    Returns
    -------
    pandas.DataFrame
        Indexed by gene: columns of `predictability`, and `level, variance, detected, sets` from `gene_means`.
    """
    method = first_method(run)
    patient_of = {each["section"]: each["patient"] for each in run.facts["cohort"]["sections"]}
    null = NULL if NULL in run.methods and method != NULL else 0.0
    graded = predictability(run.genes, patient_of, method=method, null=null, seed=run.facts["seed"]).set_index("gene")
    frame = graded.join(gene_means(run, method)[["level", "variance", "detected", "sets"]])
    found = _markers(run)
    if found is not None:
        listed = {gene for genes in found[1].values() for gene in genes}
        marked = [
            f"{sets} MG".strip() if gene in listed and "MG" not in sets.split() else sets
            for gene, sets in frame["sets"].items()
        ]
        frame["sets"] = marked
    often = (frame.detected >= LEAST_DETECTED) & (frame.n_sections * 2 > frame.n_sections + frame.n_undefined)
    frame["part"] = [0 if sets else 1 if seen else 2 for sets, seen in zip(frame.sets, often, strict=True)]
    order = frame.sort_values(["part", "pearson"], ascending=[True, False], kind="stable", na_position="last")
    return order.drop(columns="part")


def gene_means(run: EvaluationRun, method: str) -> pd.DataFrame:
    """One row a gene: its mean Pearson over sections and in how many of them that is defined."""
    mine = run.genes[run.genes.method == method]
    grouped = mine.groupby("gene", sort=False)
    frame = grouped.agg(
        pearson=("pearson", "mean"),
        defined=("pearson", "count"),
        sections=("pearson", "size"),
        level=("mean", "mean"),
        variance=("variance", "mean"),
        detected=("detected", "mean"),
    )
    listed = mine[mine.sets != ""].groupby("gene", sort=False)["sets"].agg(_joined)
    frame["sets"] = listed.reindex(frame.index).fillna("")
    return frame


def _rows(run: EvaluationRun, frame: pd.DataFrame) -> dict[str, Any]:
    """Names of the columns, and the rows, three digits a number; None where undefined."""
    others = [name for name in run.methods if name != first_method(run)]
    others = [name for name in others if run.genes[run.genes.method == name].pearson.notna().any()]
    columns = ["gene", "grade", "Pearson", "low", "high", "ceiling", "share", "detected", "mean", "variance"]
    columns += ["defined", "set", *others]
    beside = {name: gene_means(run, name).pearson for name in others}
    rows = []
    for gene, row in frame.head(MOST_GENES).iterrows():
        numbers = [row.pearson, row.low, row.high, row.ceiling, row.share, row.detected, row.level, row.variance]
        sections = int(row.n_sections + row.n_undefined)
        rows.append(
            [
                str(gene), row.grade, *map(_short, numbers), f"{int(row.n_sections)}/{sections}", row.sets,
                *(_short(beside[name].get(gene, math.nan)) for name in others),
            ]
        )  # fmt: skip
    return {"columns": columns, "rows": rows}


def _short(value: float) -> float | None:
    return round(float(value), 3) + 0.0 if math.isfinite(value) else None


def _markers(run: EvaluationRun) -> tuple[MarkerList, dict[str, tuple[str, ...]]] | None:
    """The signatures of the cohort's organ, and their genes as the cohort writes them; None where that is not told."""
    try:
        organ = markers(organ_of_cohort(run.cohort))
        return organ, organ.measured(list(dict.fromkeys(run.genes.gene)))
    except (UnknownName, BadOption):
        return None


def _joined(sets: pd.Series) -> str:
    return " ".join(sorted({name for entry in sets for name in entry.split()}))
