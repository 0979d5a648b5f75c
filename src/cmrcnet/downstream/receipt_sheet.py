"""One sheet that explains one predicted place: its patch, the measured tissue behind it, and what that tissue says."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cmrcnet.downstream.matched_tissue import MatchedTissue, matched_tissue
from cmrcnet.downstream.receipt import Receipt, receipt
from cmrcnet.errors import TooFew, UnknownName
from cmrcnet.tissue.section import Cohort
from cmrcnet.tissue.slide import Slide

if TYPE_CHECKING:
    from anndata import AnnData

SHOWN = 8
"""Matches whose patches and values are shown."""
MOST_GENES = 8

_INK, _SOFT, _LINE, _WASH, _MARK, _WARN = "#1c2430", "#5a6675", "#dde3ea", "#f5f7fa", "#7a2e8e", "#8a4b00"
_VOTES = ("#7a2e8e", "#2a7f9e", "#c0792a", "#4b8b3b", "#9a3b4f", "#5f6b7a")
_SPOT = "#7d8896"
_WIDE, _LEFT, _RIGHT, _DPI = 14.0, 0.5, 13.5, 130
_GENES_AT, _ROW = 4.75, 0.48
"""Inches: where the genes start, and how high each is."""


def receipt_sheet(
    table: AnnData,
    place: str,
    *,
    genes: Sequence[str] | None = None,
    cohort: Cohort | None = None,
    slide: Slide | None = None,
    kind: str = "png",
) -> bytes:
    """Draw the sheet.

    Parameters
    ----------
    table : AnnData
        Prediction table.
    place : str
        Name of the place.
    genes : sequence of str, optional
        At most 8 are shown; the best graded of the table when left out.
    cohort : Cohort, optional
        That the bank was built from: for the patches of the matches and their measured values.
    slide : Slide, optional
        That was predicted, where the cohort does not hold it.
    kind : {"png", "pdf", "svg"}

    Returns
    -------
    bytes
        Of the picture.

    Raises
    ------
    UnknownName
        No such place, or no such gene.
    DamagedArtefact
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = receipt(table, place)
    chosen = _chosen_genes(table, genes)
    tissue = matched_tissue(table, found, chosen, cohort=cohort, slide=slide, shown=SHOWN)
    foot = _foot_lines(table, found, tissue)
    with mpl.rc_context({"font.family": "sans-serif", "font.size": 10, "text.color": _INK, "svg.fonttype": "none"}):
        high = _GENES_AT + _ROW * len(chosen) + 0.95 + 0.24 * len(foot)
        drawing = Figure(figsize=(_WIDE, high), dpi=_DPI, facecolor="white")
        FigureCanvasAgg(drawing)
        sheet = _Sheet(drawing, high)
        _head(sheet, table, found)
        _place(sheet, table, found, tissue)
        _matches(sheet, found, tissue)
        _votes(sheet, found)
        _values(sheet, table, found, chosen, tissue)
        sheet.text(_LEFT, high - 0.22, "\n".join(foot), fontsize=9.6, linespacing=1.5, va="bottom")
        out = io.BytesIO()
        drawing.savefig(out, format=kind, metadata={"Software": None} if kind == "png" else None)
    return out.getvalue()


