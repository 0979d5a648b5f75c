"""Uncertainty in the report: coverage of the intervals, error of the kept spots, out-of-distribution flags.

Of each held-out section, over the genes of a set (HVG) that it measured:

- coverage: share of spots whose measured value lies in the interval, gene by gene, then the mean over genes;
- risk against coverage (El-Yaniv and Wiener 2010): predictions abstain in the order of their confidence, least first;
  the risk is the mean squared error of those that are kept, over the mean squared error of all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from cmrcnet.evaluation import Frame
from cmrcnet.evaluation.methods.method import MAIN
from cmrcnet.evaluation.metrics.scoring import truth_of
from cmrcnet.evaluation.report.page import GREY, MAIN_COLOUR, render, svg
from cmrcnet.genes.table import scaling_of
from cmrcnet.uncertainty.conformal import LEVEL, bounds

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

    from cmrcnet.evaluation.protocol.evaluate import EvaluationRun

KEPT = np.linspace(1.0, 0.3, 15)
"""Shares of the spots that are kept, for curves."""
ABSTAINED = 0.3
"""Share of abstained spots for the one number of the table."""
_SIZE = 5.2, 3.3
"""Of a figure, in inches."""


def gene_coverage(
    mean: np.ndarray,
    factor: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    truth: np.ndarray,
    limits: tuple[float, float] = (0.0, np.inf),
) -> np.ndarray:
    """Share of spots inside the interval, of each gene; NaN where a gene has no interval.

    `mean` and `truth` are (spots, genes), `factor` is (spots,), `low` and `high` (genes,): as in
    `uncertainty.conformal.bounds`, and `limits`.
    """
    lower, upper = bounds(mean, factor, low, high, limits)
    inside = ((truth >= lower) & (truth <= upper)).mean(axis=0)
    return np.where(np.isfinite(low) & np.isfinite(high), inside, np.nan)


def risk_curve(error: np.ndarray, confidence: np.ndarray, kept: np.ndarray = KEPT) -> np.ndarray:
    """Mean error of the most confident spots over the mean error of all, for each share kept (above 0 to 1).

    `error` is the mean squared error of each spot over genes, `confidence` that of each spot.
    """
    order = np.argsort(-confidence, kind="stable")
    so_far = np.cumsum(error[order]) / np.arange(1, len(error) + 1)
    rows = np.maximum(np.round(kept * len(error)).astype(int), 1) - 1
    return so_far[rows] / so_far[-1]


def risk_column(share: float) -> str:
    """Name of the column that holds the risk with this share of the spots kept."""
    return f"risk_{round(100 * share)}"


def uncertainty_scores(run: EvaluationRun, gene_set: str = "HVG") -> Frame:
    """One row a held-out section whose table says how far to believe it.

    Returns
    -------
    pandas.DataFrame
        `section, patient, gene_set, n_genes, coverage, width` (mean of the intervals), `abstained` (error of the 70 %
        most confident spots by that of all), `ood` (kind, or ""), `distance, limit, outside` (share of locations), and
        `risk_100, risk_95, ...`, the risk curve. What a table does not say is NaN. Empty where no table says anything.
    """
    import pandas as pd

    rows = []
    for section, table in run.predictions.items():
        if "interval_scale" in table.obs or "ood" in table.uns["cmrcnet"]:
            mine = run.genes[(run.genes.method == MAIN) & (run.genes.section == section)]
            genes = list(mine.gene[[gene_set in sets.split() for sets in mine.sets]])  # measured and predicted
            rows.append(_of_section(run, section, table, genes) | {"gene_set": gene_set})
    head = ["section", "patient", "gene_set", "n_genes", "coverage", "width", "abstained", "ood", "distance", "limit"]
    return pd.DataFrame(rows, columns=pd.Index([*head, "outside", *map(risk_column, KEPT)]))


def _of_section(run: EvaluationRun, section: str, table: AnnData, genes: list[str]) -> dict[str, object]:
    measured = run.cohort.read(section)
    found: dict[str, object] = {"section": section, "patient": measured.patient, "n_genes": len(genes)}
    flag = table.uns["cmrcnet"].get("ood")
    if flag is not None:
        found |= {"ood": str(flag["kind"]), "distance": float(flag["distance"]), "limit": float(flag["limit"])}
        found["outside"] = float(1 - table.obs["in_distribution"].mean())
    if "interval_scale" not in table.obs or not genes:
        return found
    mine: Any = table[:, genes]
    truth = np.asarray(truth_of(measured, genes, scaling_of(table))[1].todense(), np.float64)
    mean, factor = np.asarray(mine.X, np.float64), mine.obs["interval_scale"].to_numpy(np.float64)
    low, high = (mine.var[name].to_numpy(np.float64) for name in ("interval_low", "interval_high"))
    covered = gene_coverage(mean, factor, low, high, truth, scaling_of(table).limits)
    lower, upper = bounds(mean, factor, low, high, scaling_of(table).limits)
    found["n_genes"] = int(np.isfinite(covered).sum())
    if found["n_genes"]:
        found |= {"coverage": float(np.nanmean(covered)), "width": float(np.nanmean(upper - lower))}
    error, confidence = ((truth - mean) ** 2).mean(axis=1), mine.obs["confidence"].to_numpy(np.float64)
    found["abstained"] = float(risk_curve(error, confidence, np.array([1 - ABSTAINED]))[0])
    risks = risk_curve(error, confidence)
    return found | {risk_column(share): float(risk) for share, risk in zip(KEPT, risks, strict=True)}


def calibration_section(run: EvaluationRun) -> Markup:
    """Render coverage, the risk-coverage curve and flags of the held-out sections; empty where no table has them."""
    frame = uncertainty_scores(run)
    if not len(frame):
        return Markup("")
    drawn = frame["coverage"].notna().any()
    heads = ["section", "patient", "HVG", "coverage", "interval width", f"error after abstaining from {ABSTAINED:.0%}"]
    heads += ["out of distribution", "distance / allowed", "locations outside"]
    rows = [
        [
            row.section,
            row.patient,
            row.n_genes,
            _or_none(row.coverage, ".1%"),
            _or_none(row.width, ".2f"),
            f"{_or_none(row.abstained, '.2f')} times",
            "" if row.ood != row.ood else row.ood or "no",
            f"{row.distance:.0f} / {row.limit:.0f}",
            _or_none(row.outside, ".1%"),
        ]
        for row in frame.itertuples()
    ]
    first = next(iter(run.predictions.values())).uns["cmrcnet"]  # folds differ in numbers only
    values = {
        "run": run,
        "statement": _statement(frame),
        "basis": (
            f"In the first fold: {first.get('intervals', '')} The width of an interval grows with the disagreement of "
            "neighbours and heads, with the distance of the neighbours and with the predicted expression, so locations "
            "of low expression often have narrow intervals."
        ),
        "coverage": coverage_svg(frame) if drawn else b"",
        "risk": risk_svg(frame) if drawn else b"",
        "heads": heads,
        "rows": rows,
    }
    return render("calibration.html", values)


def coverage_svg(frame: Frame) -> bytes:
    """A dot a section, beside the nominal level."""
    known = frame[frame["coverage"].notna()]

    def draw(axes: Axes) -> None:
        rows = np.arange(len(known))[::-1]
        axes.axvspan(LEVEL - 0.05, LEVEL + 0.05, color="#f1e6f4", lw=0, zorder=0)
        axes.axvline(LEVEL, color=MAIN_COLOUR, lw=1, ls=(0, (4, 3)), zorder=1)
        axes.plot(known["coverage"], rows, "o", color=MAIN_COLOUR, ms=6, zorder=2)
        axes.set_yticks(rows, [name if len(name) <= 16 else f"{name[:15]}…" for name in map(str, known["section"])])
        axes.set_ylim(-0.7, len(known) - 0.3)
        axes.set_xlim(min(0.7, float(known["coverage"].min()) - 0.03), 1.0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.tick_params(axis="y", length=0)
        axes.set_title(f"Measured values inside their {LEVEL:.0%} interval", fontsize=10.5, loc="left")
        axes.set_xlabel("share of spots, mean over HVG")

    return svg(draw, _SIZE)


def risk_svg(frame: Frame) -> bytes:
    """Error of the spots that are kept, over the error of all, against the share of abstained spots."""
    curves = frame[[risk_column(share) for share in KEPT]].to_numpy(np.float64)
    curves = curves[np.isfinite(curves).all(axis=1)]
    mean, abstained = curves.mean(axis=0), 1 - KEPT
    at = float(np.interp(ABSTAINED, abstained, mean))

    def draw(axes: Axes) -> None:
        axes.axhline(1, color="#5a6675", lw=1, ls=(0, (4, 3)))
        axes.plot(abstained, curves.T, color=GREY, lw=1, alpha=0.8)
        axes.plot(abstained, mean, color=MAIN_COLOUR, lw=2.2)
        axes.axvline(ABSTAINED, color="#dcc4e3", lw=1, zorder=0)
        axes.annotate(
            f"{at:.2f}", (ABSTAINED, at), xytext=(6, 6), textcoords="offset points", color=MAIN_COLOUR, weight="bold"
        )
        axes.set_title("Error without the least certain spots", fontsize=10.5, loc="left")
        axes.set_xlabel("share abstained; grey: one section, colour: mean")
        axes.set_ylabel("error, over that of all spots")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, float(abstained.max()))

    return svg(draw, _SIZE)


def _statement(frame: Frame) -> str:
    sentences = []
    covered = frame["coverage"].dropna()
    if len(covered):
        sentences.append(
            f"Intervals at the {LEVEL:.0%} level contain {covered.mean():.1%} of the measured values of HVG on "
            f"sections that took no part in training ({covered.min():.1%} to {covered.max():.1%} by section)."
        )
        change = frame["abstained"].mean() - 1
        word = "lowers" if change < 0 else "raises"
        sentences.append(
            f"Abstaining from the least certain {ABSTAINED:.0%} of spots {word} the squared error by {abs(change):.0%}."
        )
    flags = frame["ood"].dropna()
    if len(flags):
        sentences.append(
            f"{int((flags != '').sum())} of {len(flags)} held-out sections were flagged as out of distribution, and "
            f"{frame['outside'].mean():.1%} of locations count as outside. In a cohort of one kind, all of these are "
            "false positives."
        )
    return " ".join(sentences)


def _or_none(value: float, form: str) -> str:
    return format(value, form) if np.isfinite(value) else "none"
