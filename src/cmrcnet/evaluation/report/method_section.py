"""Methods, folds and provenance in the report: means with intervals, paired differences, and every other metric."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.evaluation import Frame
from cmrcnet.evaluation.methods.method import MAIN
from cmrcnet.evaluation.metrics.intervals import by_patient, intervals, paired_differences
from cmrcnet.evaluation.report.page import render
from cmrcnet.evaluation.report.summary import first_method, number

if TYPE_CHECKING:
    from markupsafe import Markup

    from cmrcnet.evaluation.protocol.evaluate import EvaluationRun

_SETS = ("HVG", "HEG")
_METRICS = {
    "pearson": ("Pearson", "correlation over the spots of a section; higher is better"),
    "spearman": ("Spearman", "the same of ranks"),
    "pooled_pearson": ("pooled Pearson", "correlation over all test spots of a fold at once"),
    "ceiling": (
        "ceiling",
        "the mean correlation that counting noise allows (Poisson's, unless evaluation.overdispersion says more): an "
        "upper bound, a property of the data",
    ),
    "pearson_share": ("share of ceiling", "Pearson as a share of that ceiling"),
    "mse": ("MSE", "mean squared error of log-expression; lower is better"),
    "mae": ("MAE", "mean absolute error; lower is better"),
    "r2": ("R2", "explained variance; below 0 is worse than the gene's mean in the section"),
    "variance_ratio": ("variance ratio", "predicted by measured variance; below 1 is too smooth"),
    "detection_auc": ("detection AUC", "ranking spots with the gene above spots without; 0.5 is chance"),
    "ssim": ("SSIM", "structural similarity of the maps"),
    "moran_error": ("moran error", "difference of Moran's I between prediction and measurement; lower is better"),
    "gene_gene_error": ("gene gene error", "error of gene-gene correlations; lower is better"),
    "gene_gene_agreement": ("gene gene agreement", "correlation of gene-gene correlations"),
    "svg_recall": ("SVG recall", "share of the most spatially variable genes found"),
}
"""Name and meaning of each metric."""


def comparison(run: EvaluationRun) -> str:
    """Compare with ridge on the same features and with the null, in one sentence; empty without either."""
    main = first_method(run)
    beside = [name for name in ("ridge", "permuted-pairs") if name in run.methods and name != main]
    if not beside:
        return ""
    gaps = paired_differences(run.scores, main, "HVG").set_index("other")
    sentences = [
        f"minus {name}: {signed(gap['difference'])} ({between(gap['low'], gap['high'], plus=True)}), higher in "
        f"{int(gap['higher_in'])} of {int(gap['n'])} {gap['group']}s"
        for name, gap in ((name, gaps.loc[name]) for name in beside)
    ]
    share = run.mean(main, "HVG", "pearson_share")
    ceiling = "" if math.isnan(share) else f" It is {share:.0%} of what counting noise allows."
    return f"{main} {'; '.join(sentences)} (paired HVG Pearson, {gaps['note'].iloc[0]}).{ceiling}"


def methods_section(run: EvaluationRun) -> Markup:
    """Render the strip of methods, their table, and every metric of every gene set, folded."""
    main = first_method(run)
    sets = [name for name in _SETS if name in set(run.scores.gene_set)]
    means = {name: intervals(run.scores, name).set_index("method") for name in sets}
    gaps = paired_differences(run.scores, main, sets[0]).set_index("other")
    rows = []
    for method in run.methods:
        row: list[object] = [method]
        for name in sets:
            mean = means[name].loc[method]
            row += [number(mean["value"]), between(mean["low"], mean["high"])]
        if method == main:
            row += ["", "", ""]
        else:
            gap = gaps.loc[method]
            wins = f"{int(gap['higher_in'])}/{int(gap['n'])}"
            row += [signed(gap["difference"]), between(gap["low"], gap["high"], plus=True), wins]
        share = run.mean(method, sets[0], "pearson_share")
        seconds = sum(each["seconds"] for each in run.metadata["results"] if each["method"] == method)
        rows.append([*row, "undefined" if math.isnan(share) else f"{share:.0%}", f"{seconds:.0f} s"])
    heads = ["method"] + [head for name in sets for head in (f"{name} Pearson", "interval")]
    heads += [f"{main} minus it, {sets[0]}", "interval", "higher in", "share of ceiling", "time"]
    note = (
        f"{means[sets[0]]['note'].iloc[0]}. “{main} minus it” is paired: both on the same "
        f"{gaps['group'].iloc[0] if len(gaps) else 'patient'}s; “higher in” counts those in which {main} is ahead. "
        f"Share of ceiling: {sets[0]} Pearson by what counting noise allows, an upper bound. Time: fit, predict and "
        "score, all folds; methods on one training share it, and the first of them is charged for it."
    )
    summary = run.means()
    values = {
        "run": run,
        "strip": strip(run),
        "heads": heads,
        "rows": rows,
        "main_row": list(run.methods).index(main),
        "note": note,
        "metrics": [_METRICS[metric] for metric in dict.fromkeys(summary.metric) if metric in _METRICS],
        "sets": [_metrics_of(run, name, summary) for name in dict.fromkeys(summary.gene_set)],
    }
    return render("methods.html", values)


def _metrics_of(run: EvaluationRun, name: str, summary: Frame) -> tuple[str, list[str], list[list[str]]]:
    """Name, heads and rows of the table of one gene set."""
    mine = summary[summary.gene_set == name]
    metrics = list(dict.fromkeys(mine.metric))
    value = mine.set_index(["method", "metric"])["value"]
    pairs = mine[mine.metric == "pearson"].set_index("method")
    rows = [
        [
            method,
            *(number(float(value.get((method, metric), math.nan))) for metric in metrics),
            f"{int(pairs.n_undefined[method]):,}/{int(pairs.n_genes[method]):,}",
        ]
        for method in run.methods
    ]
    words = [_METRICS[metric][0] if metric in _METRICS else metric.replace("_", " ") for metric in metrics]
    return name, ["method", *words, "undefined"], rows


def strip(run: EvaluationRun) -> Markup:
    """Render every method's mean, its interval and each patient's score, on one line a method."""
    summary, each = (_hvg_pearson(frame) for frame in (run.means(), by_patient(run.scores)))
    spans = intervals(run.scores).set_index("method")
    values = np.concatenate([each["value"].to_numpy(), spans[["low", "high"]].to_numpy().ravel(), [0.0]])
    low, high = float(np.nanmin(values)) - 0.03, float(np.nanmax(values)) + 0.03

    def at(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    rows = []
    for method in run.methods:
        mine = each[each.method == method]
        mean = float(summary[summary.method == method]["value"].iloc[0])
        ends = spans.loc[method, ["low", "high"]]
        width = f"{100 * (ends.high - ends.low) / (high - low):.2f}%"
        dots = zip(mine.patient, mine["value"], strict=True)
        rows.append(
            {
                "method": method,
                "main": method == MAIN,
                "value": number(mean),
                "mean": "" if math.isnan(mean) else at(mean),
                "range": None if ends.isna().any() else (at(ends.low), width),
                "dots": [(patient, f"{v:.3f}", at(v)) for patient, v in dots if not math.isnan(v)],
            }
        )
    step = 0.1 if high - low < 0.8 else 0.2
    ticks = [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return render("strip.html", {"rows": rows, "zero": at(0), "ticks": [(f"{v:.1f}", at(v)) for v in ticks]})


def folds_section(run: EvaluationRun) -> Markup:
    """Render HVG Pearson of each method in each fold, with the fold's members."""
    mean = _hvg_pearson(run.scores).groupby(["fold", "method"], sort=False)["value"].mean()
    rows = []
    for fold in run.folds:
        values = [number(float(mean.get((fold.name, method), float("nan")))) for method in run.methods]
        sides = "patient-disjoint" if fold.patient_disjoint else "NOT patient-disjoint"
        rows.append([fold.name, *values, f"tests {', '.join(fold.test)}; {len(fold.train)} sections train; {sides}"])
    return render("folds.html", {"run": run, "heads": ["held out", *run.methods, "members"], "rows": rows})


