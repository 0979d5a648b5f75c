"""Tables of the report: methods, folds, genes, provenance. Each names the protocol that it was made by."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.evaluation.methods import MAIN
from cmrcnet.evaluation.metrics import by_patient
from cmrcnet.evaluation.report_page import table, text
from cmrcnet.evaluation.verdict import number

if TYPE_CHECKING:
    import pandas as pd

    from cmrcnet.evaluation.evaluation_run import EvaluationRun

_MOST_GENES = 60
"""Best genes shown beyond HEG and HVG; `genes.csv` holds all."""
LEAST_DETECTED = 0.2
"""A gene seen in fewer spots is not shown off as well predicted: one lucky spot makes a Pearson of 1."""


def strip(run: EvaluationRun) -> str:
    """Every method's mean, and each patient's, on one line a method."""
    summary, each = run.summary(), by_patient(run.scores)
    picked = {"gene_set": "HVG", "metric": "pearson"}
    summary, each = (_where(frame, picked) for frame in (summary, each))
    values = np.concatenate([each["value"].to_numpy(), [0.0]])
    low, high = float(np.nanmin(values)) - 0.03, float(np.nanmax(values)) + 0.03

    def at(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    rows = []
    for method in run.methods:
        mine = each[each.method == method]
        mean = float(summary[summary.method == method]["value"].iloc[0])
        dots = "".join(
            f'<span class="dot" style="left:{at(value)}" title="{text(patient)}: {value:.3f}"></span>'
            for patient, value in zip(mine.patient, mine["value"], strict=True)
            if not math.isnan(value)
        )
        bar = "" if math.isnan(mean) else f'<span class="mean" style="left:{at(mean)}"></span>'
        rows.append(
            f'<div class="row{" main" if method == MAIN else ""}"><span>{text(method)}</span>'
            f'<div class="track"><span class="zero" style="left:{at(0)}"></span>{dots}{bar}</div>'
            f'<span class="value">{number(mean)}</span></div>\n'
        )
    step = 0.1 if high - low < 0.8 else 0.2
    ticks = [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    labels = "".join(f'<span style="left:{at(tick)}">{tick:.1f}</span>' for tick in ticks)
    axis = f'<div class="row axis" aria-hidden="true"><span></span><div class="track">{labels}</div><span></span></div>'
    return (
        '<div class="strip">' + "".join(rows) + axis + "</div>\n"
        '<p class="stamp">Mean Pearson over the HVG. Bar: mean over patients. Dot: one patient.</p>\n'
    )


def methods_table(run: EvaluationRun) -> str:
    """Methods by gene sets: Pearson and MSE, undefined genes, and time."""
    summary = run.summary()
    sets = list(dict.fromkeys(summary.gene_set))
    seconds = {name: sum(p["seconds"] for p in run.facts["parts"] if p["method"] == name) for name in run.methods}
    rows = []
    for method in run.methods:
        mine = summary[summary.method == method].set_index(["metric", "gene_set"])
        row: list[object] = [method]
        row += [number(mine.loc[("pearson", name), "value"]) for name in sets]
        row += [_share(mine.loc[("pearson", name)])
                for name in sets]  # fmt: skip
        row += [number(mine.loc[("mse", "HVG"), "value"]), f"{seconds[method]:.0f} s"]
        rows.append(row)
    heads = ["method", *(f"Pearson {name}" for name in sets), *(f"undefined {name}" for name in sets)]
    heads += ["MSE HVG", "time"]
    main = list(run.methods).index(MAIN) if MAIN in run.methods else None
    about = "".join(f"<li><b>{text(name)}</b>: {text(sentence)}.</li>" for name, sentence in run.methods.items())
    return (
        table(heads, rows, main_row=main)
        + stamp_line(run, "“undefined” counts gene-section pairs over all folds.")
        + f'<details><summary>What each method is</summary><ul class="plain">{about}</ul></details>\n'
    )


def folds_table(run: EvaluationRun) -> str:
    """HVG Pearson of each method in each fold, with the fold's members."""
    scores = _where(run.scores, {"gene_set": "HVG", "metric": "pearson"})
    mean = scores.groupby(["fold", "method"], sort=False)["value"].mean()
    rows = []
    for fold in run.folds:
        values = [number(float(mean.get((fold.name, method), float("nan")))) for method in run.methods]
        sides = "patient-disjoint" if fold.patient_disjoint else "NOT patient-disjoint"
        rows.append([fold.name, *values, f"tests {', '.join(fold.test)}; {len(fold.train)} sections train; {sides}"])
    heads = ["left out", *run.methods, "members"]
    return table(heads, rows, words=(len(heads) - 1,)) + stamp_line(run, "Mean Pearson over the HVG of each fold.")


