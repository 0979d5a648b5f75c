"""Genes in the report: the explorer that the page's script sorts and filters, marker signatures, and correlations."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from cmrcnet.errors import BadOption, TooFew, UnknownName
from cmrcnet.evaluation import Frame, Sparse
from cmrcnet.evaluation.methods.method import MAIN
from cmrcnet.evaluation.metrics.scoring import truth_of
from cmrcnet.evaluation.metrics.set_metrics import GeneCorrelation, gene_correlation
from cmrcnet.evaluation.report.page import render
from cmrcnet.evaluation.report.summary import first_method, number
from cmrcnet.genes.markers import MarkerList, markers, organ_of_cohort
from cmrcnet.genes.table import scaling_of
from cmrcnet.slides.table_kinds import FEATURE_WORD
from cmrcnet.uncertainty.gene_reliability import GRADES, predictability

if TYPE_CHECKING:
    from anndata import AnnData

    from cmrcnet.evaluation.protocol.evaluate import EvaluationRun

MOST_GENES = 2_000
"""Genes that the page carries; `genes.csv` holds all."""
LEAST_DETECTED = 0.2
"""Genes detected in a smaller share of spots are not shown as well predicted: one spot can make a Pearson of 1."""
NULL = "permuted-pairs"
_MOST_CORRELATED, _MOST_LABELS = 50, 60
"""HVG in the correlation figure, and genes up to which it names them."""


def gene_explorer(run: EvaluationRun) -> Markup:
    """Render grades and their counts, and the table that the page's script fills from the rows embedded here."""
    frame = gene_frame(run)
    counts = {grade: int((frame["grade"] == grade).sum()) for grade in GRADES}
    rows = _rows(run, frame)
    names = sorted({name for entry in frame.sets for name in entry.split()})
    # Closing tags inside the rows would end the element: "<" is written as its JSON escape.
    data = json.dumps(rows, separators=(",", ":"), allow_nan=False, ensure_ascii=False).replace("<", "\\u003c")
    values = {
        "run": run,
        "counted": ", ".join(f"{grade}: {counts[grade]:,}" for grade in GRADES),
        "null": f"the 95 % quantile of {NULL}" if NULL in run.methods else "0",
        "sets": [*names, "other"],
        "grades": [(grade, f"{counts[grade]:,}") for grade in GRADES],
        "data": Markup(data),
        "word": f"{FEATURE_WORD[run.protocol_info.table_kind]}s",
        "note": (
            f"{len(rows['rows']):,} of {len(frame):,} scored genes: those of named sets, then the best others, picked "
            "by their score and so optimistic; others that are detected in fewer than "
            f"{LEAST_DETECTED:.0%} of spots come "
            "last. Pearson: mean over sections, then patients where there are three or more; low and high: its 95 % "
            "interval; share: of the noise ceiling; detected: share of spots; mean and variance: of the measured "
            f"{run.protocol_info.units or 'log-expression'}; defined: sections where the correlation is defined. Other "
            "methods were scored by gene in the named sets only."
        ),
    }
    return render("genes.html", values)


def marker_table(run: EvaluationRun) -> Markup:
    """Render scores of the published signatures of the cohort's organ; empty where the organ is not known."""
    found = _markers(run)
    if found is None:
        return Markup("")
    organ, measured = found
    frame = gene_means(run, first_method(run))
    rows = []
    for name, signature in organ.signatures.items():
        mine = frame[frame.index.isin(measured[name])].sort_values("pearson", ascending=False, kind="stable")
        best = f"{mine.index[0]} {number(float(mine.pearson.iloc[0]))}" if mine.pearson.notna().any() else ""
        mean = number(float(mine.pearson.mean())) if len(mine) else "undefined"
        rows.append([name, f"{len(mine)}/{len(signature.genes)}", mean, best, signature.sources[0].cite])
    return render("markers.html", {"run": run, "organ": organ.organ, "rows": rows, "method": first_method(run)})


def gene_frame(run: EvaluationRun) -> Frame:
    """Every gene of the first method, in the order of the explorer: named sets first, each part by its Pearson.

    Indexed by gene: columns of `predictability`, and `level, variance, detected, sets` from `gene_means`.
    """
    method = first_method(run)
    patient_of = {each["section"]: each["patient"] for each in run.metadata["cohort"]["sections"]}
    null = NULL if NULL in run.methods and method != NULL else 0.0
    graded = predictability(run.genes, patient_of, method=method, null=null).set_index("gene")
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


