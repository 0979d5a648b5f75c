"""The report on trust: do the intervals hold what they promise, does refusing help, and did sound sections alarm?"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.evaluation.metrics.trust_scores import KEPT, REFUSED, risk_column, trust_scores
from cmrcnet.evaluation.report.page import figure, stamp_line, table, text
from cmrcnet.uncertainty.conformal import LEVEL

if TYPE_CHECKING:
    import pandas as pd

    from cmrcnet.evaluation.protocol.evaluation_run import EvaluationRun

_MAIN, _ONE, _SOFT = "#7a2e8e", "#9aa4b0", "#5a6675"


def trust_report(run: EvaluationRun) -> str:
    """Coverage, the risk-coverage curve and alarms of the held-out sections; empty where no table says any of it."""
    frame = trust_scores(run)
    if not len(frame):
        return ""
    parts = [f"<p>{text(_verdict(frame))}</p>\n"]
    parts += [f'<p class="soft">{text(_rests_on(run))}</p>\n']
    if frame["coverage"].notna().any():
        pictures = [
            figure(coverage_svg(frame), "svg+xml", "Coverage of the intervals on each held-out section", ""),
            figure(risk_svg(frame), "svg+xml", "Error of the spots that are kept against their share", ""),
        ]
        parts.append(f'<div class="pair">\n{"".join(pictures)}</div>\n')
    parts.append(_table(run, frame))
    return "".join(parts)


def coverage_svg(frame: pd.DataFrame) -> bytes:
    """A dot a section, beside the share that was promised."""
    known = frame[frame["coverage"].notna()]
    with _style():
        drawing, axes = _canvas()
        rows = np.arange(len(known))[::-1]
        axes.axvspan(LEVEL - 0.05, LEVEL + 0.05, color="#f1e6f4", lw=0, zorder=0)
        axes.axvline(LEVEL, color=_MAIN, lw=1, ls=(0, (4, 3)), zorder=1)
        axes.plot(known["coverage"], rows, "o", color=_MAIN, ms=6, zorder=2)
        axes.set_yticks(rows, [_short(name) for name in known["section"]])
        axes.set_ylim(-0.7, len(known) - 0.3)
        axes.set_xlim(min(0.7, float(known["coverage"].min()) - 0.03), 1.0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.tick_params(axis="y", length=0)
        axes.set_title(f"Measured values inside their {LEVEL:.0%} interval", fontsize=10.5, loc="left")
        axes.set_xlabel("share of spots, mean over HVG")
        return _svg(drawing)


def risk_svg(frame: pd.DataFrame) -> bytes:
    """Error of the spots that are kept, over the error of all, against the share that is refused."""
    curves = frame[[risk_column(share) for share in KEPT]].to_numpy(np.float64)
    curves = curves[np.isfinite(curves).all(axis=1)]
    refused = 1 - KEPT
    with _style():
        drawing, axes = _canvas()
        axes.axhline(1, color=_SOFT, lw=1, ls=(0, (4, 3)))
        axes.plot(refused, curves.T, color=_ONE, lw=1, alpha=0.8)
        axes.plot(refused, curves.mean(axis=0), color=_MAIN, lw=2.2)
        axes.axvline(REFUSED, color="#dcc4e3", lw=1, zorder=0)
        at = float(np.interp(REFUSED, refused, curves.mean(axis=0)))
        axes.annotate(f"{at:.2f}", (REFUSED, at), xytext=(6, 6), textcoords="offset points", color=_MAIN, weight="bold")
        axes.set_title("Error when the least certain spots are refused", fontsize=10.5, loc="left")
        axes.set_xlabel("share refused; grey: one section, colour: mean")
        axes.set_ylabel("error, over that of all spots")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, float(refused.max()))
        return _svg(drawing)


def _verdict(frame: pd.DataFrame) -> str:
    said = []
    covered = frame["coverage"].dropna()
    if len(covered):
        said.append(
            f"Intervals that promise {LEVEL:.0%} held {covered.mean():.1%} of the measured values of HVG on sections "
            f"that took no part in training ({covered.min():.1%} to {covered.max():.1%} by section)."
        )
        change = frame["refused"].mean() - 1
        word = "lowers" if change < 0 else "raises"
        said.append(f"Refusing the least certain {REFUSED:.0%} of spots {word} the squared error by {abs(change):.0%}.")
    alarms = frame["alarm"].dropna()
    if len(alarms):
        raised = int((alarms != "").sum())
        said.append(
            f"The domain alarm was raised on {raised} of {len(alarms)} held-out sections, and "
            f"{frame['outside'].mean():.1%} of locations count as outside. Where the cohort is of one "
            f"kind, all of these "
            "are false alarms."
        )
    return " ".join(said)


def _rests_on(run: EvaluationRun) -> str:
    """The sentence of one table on its calibration; folds differ in numbers only."""
    first = next(iter(run.predictions.values())).uns["cmrcnet"]
    about = (
        "An interval is as wide as the place is hard (how much neighbours and heads disagree, how similar the "
        "neighbours are, how much is expressed), so a location of little expression is often a certain one."
    )
    return f"In the first fold: {first.get('intervals', '')} {about}"


def _table(run: EvaluationRun, frame: pd.DataFrame) -> str:
    heads = ["section", "patient", "HVG", "coverage", "interval width", f"error after refusing {REFUSED:.0%}"]
    heads += ["alarm", "distance / allowed", "locations outside"]
    rows = [
        [
            row.section,
            row.patient,
            row.n_genes,
            _percent(row.coverage),
            _number(row.width),
            f"{_number(row.refused)} times",
            "" if row.alarm != row.alarm else row.alarm or "none",
            f"{row.distance:.0f} / {row.limit:.0f}",
            _percent(row.outside),
        ]
        for row in frame.itertuples()
    ]
    said = "Intervals and alarms of a fold are calibrated on its training sections alone. Width in log-expression."
    return table(heads, rows) + stamp_line(run, said)


def _percent(value: float) -> str:
    return f"{value:.1%}" if np.isfinite(value) else "none"


def _number(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "none"


def _short(name: object, most: int = 16) -> str:
    word = str(name)
    return word if len(word) <= most else f"{word[: most - 1]}…"


def _style():
    import matplotlib as mpl

    return mpl.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "cmrcnet", "font.family": "sans-serif", "font.size": 10}
    )


def _canvas():
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(5.2, 3.3), layout="constrained")
    FigureCanvasSVG(drawing)
    axes = drawing.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return drawing, axes


def _svg(drawing) -> bytes:
    out = io.BytesIO()
    drawing.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