def genes_table(run: EvaluationRun) -> str:
    """HEG, HVG, and the best other genes: mean Pearson of each method over the sections that measured the gene."""
    first = MAIN if MAIN in run.methods else next(iter(run.methods))
    frame = gene_means(run, first)
    others = [
        name for name in run.methods if name != first and run.genes[run.genes.method == name].pearson.notna().any()
    ]
    listed = frame[frame.sets != ""]
    widely = (frame.defined * 2 > len(run.cohort)) & (frame.detected >= LEAST_DETECTED)
    best = frame[(frame.sets == "") & widely].sort_values("pearson", ascending=False, kind="stable").head(_MOST_GENES)
    import pandas as pd

    shown = pd.concat([listed, best]).sort_values("pearson", ascending=False, kind="stable", na_position="last")
    columns = {name: gene_means(run, name).pearson for name in others}
    rows = [
        [
            gene,
            number(row.pearson),
            *(number(float(columns[name].get(gene, float("nan")))) for name in others),
            f"{int(row.defined)}/{int(row.sections)}",
            f"{row.detected:.0%}",
            f"{row.level:.2f}",
            f"{row.variance:.2f}",
            row.sets or "other",
        ]
        for gene, row in shown.iterrows()
    ]
    heads = ["gene", first, *others, "defined in", "detected", "mean", "variance", "set"]
    return (
        '<p><label>Find a gene <input type="search" data-filters="genes" placeholder="part of its name"></label></p>\n'
        + table(heads, rows, identity="genes", sortable=True, tall=True)
        + stamp_line(
            run,
            f"{len(listed)} genes that are HEG or HVG in any fold, and the {len(best)} best others, of {len(frame):,} "
            f"scored. The others are detected in {LEAST_DETECTED:.0%} of spots or more and defined in most sections; "
            "they were picked by their score, so they flatter. Pearson: mean over sections; detected: share of spots; "
            "mean and variance: of the measured log-expression. All genes: genes.csv.",
        )
    )


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


def provenance(run: EvaluationRun) -> str:
    """Sections, what their readers noticed, the recipe, seed and versions."""
    import yaml

    sections = run.facts["cohort"]["sections"]
    heads = ["section", "patient", "spots", "genes", "um per px"]
    rows = [
        [
            each["section"],
            each["patient"],
            each["spots"],
            f"{each['genes']:,}",
            "unknown" if each["um_per_px"] is None else f"{each['um_per_px']:g}",
        ]
        for each in sections
    ]
    noted = [(each["section"], " ".join(each["notes"])) for each in sections if each["notes"]]
    notes = "".join(f"<li><b>{text(section)}</b>: {text(sentences)}</li>" for section, sentences in noted)
    if notes:
        notes = f'<details><summary>What the readers noticed</summary><ul class="plain">{notes}</ul></details>\n'
    versions = ", ".join(f"{text(name)} {text(number)}" for name, number in run.facts["versions"].items())
    chosen = [
        f"fold {text(part['fold'])}: penalty {part['record']['penalty']:g}"
        for part in run.facts["parts"]
        if part["method"] == "ridge" and "penalty" in part["record"]
    ]
    settings = yaml.safe_dump(run.facts["recipe"], sort_keys=False, allow_unicode=True)
    return (
        table(heads, rows)
        + notes
        + (f"<p>Ridge penalties chosen on held-in units: {'; '.join(chosen)}.</p>" if chosen else "")
        + f"<p>Seed {text(run.facts['seed'])}. {versions}.</p>\n"
        + f"<details><summary>The recipe {text(run.recipe.name)}, every setting</summary><pre>{text(settings)}</pre>"
        + "</details>\n"
    )


def _share(row: pd.Series) -> str:
    return f"{int(row.n_undefined):,}/{int(row.n_genes):,}"


def _joined(sets: pd.Series) -> str:
    return " ".join(sorted({name for entry in sets for name in entry.split()}))


def _where(frame: pd.DataFrame, wanted: dict[str, str]) -> pd.DataFrame:
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    return frame


def stamp_line(run: EvaluationRun, more: str = "") -> str:
    """The protocol in small print, for under a table."""
    return f'<p class="stamp">{text(run.stamp.to_text())} {text(more)}</p>\n'