class _Sheet:
    """A page measured in inches from its upper left corner."""

    def __init__(self, drawing: Any, high: float) -> None:
        self._drawing, self._high = drawing, high

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Axes of a size, at a place."""
        return self._drawing.add_axes(
            (left / _WIDE, 1 - (top + height) / self._high, width / _WIDE, height / self._high)
        )

    def text(self, left: float, top: float, words: str, **style: Any) -> None:
        """Words with their baseline at a place."""
        self._drawing.text(left / _WIDE, 1 - top / self._high, words, **style)


def _chosen_genes(table: AnnData, genes: Sequence[str] | None) -> list[str]:
    known = list(map(str, table.var_names))
    if genes is None:
        rank = table.var["reliability"].to_numpy(np.float64)
        if np.isfinite(rank).any():
            if "grade" in table.var:
                rank = np.where(table.var["grade"].isin(["A", "B", "C"]), rank, rank - 2)
            return [known[i] for i in np.argsort(-np.nan_to_num(rank, nan=-9), kind="stable")[:MOST_GENES]]
        return [
            known[i] for i in np.argsort(-np.nan_to_num(np.asarray(table.X).var(axis=0)), kind="stable")[:MOST_GENES]
        ]
    unknown = [gene for gene in genes if gene not in known]
    if unknown:
        raise UnknownName("gene in the prediction", unknown[0], known)
    if not genes:
        raise TooFew("genes to show", 0, 1, "name some, or leave them out")
    return list(dict.fromkeys(genes))[:MOST_GENES]


def _head(sheet: _Sheet, table: AnnData, found: Receipt) -> None:
    told, obs = table.uns["cmrcnet"], table.obs.iloc[found.row]
    sheet.text(_LEFT, 0.42, "RECEIPT OF ONE PREDICTION", color=_MARK, fontsize=9.5, weight="bold")
    sheet.text(_LEFT, 0.80, f"{found.place} on {told['slide']}", fontsize=19, weight="bold")
    sections, patients = found.spots["section"].nunique(), len(found.votes)
    facts = [
        f"{len(found.spots)} measured spots of {sections} section{'s' * (sections != 1)}, "
        f"{patients} patient{'s' * (patients != 1)}",
        f"mean similarity {found.spots['similarity'].mean():.2f}",
    ]
    if np.isfinite(obs["confidence"]):
        facts.append(f"confidence {obs['confidence']:.2f} (looks easier than {obs['confidence']:.0%} of held-in spots)")
    sheet.text(_LEFT, 1.09, "   ·   ".join(facts), color=_SOFT, fontsize=10.5)
    warnings = []
    if not obs.get("in_domain", 1):
        warnings.append("outside what the model knows")
    if obs.get("refused", 0):
        warnings.append("refused: too uncertain")
    if warnings:
        box = {"boxstyle": "round,pad=0.45", "facecolor": "#fff4e0", "edgecolor": "#f0d3a2"}
        words = "  ·  ".join(warnings)
        sheet.text(_RIGHT, 0.74, words, color=_WARN, fontsize=10.5, weight="bold", ha="right", bbox=box)


def _place(sheet: _Sheet, table: AnnData, found: Receipt, tissue: MatchedTissue) -> None:
    """The place on its slide, and its patch."""
    side = 1.85
    axes = sheet.axes(_LEFT, 1.62, side, side)
    library = next(iter(table.uns["spatial"].values()))
    image = np.asarray(library["images"]["hires"])[..., :3]
    scale = float(library["scalefactors"]["tissue_hires_scalef"])
    x, y = np.asarray(table.obsm["spatial"][found.row], np.float64) * scale
    axes.imshow(image)
    axes.set_anchor("NW")
    axes.plot(x, y, "o", ms=11, mfc="none", mec="white", mew=3.4)
    axes.plot(x, y, "o", ms=11, mfc="none", mec=_MARK, mew=1.8)
    _frame(axes)
    sheet.text(_LEFT, 1.54, "where it is", fontsize=9.5, color=_SOFT)
    axes = sheet.axes(_LEFT + side + 0.25, 1.62, side, side)
    told = table.uns["cmrcnet"]
    shows = int(told["patch_px"]) * float(told["patch_um_per_px"])
    _patch(axes, tissue.patch, "the slide is\nnot at hand")
    for spine in axes.spines.values():
        spine.set(color=_MARK, linewidth=2.2)
    words = f"what is seen there ({shows:.0f} µm)"
    sheet.text(_LEFT + side + 0.25, 1.54, words, fontsize=9.5, color=_MARK, weight="bold")


def _matches(sheet: _Sheet, found: Receipt, tissue: MatchedTissue) -> None:
    left, gap = 4.85, 0.1
    side = (_RIGHT - left + gap) / SHOWN - gap
    sheet.text(left, 1.54, f"the {len(tissue.patches)} measured spots that count most", fontsize=9.5, color=_SOFT)
    for number, patch in enumerate(tissue.patches):
        spot, at = found.spots.iloc[number], left + number * (side + gap)
        _patch(sheet.axes(at, 1.62, side, side), patch, "no\npicture")
        said = f"{number + 1}. {_cut(spot['section'])}\npatient {_cut(spot['patient'], 9)}\n{_cut(spot['barcode'])}\n"
        said += f"similarity {spot['similarity']:.2f}\nweight {spot['weight']:.1%}"
        sheet.text(at, 1.62 + side + 0.07, said, va="top", fontsize=7.6, linespacing=1.35, color=_SOFT)


def _votes(sheet: _Sheet, found: Receipt) -> None:
    sheet.text(_LEFT, 3.86, "votes per patient, by weight", fontsize=9.5, color=_SOFT)
    axes = sheet.axes(_LEFT, 3.95, _RIGHT - _LEFT, 0.3)
    left = 0.0
    for number, (patient, share) in enumerate(found.votes.items()):
        colour = _VOTES[number] if number < len(_VOTES) else "#c3cad3"
        axes.barh(0, share, left=left, color=colour, height=1, edgecolor="white", linewidth=1.5)
        words = f"patient {_cut(patient, 10)}, {share:.0%}"
        if share > 0.012 * len(words):
            axes.text(left + share / 2, 0, words, ha="center", va="center", color="white", fontsize=9.5)
        elif share > 0.04:
            axes.text(left + share / 2, 0, _cut(patient, 4), ha="center", va="center", color="white", fontsize=8.5)
        left += share
    axes.set(xlim=(0, 1), ylim=(-0.5, 0.5))
    axes.axis("off")


def _values(sheet: _Sheet, table: AnnData, found: Receipt, genes: list[str], tissue: MatchedTissue) -> None:
    """A strip a gene: what the spots measured, their mean, the prediction and its interval; and the first matches."""
    weight, at_hand = found.spots["weight"].to_numpy(), bool(np.isfinite(tissue.expression).any())
    columns = [list(map(str, table.var_names)).index(gene) for gene in genes]
    predicted = np.asarray(table.X[found.row], np.float64)[columns]
    lower, upper = _interval(table, found.row, columns, predicted)
    everything = np.concatenate([tissue.expression.ravel(), upper, predicted, [0.1]])
    reach = 1.04 * float(np.nanmax(everything))
    strip, width = 2.4, 4.9 if at_hand else 9.6
    over = f"measured in the {len(weight)} spots, and predicted here" if at_hand else "predicted here"
    head = {"fontsize": 9, "color": _SOFT}
    sheet.text(_LEFT, _GENES_AT - 0.1, "gene", **head)
    sheet.text(strip, _GENES_AT - 0.1, over, **head)
    sheet.text(strip + width + 0.5, _GENES_AT - 0.1, "predicted", ha="center", **head)
    if at_hand:
        sheet.text(strip + width + 1.5, _GENES_AT - 0.1, "mean of spots", ha="center", **head)
        sheet.text(9.85, _GENES_AT - 0.1, "measured in these matches", **head)
        first = tissue.expression[: len(tissue.patches)].T
        _table_of_values(sheet.axes(9.85, _GENES_AT, _RIGHT - 9.85, _ROW * len(genes)), first, reach)
    for number, gene in enumerate(genes):
        top = _GENES_AT + number * _ROW
        sheet.text(_LEFT, top + 0.19, gene, fontsize=11.5, weight="bold", va="center")
        sheet.text(_LEFT, top + 0.37, _card(table, columns[number]), fontsize=7.6, color=_SOFT, va="center")
        axes = sheet.axes(strip, top + 0.04, width, _ROW - 0.08)
        axes.set(xlim=(-0.02 * reach, reach))
        mean = _strip(axes, tissue.expression[:, number], weight, predicted[number], lower[number], upper[number])
        axes.tick_params(axis="x", labelbottom=number == len(genes) - 1, length=0, labelsize=8, colors=_SOFT)
        middle = {"fontsize": 11, "ha": "center", "va": "center"}
        words = f"{predicted[number]:.2f}"
        sheet.text(strip + width + 0.5, top + _ROW / 2, words, weight="bold", color=_MARK, **middle)
        if at_hand:
            words = f"{mean:.2f}" if np.isfinite(mean) else "–"
            sheet.text(strip + width + 1.5, top + _ROW / 2, words, **middle)
    key = sheet.axes(strip, _GENES_AT + _ROW * len(genes) + 0.34, 4.9, 0.2)
    _legend(key, at_hand, bool(np.isfinite(lower).any()))


def _strip(axes: Any, values: np.ndarray, weight: np.ndarray, predicted: float, lower: float, upper: float) -> float:
    """Draw one gene, and give the weighted mean of the spots."""
    axes.set_ylim(-1, 1)
    axes.set_yticks([])
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.axhline(0, color=_LINE, lw=1, zorder=0)
    jitter = 0.55 * np.sin(np.arange(len(values)) * 2.399963)  # the golden angle: even, and the same every time
    axes.scatter(values, jitter, s=8 + 900 * weight, color=_SPOT, alpha=0.45, linewidths=0, zorder=1)
    if np.isfinite(lower):
        axes.plot([lower, upper], [0, 0], color=_MARK, lw=2.2, alpha=0.45, solid_capstyle="butt", zorder=2)
    known = np.isfinite(values)
    mean = float((weight[known] * values[known]).sum() / weight[known].sum()) if known.any() else np.nan
    axes.plot([mean, mean], [-0.8, 0.8], color=_INK, lw=1.8, zorder=3)
    axes.plot(predicted, 0, "D", ms=7.5, color=_MARK, mec="white", mew=1, zorder=4)
    return mean


def _table_of_values(axes: Any, cells: np.ndarray, reach: float) -> None:
    """Measured values (genes, matches), shaded and written."""
    axes.imshow(np.ma.masked_invalid(cells), cmap="Purples", vmin=0, vmax=reach, aspect="auto")
    for (row, column), value in np.ndenumerate(cells):
        words = f"{value:.1f}" if np.isfinite(value) else "–"
        colour = "white" if np.isfinite(value) and value > 0.55 * reach else _INK
        axes.text(column, row, words, ha="center", va="center", fontsize=8.6, color=colour)
    axes.set_xticks(range(cells.shape[1]), [str(number + 1) for number in range(cells.shape[1])])
    axes.set_yticks([])
    axes.set_xticks(np.arange(-0.5, cells.shape[1]), minor=True)
    axes.set_yticks(np.arange(-0.5, cells.shape[0]), minor=True)
    axes.grid(which="minor", color="white", lw=2)
    axes.tick_params(which="both", length=0, labelsize=8, colors=_SOFT)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)


def _legend(axes: Any, at_hand: bool, interval: bool) -> None:
    """What the marks of a strip are."""
    marks = [({"marker": "D", "color": _MARK, "ms": 5.5}, "the prediction")]
    if interval:
        marks.append(({"marker": "_", "color": _MARK, "ms": 12, "mew": 2.2, "alpha": 0.5}, "90 % interval"))
    if at_hand:
        marks.append(({"marker": "o", "color": _SPOT, "ms": 5, "alpha": 0.6}, "a measured spot"))
        marks.append(({"marker": "|", "color": _INK, "ms": 9, "mew": 1.8}, "their weighted mean"))
    axes.set(xlim=(0, 1), ylim=(-1, 1))
    axes.axis("off")
    for number, (mark, words) in enumerate(marks):
        axes.plot(0.25 * number + 0.01, 0, ls="", **mark)
        axes.text(0.25 * number + 0.035, 0, words, fontsize=8.4, color=_SOFT, va="center")


def _foot_lines(table: AnnData, found: Receipt, tissue: MatchedTissue) -> list[str]:
    said = [found.sentence]
    alarm = table.uns["cmrcnet"].get("alarm")
    if alarm is not None and int(alarm["raised"]):
        said.append(str(alarm["sentence"]))
    if tissue.missing:
        said.append("Not shown: " + " ".join(tissue.missing))
    return [line for sentence in said for line in textwrap.wrap(sentence, 172)]


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
    return f"grade {card['grade']}, held-in Pearson {card['reliability']:.2f}"


def _patch(axes: Any, patch: np.ndarray | None, instead: str) -> None:
    if patch is None:
        axes.set_facecolor(_WASH)
        axes.text(0.5, 0.5, instead, transform=axes.transAxes, ha="center", va="center", color=_SOFT, fontsize=8.5)
    else:
        axes.imshow(patch, interpolation="antialiased")
    _frame(axes)


def _frame(axes: Any) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=_LINE, linewidth=1)


def _cut(name: object, most: int = 13) -> str:
    word = str(name)
    return word if len(word) <= most else f"{word[: most - 1]}…"
