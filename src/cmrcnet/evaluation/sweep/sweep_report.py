"""Tables and pictures of a sweep and of a transfer: CSV, plots as PNG, and one small HTML page each."""

from __future__ import annotations

import io
import math
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.evaluation import Frame
from cmrcnet.evaluation.methods.method import MAIN
from cmrcnet.evaluation.report.page import render
from cmrcnet.evaluation.report.summary import number
from cmrcnet.evaluation.sweep.sweep_plan import BASE
from cmrcnet.storage.hashing import write_sealed
from cmrcnet.storage.names import guard_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cmrcnet.evaluation.sweep.run_sweep import SweepFolder, SweepRun
    from cmrcnet.evaluation.sweep.transfer import TransferRun

SHOWN = ("HVG", "HEG")
_INK, _BAR, _BASE = "#1b3a4b", "#3a7ca5", "#b8c4cc"


def write_sweep(run: SweepRun, folder: SweepFolder) -> None:
    """Write sweep.csv, a plot for each gene set, and sweep.html into the folder; then finish it."""
    folder.write("sweep.csv", guard_table(run.table).to_csv(index=False))
    plots = {name: plot(run, name) for name in SHOWN if (run.table.gene_set == name).any()}
    for name, image in plots.items():
        folder.write(f"{name}.png", image)
    folder.write("sweep.html", _html(run, plots))
    write_sealed(folder.working / folder.last, {"format": folder.format, **run.metadata})
    folder.finish()


def plot(run: SweepRun, gene_set: str, metric: str = "pearson") -> bytes:
    """A PNG: a line where one setting is a number, otherwise a bar for each trial, with intervals."""
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
    axes.set_title(f"{run.cohort}: {MAIN}; bars: t interval over {n} {over}", fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    out = io.BytesIO()
    sheet.savefig(out, format="png", dpi=130)
    return out.getvalue()


def _number_axis(run: SweepRun, rows: Frame) -> str | None:
    """The setting along which a line can be drawn."""
    values = {}
    for key in run.plan.keys if run.plan.grid or len(run.plan.keys) == 1 else ():
        with suppress(ValueError):  # a line has a meaning only through finite numbers
            if np.isfinite([float(word) for word in rows[key]]).all():
                values[key] = rows[key].nunique()
    if run.plan.grid:
        values = {key: different for key, different in values.items() if different > 1}
    return max(values, key=values.__getitem__, default=None)


def _lines(axes: Axes, run: SweepRun, rows: Frame, across: str) -> None:
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


def _bars(axes: Axes, rows: Frame) -> None:
    below, above = _arms(rows)
    colours = [_BASE if trial == BASE else _BAR for trial in rows["trial"]]
    axes.barh(list(rows["trial"]), rows["value"], xerr=[below, above], color=colours, ecolor=_INK, capsize=3)
    base = rows[rows["trial"] == BASE]["value"]
    if len(base):
        axes.axvline(float(base.iloc[0]), color=_INK, linewidth=0.8, linestyle=":")
    axes.invert_yaxis()


def _arms(rows: Frame) -> tuple[list[float], list[float]]:
    """How far the interval reaches to either side; nothing where there is none."""
    value = rows["value"].to_numpy()
    below, above = value - rows["low"].to_numpy(), rows["high"].to_numpy() - value
    return tuple(np.nan_to_num(arm).clip(0.0).tolist() for arm in (below, above))


def write_transfer(run: TransferRun, folder: SweepFolder) -> None:
    """Write transfer.csv and transfer.html into the folder; then finish it."""
    heads = ["test", "method", "set", "transfer", "95 % over patients", "inside test", "drop", "95 %"]
    heads += [f"inside {run.metadata['train']}", "undefined"]
    rows = [
        [
            row.test,
            row.method,
            row.gene_set,
            number(row.transfer),
            _between(row.low, row.high),
            number(row.inside_test),
            number(row.drop),
            _between(row.drop_low, row.drop_high),
            number(row.inside_train),
            f"{row.n_undefined:,}/{row.n_genes:,}",
        ]
        for row in run.table[run.table.metric == "pearson"].itertuples()
    ]
    title = f"CMRCNet transfer from {run.metadata['train']}"
    folder.write("transfer.csv", guard_table(run.table).to_csv(index=False))
    folder.write("transfer.html", render("transfer.html", {"title": title, "run": run, "heads": heads, "rows": rows}))
    write_sealed(folder.working / folder.last, {"format": folder.format, **run.metadata})
    folder.finish()


def _between(low: float, high: float) -> str:
    return "one patient" if math.isnan(low) else f"{low:.3f} to {high:.3f}"


def _html(run: SweepRun, plots: dict[str, bytes]) -> str:
    heads = ["trial", *(key for key in run.plan.keys), "method"]
    heads += [f"{name} {what}" for name in plots for what in ("Pearson", "interval", "from base")]
    heads += ["undefined HVG", "time"]
    rows = []
    for (trial, method), mine in run.table[run.table.metric == "pearson"].groupby(["trial", "method"], sort=False):
        sets = mine.set_index("gene_set")
        row: list[object] = [trial, *(mine[key].iloc[0] for key in run.plan.keys), method]
        for name in plots:
            of = sets.loc[name]
            change = (
                ""
                if math.isnan(of.difference)
                else (f"{of.difference:+.3f} [{of.difference_low:+.3f}, {of.difference_high:+.3f}]")
            )
            row += [number(of.value), f"{number(of.low)} to {number(of.high)}", change]
        of = sets.loc["HVG"]
        rows.append([*row, f"{int(of.n_undefined)}/{int(of.n_genes)}", f"{run.seconds[trial]:.0f} s"])
    values = {
        "title": f"CMRCNet sweep on {run.cohort}",
        "run": run,
        "plots": plots,
        "heads": heads,
        "rows": rows,
        "protocols": list(dict.fromkeys(run.protocols.values())),
    }
    return render("sweep.html", values)
