"""Methods in the report: one row each with intervals and paired differences, and every other metric folded away."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cmrcnet.evaluation.methods.method import MAIN
from cmrcnet.evaluation.metrics.intervals import intervals, paired_differences
from cmrcnet.evaluation.protocol.summary import number
from cmrcnet.evaluation.report.page import folded, stamp_line, table, text

if TYPE_CHECKING:
    from cmrcnet.evaluation.protocol.evaluation_run import EvaluationRun

_SETS = ("HVG", "HEG")
_ABOUT_METRICS = {
    "pearson": "correlation over the spots of a section; higher is better",
    "spearman": "the same of ranks",
    "pooled_pearson": "correlation over all test spots of a fold at once",
    "ceiling": "the mean correlation that the noise of the counts allows; a property of the data",
    "pearson_share": "Pearson as a share of that ceiling",
    "mse": "mean squared error of log-expression; lower is better",
    "mae": "mean absolute error; lower is better",
    "r2": "explained variance; below 0 is worse than the gene's mean in the section",
    "variance_ratio": "predicted by measured variance; below 1 is too smooth",
    "detection_auc": "telling spots with the gene from spots without; 0.5 is chance",
    "ssim": "structural similarity of the maps",
    "moran_error": "distance of Moran's I, predicted from measured; lower is better",
    "gene_gene_error": "error of gene-gene correlations; lower is better",
    "gene_gene_agreement": "correlation of gene-gene correlations",
    "svg_recall": "share of the most spatially variable genes found",
}

_SPOKEN = {
    "pearson_share": "share of ceiling", "detection_auc": "detection AUC", "r2": "R2", "mse": "MSE", "mae": "MAE",
    "ssim": "SSIM", "svg_recall": "SVG recall", "pearson": "Pearson", "spearman": "Spearman",
    "pooled_pearson": "pooled Pearson",
}  # fmt: skip


def first_method(run: EvaluationRun) -> str:
    """The method that the page is about: CMRCNet, or the first where it was not run."""
    return MAIN if MAIN in run.methods else next(iter(run.methods))


def lead(run: EvaluationRun) -> str:
    """The two comparisons that a reviewer asks for first: with ridge on the same features, and with the null."""
    main = first_method(run)
    beside = [name for name in ("ridge", "permuted-pairs") if name in run.methods and name != main]
    if not beside:
        return ""
    gaps = paired_differences(run.scores, main, "HVG", seed=run.facts["seed"]).set_index("other")
    said = [
        f"minus {name}: {signed(gap['difference'])} ({between(gap['low'], gap['high'], plus=True)}), higher in "
        f"{int(gap['higher_in'])} of {int(gap['n'])} {gap['unit']}s"
        for name, gap in ((name, gaps.loc[name]) for name in beside)
    ]
    share = run.mean(main, "HVG", "pearson_share")
    ceiling = "" if math.isnan(share) else f" It is {share:.0%} of what the noise of the counts allows."
    words = f"{main} {'; '.join(said)} (paired HVG Pearson, {gaps['note'].iloc[0]}).{ceiling}"
    return f'<p class="soft">{text(words)}</p>\n'


def methods_table(run: EvaluationRun) -> str:
    """Methods with HVG and HEG Pearson, intervals, the paired difference, the share of the ceiling, and time."""
    main, seed = first_method(run), run.facts["seed"]
    known = set(run.scores.gene_set)
    sets = [name for name in _SETS if name in known]
    means = {name: intervals(run.scores, name, seed=seed).set_index("method") for name in sets}
    gaps = paired_differences(run.scores, main, sets[0], seed=seed).set_index("other")
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
        row += ["undefined" if math.isnan(share) else f"{share:.0%}", f"{_seconds(run, method):.0f} s"]
        rows.append(row)
    heads = ["method"] + [head for name in sets for head in (f"{name} Pearson", "95 % interval")]
    heads += [f"{main} minus it, {sets[0]}", "95 % interval", "higher in", "share of ceiling", "time"]
    said = (
        f"{means[sets[0]]['note'].iloc[0]}. “{main} minus it” is paired: both on the same "
        f"{gaps['unit'].iloc[0] if len(gaps) else 'patient'}s; “higher in” counts those in which {main} is ahead. "
        f"Share of ceiling: {sets[0]} Pearson by what the noise of the counts allows. Time: fit, predict and score, "
        "all folds."
    )
    about = "".join(f"<li><b>{text(name)}</b>: {text(sentence)}.</li>" for name, sentence in run.methods.items())
    return (
        table(heads, rows, identity="methods", main_row=list(run.methods).index(main))
        + stamp_line(run, said)
        + folded("What each method is", f'<ul class="plain">{about}</ul>')
    )


def metrics_tables(run: EvaluationRun) -> str:
    """Every metric of every gene set, a table a set, folded."""
    summary = run.summary()
    main_row = list(run.methods).index(first_method(run))
    parts = []
    for name in dict.fromkeys(summary.gene_set):
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
        heads = ["method", *(_spoken(metric) for metric in metrics), "undefined"]
        parts.append(f"<h3>{text(name)}</h3>\n{table(heads, rows, main_row=main_row)}")
        parts.append(stamp_line(run, "“undefined” counts gene-section pairs without a Pearson, over all folds."))
    words = "".join(
        f"<li><b>{text(_spoken(metric))}</b>: {text(_ABOUT_METRICS[metric])}.</li>"
        for metric in dict.fromkeys(summary.metric)
        if metric in _ABOUT_METRICS
    )
    return folded("All other metrics, by gene set", f'<ul class="plain">{words}</ul>\n{"".join(parts)}')


def between(low: float, high: float, *, plus: bool = False) -> str:
    """An interval, or "undefined"; with `plus`, both ends carry their sign."""
    if math.isnan(low) or math.isnan(high):
        return "undefined"
    return f"{signed(low)} to {signed(high)}" if plus else f"{number(low)} to {number(high)}"


def signed(value: float) -> str:
    """Three decimals with a sign, or "undefined"."""
    said = number(value)
    return said if said.startswith(("-", "u")) or float(said) == 0 else f"+{said}"


def _seconds(run: EvaluationRun, method: str) -> float:
    return sum(part["seconds"] for part in run.facts["parts"] if part["method"] == method)


def _spoken(metric: str) -> str:
    return _SPOKEN.get(metric, metric.replace("_", " "))
