"""Tables and pictures of a sweep: sweep.csv, plots as PNG, and one small HTML page."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.evaluation.methods.method import MAIN
from cmrcnet.evaluation.protocol.summary import number
from cmrcnet.evaluation.report.page import figure, page, table, text
from cmrcnet.evaluation.sweep.run_sweep import is_number
from cmrcnet.evaluation.sweep.sweep_plan import BASE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from cmrcnet.evaluation.sweep.run_sweep import SweepRun
    from cmrcnet.evaluation.sweep.sweep_folder import SweepFolder

SHOWN = ("HVG", "HEG")
_INK, _BAR, _BASE = "#1b3a4b", "#3a7ca5", "#b8c4cc"


def write_sweep(run: SweepRun, folder: SweepFolder) -> None:
    """Write sweep.csv, a plot for each gene set, and sweep.html into the folder.

    Parameters
    ----------
    run : SweepRun
    folder : SweepFolder
    """
    folder.write("sweep.csv", run.table.to_csv(index=False))
    plots = {name: plot(run, name) for name in SHOWN if (run.table.gene_set == name).any()}
    for name, image in plots.items():
        folder.write(f"{name}.png", image)
    folder.write("sweep.html", _html(run, plots))


def plot(run: SweepRun, gene_set: str, metric: str = "pearson") -> bytes:
    """A PNG: a line where one setting is a number, otherwise a bar for each cell, with intervals.

    Parameters
    ----------
    run : SweepRun
    gene_set, metric : str
    """
    from matplotlib.figure import Figure

    t = run.table
    rows = t[(t.gene_set == gene_set) & (t.metric == metric) & (t.method == MAIN)]
    across = _number_axis(run, rows)
    height = 3.6 if across else 1.2 + 0.32 * len(rows)
    sheet = Figure(figsize=(6.4, height), layout="constrained")
    axes = sheet.subplots()
    if across:
        _lines(axes, run, rows, across)
    else:
        _bars(axes, rows)
    what = f"mean {metric} over {gene_set}"
    (axes.set_ylabel if across else axes.set_xlabel)(what)
    n, over = (int(rows["n"].max()), rows["over"].iloc[0]) if len(rows) else (0, "patients")
    axes.set_title(f"{run.cohort}: {MAIN}; bars span 95 % over {n} {over}", fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    held = io.BytesIO()
    sheet.savefig(held, format="png", dpi=130)
    return held.getvalue()


def _number_axis(run: SweepRun, rows: pd.DataFrame) -> str | None:
    """The setting along which a line can be drawn."""
    if not run.plan.grid:
        return run.plan.keys[0] if len(run.plan.keys) == 1 and is_number(list(rows[run.plan.keys[0]])) else None
    numeric = [key for key in run.plan.keys if is_number(list(rows[key])) and rows[key].nunique() > 1]
    return max(numeric, key=lambda key: rows[key].nunique()) if numeric else None


def _lines(axes: Axes, run: SweepRun, rows: pd.DataFrame, across: str) -> None:
    others = [key for key in run.plan.keys if key != across]
    groups = rows.groupby(others, sort=False) if others else [((), rows)]
    for values, mine in groups:
        mine = mine.assign(_x=mine[across].astype(float)).sort_values("_x", kind="stable")
        label = ", ".join(f"{k.split('.')[-1]} {v}" for k, v in zip(others, values, strict=True))
        below, above = _arms(mine)
        axes.errorbar(mine["_x"], mine["value"], yerr=[below, above], marker="o", capsize=3, label=label or None)
    axes.set_xlabel(across)
    x = rows[across].astype(float)
    if (x > 0).all() and x.max() >= 20 * x.min():
        axes.set_xscale("log")
        axes.set_xticks(sorted(set(x)), [f"{v:g}" for v in sorted(set(x))])
        axes.minorticks_off()
    if others:
        axes.legend(fontsize=8, frameon=False)


def _bars(axes: Axes, rows: pd.DataFrame) -> None:
    below, above = _arms(rows)
    colours = [_BASE if cell == BASE else _BAR for cell in rows["cell"]]
    axes.barh(list(rows["cell"]), rows["value"], xerr=[below, above], color=colours, ecolor=_INK, capsize=3)
    base = rows[rows["cell"] == BASE]["value"]
    if len(base):
        axes.axvline(float(base.iloc[0]), color=_INK, linewidth=0.8, linestyle=":")
    axes.invert_yaxis()


def _arms(rows: pd.DataFrame) -> tuple[list[float], list[float]]:
    """How far the interval reaches to either side; nothing where there is none."""
    value = rows["value"].to_numpy()
    below, above = value - rows["low"].to_numpy(), rows["high"].to_numpy() - value
    return tuple(np.nan_to_num(arm).clip(0.0).tolist() for arm in (below, above))


def _html(run: SweepRun, plots: dict[str, bytes]) -> str:
    heads = ["cell", *(key for key in run.plan.keys), "method"]
    heads += [f"{name} {what}" for name in plots for what in ("Pearson", "interval", "from base")]
    heads += ["undefined HVG", "time"]
    rows = []
    for (cell, method), mine in run.table[run.table.metric == "pearson"].groupby(["cell", "method"], sort=False):
        sets = mine.set_index("gene_set")
        row: list[object] = [cell, *(mine[key].iloc[0] for key in run.plan.keys), method]
        for name in plots:
            of = sets.loc[name]
            change = (
                ""
                if math.isnan(of.difference)
                else (f"{of.difference:+.3f} [{of.difference_low:+.3f}, {of.difference_high:+.3f}]")
            )
            row += [number(of.value), f"{number(of.low)} to {number(of.high)}", change]
        of = sets.loc["HVG"]
        rows.append([*row, f"{int(of.n_undefined)}/{int(of.n_genes)}", f"{run.seconds[cell]:.0f} s"])
    stamps = dict.fromkeys(run.stamps.values())
    notes = "".join(f'<p class="stamp">{text(stamp)}</p>\n' for stamp in stamps)
    words = (
        f'<p class="kicker">CMRCNet sweep</p>\n<h1>{text(run.cohort)}</h1>\n'
        f'<p class="lead">{text(run.plan.about or "Configs that differ in a few settings, on the same folds.")}</p>\n'
        f"<p>Base config: {text(run.plan.base.name)}. Every cell is trained and scored on the same folds. "
        "“From base” is the paired difference, patient by patient.</p>\n"
    )
    pictures = "".join(
        figure(image, "png", f"Pearson over {name} by cell", f"Mean Pearson over {text(name)}.")
        for name, image in plots.items()
    )
    return page(f"CMRCNet sweep on {run.cohort}", words + pictures + table(heads, rows) + notes)
