"""The strip of methods, the table of folds, and the provenance of the report."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.evaluation.methods.method import MAIN
from cmrcnet.evaluation.metrics.gene_metrics import by_patient
from cmrcnet.evaluation.metrics.intervals import intervals
from cmrcnet.evaluation.protocol.summary import number
from cmrcnet.evaluation.report.page import stamp_line, table, text

if TYPE_CHECKING:
    import pandas as pd

    from cmrcnet.evaluation.protocol.evaluation_run import EvaluationRun


def strip(run: EvaluationRun) -> str:
    """Every method's mean, and each patient's, on one line a method."""
    summary, each = run.summary(), by_patient(run.scores)
    picked = {"gene_set": "HVG", "metric": "pearson"}
    summary, each = (_where(frame, picked) for frame in (summary, each))
    spans = intervals(run.scores, seed=run.facts["seed"]).set_index("method")
    values = np.concatenate([each["value"].to_numpy(), spans[["low", "high"]].to_numpy().ravel(), [0.0]])
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
        ends = spans.loc[method, ["low", "high"]]
        if not ends.isna().any():
            wide = 100 * (ends.high - ends.low) / (high - low)
            bar = f'<span class="range" style="left:{at(ends.low)};width:{wide:.2f}%"></span>{dots}{bar}'
        else:
            bar = dots + bar
        rows.append(
            f'<div class="row{" main" if method == MAIN else ""}"><span>{text(method)}</span>'
            f'<div class="track"><span class="zero" style="left:{at(0)}"></span>{bar}</div>'
            f'<span class="value">{number(mean)}</span></div>\n'
        )
    step = 0.1 if high - low < 0.8 else 0.2
    ticks = [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    labels = "".join(f'<span style="left:{at(tick)}">{tick:.1f}</span>' for tick in ticks)
    axis = f'<div class="row axis" aria-hidden="true"><span></span><div class="track">{labels}</div><span></span></div>'
    return (
        '<div class="strip">' + "".join(rows) + axis + "</div>\n"
        '<p class="stamp">Mean Pearson over the HVG. Upright bar: mean over patients. Dot: one patient. Pale band: '
        "95 % interval.</p>\n"
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


def provenance(run: EvaluationRun) -> str:
    """Sections, what their readers noticed, the config, seed and versions."""
    import yaml

    sections = run.facts["cohort"]["sections"]
    heads = ["section", "patient", "spots", "genes", "um per px"]
    rows = [
        [
            each["section"],
            each["patient"],
            each["spots"],
            f"{each['genes']:,}",
            "unknown" if each["mpp"] is None else f"{each['mpp']:g}",
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
    settings = yaml.safe_dump(run.facts["config"], sort_keys=False, allow_unicode=True)
    return (
        table(heads, rows)
        + notes
        + (f"<p>Ridge penalties chosen on validation units: {'; '.join(chosen)}.</p>" if chosen else "")
        + f"<p>Seed {text(run.facts['seed'])}. {versions}.</p>\n"
        + f"<details><summary>The config {text(run.config.name)}, every setting</summary><pre>{text(settings)}</pre>"
        + "</details>\n"
    )


def _where(frame: pd.DataFrame, wanted: dict[str, str]) -> pd.DataFrame:
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    return frame
