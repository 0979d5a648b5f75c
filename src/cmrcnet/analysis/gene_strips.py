"""Genes of a attribution: what the spots measured, their mean, the prediction and its interval, a strip a gene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cmrcnet.analysis.attribution import Attribution
from cmrcnet.analysis.matched_tissue import MatchedTissue
from cmrcnet.analysis.sheet import INK, LEFT, LINE, MARK, RIGHT, SOFT, SPOT, Sheet

if TYPE_CHECKING:
    from anndata import AnnData

GENES_AT, ROW = 4.75, 0.48
"""Inches: where the genes start, and how high each is."""

_TURN = 2.399963
"""The golden angle spreads dots evenly, and the same every time."""


def draw_genes(sheet: Sheet, table: AnnData, found: Attribution, genes: Sequence[str], tissue: MatchedTissue) -> None:
    """A strip a gene: what the spots measured, their mean, the prediction and its interval; and the first matches."""
    weight, at_hand = found.spots["weight"].to_numpy(), bool(np.isfinite(tissue.expression).any())
    columns = [list(map(str, table.var_names)).index(gene) for gene in genes]
    predicted = np.asarray(table.X[found.row], np.float64)[columns]
    lower, upper = _interval(table, found.row, columns, predicted)
    everything = np.concatenate([tissue.expression.ravel(), upper, predicted, [0.1]])
    reach = 1.04 * float(np.nanmax(everything))
    strip, width = 2.4, 4.9 if at_hand else 9.6
    over = f"measured in the {len(weight)} spots, and predicted here" if at_hand else "predicted here"
    sheet.text(LEFT, GENES_AT - 0.1, "gene", 9)
    sheet.text(strip, GENES_AT - 0.1, over, 9)
    sheet.text(strip + width + 0.5, GENES_AT - 0.1, "predicted", 9, ha="center")
    if at_hand:
        sheet.text(strip + width + 1.5, GENES_AT - 0.1, "mean of spots", 9, ha="center")
        sheet.text(9.85, GENES_AT - 0.1, "measured in these matches", 9)
        first = tissue.expression[: len(tissue.patches)].T
        _table_of_values(sheet.axes(9.85, GENES_AT, RIGHT - 9.85, ROW * len(genes)), first, reach)
    for number, gene in enumerate(genes):
        top = GENES_AT + number * ROW
        sheet.text(LEFT, top + 0.19, gene, 11.5, INK, bold=True, va="center")
        sheet.text(LEFT, top + 0.37, _card(table, columns[number]), 7.6, va="center")
        axes = sheet.axes(strip, top + 0.04, width, ROW - 0.08)
        axes.set(xlim=(-0.02 * reach, reach))
        mean = _strip(axes, tissue.expression[:, number], weight, predicted[number], lower[number], upper[number])
        axes.tick_params(axis="x", labelbottom=number == len(genes) - 1, length=0, labelsize=8, colors=SOFT)
        words = f"{predicted[number]:.2f}"
        sheet.text(strip + width + 0.5, top + ROW / 2, words, 11, MARK, bold=True, ha="center", va="center")
        if at_hand:
            words = f"{mean:.2f}" if np.isfinite(mean) else "–"
            sheet.text(strip + width + 1.5, top + ROW / 2, words, 11, INK, ha="center", va="center")
    key = sheet.axes(strip, GENES_AT + ROW * len(genes) + 0.34, 4.9, 0.2)
    _legend(key, at_hand, bool(np.isfinite(lower).any()))


def _strip(axes: Any, values: np.ndarray, weight: np.ndarray, predicted: float, lower: float, upper: float) -> float:
    """Draw one gene, and give the weighted mean of the spots."""
    axes.set_ylim(-1, 1)
    axes.set_yticks([])
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.axhline(0, color=LINE, lw=1, zorder=0)
    jitter = 0.55 * np.sin(np.arange(len(values)) * _TURN)
    axes.scatter(values, jitter, s=8 + 900 * weight, color=SPOT, alpha=0.45, linewidths=0, zorder=1)
    if np.isfinite(lower):
        axes.plot([lower, upper], [0, 0], color=MARK, lw=2.2, alpha=0.45, solid_capstyle="butt", zorder=2)
    known = np.isfinite(values)
    mean = float((weight[known] * values[known]).sum() / weight[known].sum()) if known.any() else np.nan
    axes.plot([mean, mean], [-0.8, 0.8], color=INK, lw=1.8, zorder=3)
    axes.plot(predicted, 0, "D", ms=7.5, color=MARK, mec="white", mew=1, zorder=4)
    return mean


def _table_of_values(axes: Any, cells: np.ndarray, reach: float) -> None:
    """Measured values (genes, matches), shaded and written."""
    axes.imshow(np.ma.masked_invalid(cells), cmap="Purples", vmin=0, vmax=reach, aspect="auto")
    for (row, column), value in np.ndenumerate(cells):
        words = f"{value:.1f}" if np.isfinite(value) else "–"
        colour = "white" if np.isfinite(value) and value > 0.55 * reach else INK
        axes.text(column, row, words, ha="center", va="center", fontsize=8.6, color=colour)
    axes.set_xticks(range(cells.shape[1]), [str(number + 1) for number in range(cells.shape[1])])
    axes.set_yticks([])
    axes.set_xticks(np.arange(-0.5, cells.shape[1]), minor=True)
    axes.set_yticks(np.arange(-0.5, cells.shape[0]), minor=True)
    axes.grid(which="minor", color="white", lw=2)
    axes.tick_params(which="both", length=0, labelsize=8, colors=SOFT)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)


def _legend(axes: Any, at_hand: bool, interval: bool) -> None:
    """What the marks of a strip are."""
    marks = [({"marker": "D", "color": MARK, "ms": 5.5}, "the prediction")]
    if interval:
        marks.append(({"marker": "_", "color": MARK, "ms": 12, "mew": 2.2, "alpha": 0.5}, "90 % interval"))
    if at_hand:
        marks.append(({"marker": "o", "color": SPOT, "ms": 5, "alpha": 0.6}, "a measured spot"))
        marks.append(({"marker": "|", "color": INK, "ms": 9, "mew": 1.8}, "their weighted mean"))
    axes.set(xlim=(0, 1), ylim=(-1, 1))
    axes.axis("off")
    for number, (mark, words) in enumerate(marks):
        axes.plot(0.25 * number + 0.01, 0, ls="", **mark)
        axes.text(0.25 * number + 0.035, 0, words, fontsize=8.4, color=SOFT, va="center")


def _interval(table: AnnData, row: int, columns: list[int], predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if "interval_scale" not in table.obs or "interval_low" not in table.var:
        return np.full(len(columns), np.nan), np.full(len(columns), np.nan)
    factor = float(table.obs["interval_scale"].iloc[row])
    low, high = (table.var[name].to_numpy(np.float64)[columns] for name in ("interval_low", "interval_high"))
    return np.maximum(predicted + factor * low, 0), predicted + factor * high


def _card(table: AnnData, column: int) -> str:
    card = table.var.iloc[column]
    if "grade" not in card or not np.isfinite(card["reliability"]):
        return "reliability not measured"
    return f"grade {card['grade']}, validation Pearson {card['reliability']:.2f}"