def provenance_section(run: EvaluationRun) -> Markup:
    """Render sections, notes of their readers, config, seed and versions."""
    import yaml

    sections = run.metadata["cohort"]["sections"]
    values = {
        "run": run,
        "heads": ["section", "patient", "spots", "genes", "um per px"],
        "rows": [
            [
                each["section"],
                each["patient"],
                each["spots"],
                f"{each['genes']:,}",
                "unknown" if each["mpp"] is None else f"{each['mpp']:g}",
            ]
            for each in sections
        ],
        "notes": [(each["section"], " ".join(each["notes"])) for each in sections if each["notes"]],
        "penalties": "; ".join(
            f"fold {each['fold']}: penalty {each['record']['penalty']:g}"
            for each in run.metadata["results"]
            if each["method"] == "ridge" and "penalty" in each["record"]
        ),
        "versions": ", ".join(f"{name} {found}" for name, found in run.metadata["versions"].items()),
        "options": yaml.safe_dump(run.metadata["config"], sort_keys=False, allow_unicode=True),
    }
    return render("provenance.html", values)


def between(low: float, high: float, *, plus: bool = False) -> str:
    """Write an interval, or "undefined"; with `plus`, both ends carry their sign."""
    if math.isnan(low) or math.isnan(high):
        return "undefined"
    return f"{signed(low)} to {signed(high)}" if plus else f"{number(low)} to {number(high)}"


def signed(value: float) -> str:
    """Write three decimals with a sign, or "undefined"."""
    text = number(value)
    return text if text.startswith(("-", "u")) or float(text) == 0 else f"+{text}"


def _hvg_pearson(frame: Frame) -> Frame:
    return frame[(frame.gene_set == "HVG") & (frame.metric == "pearson")]