def gene_means(run: EvaluationRun, method: str) -> Frame:
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
    listed = mine[mine.sets != ""].groupby("gene", sort=False)["sets"]
    joined = listed.agg(lambda sets: " ".join(sorted({name for entry in sets for name in entry.split()})))
    frame["sets"] = joined.reindex(frame.index).fillna("")
    return frame


def _rows(run: EvaluationRun, frame: Frame) -> dict[str, Any]:
    """Names of the columns, and the rows, three digits a number; None where undefined."""
    others = [name for name in run.methods if name != first_method(run)]
    others = [name for name in others if run.genes[run.genes.method == name].pearson.notna().any()]
    columns = [FEATURE_WORD[run.protocol_info.table_kind], "grade", "Pearson", "low", "high", "ceiling", "share"]
    columns += ["detected", "mean", "variance", "defined", "set", *others]
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


def correlation_section(run: EvaluationRun) -> Markup:
    """Render both gene-gene correlation matrices of the genes that most folds chose as HVG; empty without any."""
    genes = correlated_genes(run)
    try:
        found = gene_correlation(_pairs(run, genes), genes)
    except TooFew:
        return Markup("")
    note = (
        f"{len(genes)} HVG (those that most folds chose, measured in every section shown), all held-out spots of "
        f"{len(run.predictions)} sections, each gene's section mean subtracted. Both in the order into which the "
        "measured correlations cluster."
    )
    return render("correlation.html", {"run": run, "image": gene_correlation_png(found), "note": note})


def correlated_genes(run: EvaluationRun) -> list[str]:
    """Up to 50 HVG, those of most folds first, that every section with a prediction measured."""
    folds = [fold["gene_sets"].get("HVG", []) for fold in run.metadata["folds"]]
    chosen = Counter(gene for genes in folds for gene in genes)
    mine = run.genes[(run.genes.method == MAIN) & run.genes.section.isin(list(run.predictions))]
    everywhere = mine.groupby("gene", sort=False).section.nunique() == len(run.predictions)
    return [gene for gene, _ in chosen.most_common() if everywhere.get(gene, False)][:_MOST_CORRELATED]


def _pairs(run: EvaluationRun, genes: list[str]) -> Iterator[tuple[Sparse, np.ndarray]]:
    for name in run.predictions:
        _, truth = truth_of(run.cohort.read(name), genes, scaling_of(run.predictions[name]))
        yield truth, predicted(run.predictions[name], genes)


def predicted(table: AnnData, genes: list[str]) -> np.ndarray:
    """Predicted expression of some genes: (spots, genes) float64."""
    values: Any = table[:, genes].X
    return np.asarray(values.todense() if hasattr(values, "todense") else values, np.float64)


def cluster_order(correlation: np.ndarray) -> np.ndarray:
    """An order (genes,) of a correlation matrix (genes, genes) in which genes that go together stand together.

    Average linkage on the distance ``1 - correlation`` with the leaves in optimal order (scipy); undefined pairs count
    as uncorrelated.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(correlation) < 3:
        return np.arange(len(correlation))
    distance = 1 - np.nan_to_num(correlation, nan=0.0)
    distance = np.clip((distance + distance.T) / 2, 0, 2)
    np.fill_diagonal(distance, 0.0)
    return leaves_list(linkage(squareform(distance, checks=False), "average", optimal_ordering=True))


def gene_correlation_png(found: GeneCorrelation) -> bytes:
    """A PNG of two heat-maps side by side, both in the order into which the MEASURED correlations cluster.

    Undefined pairs are grey; the colours run from -1 to 1 in both.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    order = cluster_order(found.truth)
    colours = mpl.colormaps["RdBu_r"].with_extremes(bad="#b8b8b8")
    drawing = Figure(figsize=(9.2, 4.6), dpi=120, layout="constrained")
    FigureCanvasAgg(drawing)
    panels = drawing.subplots(1, 2)
    names = [found.genes[i] for i in order]
    shown = f"predicted\ncorrelation of correlations {found.agreement:.2f}, RMS error {found.rms:.2f}"
    for axes, values, name in zip(panels, (found.truth, found.prediction), ("measured\n", shown), strict=True):
        image = axes.imshow(values[np.ix_(order, order)], cmap=colours, vmin=-1, vmax=1, interpolation="nearest")
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_xticks([])
        labelled = range(len(names)) if len(names) <= _MOST_LABELS else []
        axes.set_yticks(list(labelled), [names[i] for i in labelled], fontsize=max(3.5, min(8, 240 / len(names))))
        axes.tick_params(length=0)
    drawing.colorbar(image, ax=panels, label="Pearson over spots", shrink=0.8)
    out = io.BytesIO()
    drawing.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
