"""Attribution sheet: one page that explains a predicted location by its patch, the measured spots behind it and genes.

The file is one thing: the layout of that page, in inches from its upper left corner.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cmrcnet.analysis.attribution import Attribution, MatchedTissue, attribution, matched_tissue
from cmrcnet.errors import TooFew, UnknownName
from cmrcnet.genes.table import scaling_of
from cmrcnet.slides.section import Cohort
from cmrcnet.slides.slide import Slide

if TYPE_CHECKING:
    from anndata import AnnData

INK, SOFT, LINE, WASH, MARK, WARN, SPOT = "#1c2430", "#5a6675", "#dde3ea", "#f5f7fa", "#7a2e8e", "#8a4b00", "#7d8896"
WIDE, LEFT, RIGHT, DPI = 14.0, 0.5, 13.5, 130
"""Width, left and right edge in inches; pixels an inch."""


@dataclass(frozen=True, eq=False)
class Sheet:
    """A page `WIDE` inches wide and `high` inches high, measured from its upper left corner."""

    drawing: Any
    high: float

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Axes of a size at a position."""
        return self.drawing.add_axes((left / WIDE, 1 - (top + height) / self.high, width / WIDE, height / self.high))

    def text(
        self,
        left: float,
        top: float,
        words: str,
        size: float,
        color: str = SOFT,
        *,
        bold: bool = False,
        ha: str = "left",
        va: str = "baseline",
        spacing: float = 1.4,
        boxed: bool = False,
    ) -> None:
        """Text at a position; boxed text is a warning."""
        box = {"boxstyle": "round,pad=0.45", "facecolor": "#fff4e0", "edgecolor": "#f0d3a2"} if boxed else None
        self.drawing.text(
            left / WIDE, 1 - top / self.high, words, fontsize=size, color=color, weight="bold" if bold else "normal",
            ha=ha, va=va, linespacing=spacing, bbox=box,
        )  # fmt: skip


def show_patch(axes: Any, patch: np.ndarray | None, instead: str) -> None:
    """A patch in its frame, or text instead."""
    if patch is None:
        axes.set_facecolor(WASH)
        axes.text(0.5, 0.5, instead, transform=axes.transAxes, ha="center", va="center", color=SOFT, fontsize=8.5)
    else:
        axes.imshow(patch, interpolation="antialiased")
    frame(axes)


def frame(axes: Any, color: str = LINE, width: float = 1.0) -> None:
    """A thin frame, no ticks."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=width)


def cut(name: object, most: int = 13) -> str:
    """A name, shortened to fit."""
    word = str(name)
    return word if len(word) <= most else f"{word[: most - 1]}…"


GENES_AT, ROW = 4.75, 0.48
"""Inches: where the genes start, and how high each is."""

_TURN = 2.399963
"""Golden angle: jitters dots evenly without randomness."""


def draw_genes(sheet: Sheet, table: AnnData, found: Attribution, genes: Sequence[str], tissue: MatchedTissue) -> None:
    """Draw a strip per gene: measured values, their mean, the prediction, its interval; and a table of values."""
    weight, measured = found.spots["weight"].to_numpy(), bool(np.isfinite(tissue.expression).any())
    columns = [list(map(str, table.var_names)).index(gene) for gene in genes]
    predicted = np.asarray(table[found.row].X, np.float64).ravel()[columns]
    lower, upper = _interval(table, found.row, columns, predicted)
    everything = np.concatenate([tissue.expression.ravel(), upper, predicted, [0.1]])
    reach = 1.04 * float(np.nanmax(everything))
    strip, width = 2.4, 4.9 if measured else 9.6
    over = f"measured in the {len(weight)} spots, and predicted here" if measured else "predicted here"
    sheet.text(LEFT, GENES_AT - 0.1, "gene", 9)
    sheet.text(strip, GENES_AT - 0.1, over, 9)
    sheet.text(strip + width + 0.5, GENES_AT - 0.1, "predicted", 9, ha="center")
    if measured:
        sheet.text(strip + width + 1.5, GENES_AT - 0.1, "mean of spots", 9, ha="center")
        sheet.text(9.85, GENES_AT - 0.1, "measured in these matches", 9)
        first = tissue.expression[: len(tissue.patches)].T
        _table_of_values(sheet.axes(9.85, GENES_AT, RIGHT - 9.85, ROW * len(genes)), first, reach)
    for number, gene in enumerate(genes):
        top = GENES_AT + number * ROW
        sheet.text(LEFT, top + 0.19, gene, 11.5, INK, bold=True, va="center")
        known, words = table.var.iloc[columns[number]], "reliability not measured"
        if "grade" in known and np.isfinite(known["reliability"]):
            words = f"grade {known['grade']}, validation Pearson {known['reliability']:.2f}"
        sheet.text(LEFT, top + 0.37, words, 7.6, va="center")
        axes = sheet.axes(strip, top + 0.04, width, ROW - 0.08)
        axes.set(xlim=(-0.02 * reach, reach))
        mean = _strip(axes, tissue.expression[:, number], weight, predicted[number], lower[number], upper[number])
        axes.tick_params(axis="x", labelbottom=number == len(genes) - 1, length=0, labelsize=8, colors=SOFT)
        words = f"{predicted[number]:.2f}"
        sheet.text(strip + width + 0.5, top + ROW / 2, words, 11, MARK, bold=True, ha="center", va="center")
        if measured:
            words = f"{mean:.2f}" if np.isfinite(mean) else "–"
            sheet.text(strip + width + 1.5, top + ROW / 2, words, 11, INK, ha="center", va="center")
    key = sheet.axes(strip, GENES_AT + ROW * len(genes) + 0.34, 4.9, 0.2)
    _legend(key, measured, bool(np.isfinite(lower).any()))


def _strip(axes: Any, values: np.ndarray, weight: np.ndarray, predicted: float, lower: float, upper: float) -> float:
    """Draw one gene and return the weighted mean of the spots."""
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
    """Measured values (genes, spots) as a shaded table."""
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


def _legend(axes: Any, measured: bool, interval: bool) -> None:
    """Legend of the marks."""
    marks = [({"marker": "D", "color": MARK, "ms": 5.5}, "the prediction")]
    if interval:
        marks.append(({"marker": "_", "color": MARK, "ms": 12, "mew": 2.2, "alpha": 0.5}, "90 % interval"))
    if measured:
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
    low, high = (np.asarray(table.var[name], np.float64)[columns] for name in ("interval_low", "interval_high"))
    lower, upper = (np.clip(predicted + factor * side, *scaling_of(table).limits) for side in (low, high))
    return lower, upper


SHOWN = 8
"""Spots whose patches and values are shown."""
MOST_GENES = 8

_PATIENT_WEIGHTS = ("#7a2e8e", "#2a7f9e", "#c0792a", "#4b8b3b", "#9a3b4f", "#5f6b7a")


def attribution_sheet(
    table: AnnData,
    location: str,
    *,
    genes: Sequence[str] | None = None,
    cohort: Cohort | None = None,
    slide: Slide | None = None,
    kind: str = "png",
) -> bytes:
    """Draw the attribution sheet of a predicted location.

    Parameters
    ----------
    table, location : AnnData, str
        Prediction table, and a name in its `obs_names`.
    genes : sequence of str, optional
        At most 8 are shown; the most reliable of the table when left out.
    cohort : Cohort, optional
        Cohort of the bank: gives the patches and measured values of the spots.
    slide : Slide, optional
        The predicted slide, when the cohort does not contain it.
    kind : {"png", "pdf", "svg"}
        File format.

    Returns
    -------
    bytes
        Content of the image file.

    Raises
    ------
    UnknownName
        The table has no such location or gene.
    Damaged
        The table has no neighbours.

    Examples
    --------
    >>> import cmrcnet
    >>> from cmrcnet.testing import quick_config
    >>> cohort = cmrcnet.synthetic_cohort(patients=2, spots=16, genes=24)
    >>> model = cmrcnet.fit(cohort, quick_config())
    >>> slide = cohort.read(cohort.sections[0]).slide
    >>> table = cmrcnet.predict(model, slide, bank=cmrcnet.build_bank(model, cohort), grid_um=400)
    >>> cmrcnet.attribution_sheet(table, table.obs_names[0], cohort=cohort, kind="svg")[:5]
    b'<?xml'
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = attribution(table, location)
    chosen = _chosen_genes(table, found.row, genes)
    tissue = matched_tissue(table, found, chosen, cohort=cohort, slide=slide, shown=SHOWN)
    foot = _foot_lines(table, found, tissue)
    with mpl.rc_context({"font.family": "sans-serif", "font.size": 10, "text.color": INK, "svg.fonttype": "none"}):
        high = GENES_AT + ROW * len(chosen) + 0.95 + 0.24 * len(foot)
        drawing = Figure(figsize=(WIDE, high), dpi=DPI, facecolor="white")
        FigureCanvasAgg(drawing)
        sheet = Sheet(drawing, high)
        _head(sheet, table, found)
        _location(sheet, table, found, tissue)
        _matches(sheet, found, tissue)
        _patient_weights(sheet, found)
        draw_genes(sheet, table, found, chosen, tissue)
        sheet.text(LEFT, high - 0.22, "\n".join(foot), 9.6, INK, va="bottom", spacing=1.5)
        out = io.BytesIO()
        drawing.savefig(out, format=kind, metadata={"Software": None} if kind == "png" else None)
    return out.getvalue()


def _chosen_genes(table: AnnData, row: int, genes: Sequence[str] | None) -> list[str]:
    """The requested genes; else the most reliable; else, without reliability, those of highest prediction here."""
    known = list(map(str, table.var_names))
    if genes is None:
        rank = np.asarray(table.var["reliability"], np.float64)
        if np.isfinite(rank).any():
            if "grade" in table.var:
                rank = np.where(table.var["grade"].isin(["A", "B", "C"]), rank, rank - 2)
            return [known[i] for i in np.argsort(-np.nan_to_num(rank, nan=-9), kind="stable")[:MOST_GENES]]
        most = np.nan_to_num(np.asarray(table[row].X, np.float64).ravel())
        return [known[i] for i in np.argsort(-most, kind="stable")[:MOST_GENES]]
    unknown = [gene for gene in genes if gene not in known]
    if unknown:
        raise UnknownName("gene in the prediction", unknown[0], known)
    if not genes:
        raise TooFew("genes to show", 0, 1, "name some, or leave them out")
    return list(dict.fromkeys(genes))[:MOST_GENES]


def _head(sheet: Sheet, table: AnnData, found: Attribution) -> None:
    info, obs = table.uns["cmrcnet"], table.obs.iloc[found.row]
    sheet.text(LEFT, 0.42, "ATTRIBUTION OF ONE PREDICTION", 9.5, MARK, bold=True)
    sheet.text(LEFT, 0.80, f"{found.location} on {info['slide']}", 19, INK, bold=True)
    sections, patients = found.spots["section"].nunique(), len(found.patient_weights)
    facts = [
        f"{len(found.spots)} measured spots of {sections} section{'s' * (sections != 1)}, "
        f"{patients} patient{'s' * (patients != 1)}",
        f"mean similarity {found.spots['similarity'].mean():.2f}",
    ]
    if np.isfinite(obs["confidence"]):
        facts.append(
            f"confidence {obs['confidence']:.2f} (looks easier than {obs['confidence']:.0%} of validation spots)"
        )
    sheet.text(LEFT, 1.09, "   ·   ".join(facts), 10.5)
    warnings = []
    if not obs.get("in_distribution", 1):
        warnings.append("out of distribution")
    if obs.get("abstained", 0):
        warnings.append("abstained: too uncertain")
    if warnings:
        words = "  ·  ".join(warnings)
        sheet.text(RIGHT, 0.74, words, 10.5, WARN, bold=True, ha="right", boxed=True)


def _location(sheet: Sheet, table: AnnData, found: Attribution, tissue: MatchedTissue) -> None:
    """The location on its slide, and its patch."""
    side = 1.85
    axes = sheet.axes(LEFT, 1.62, side, side)
    library = next(iter(table.uns["spatial"].values()))
    image = np.asarray(library["images"]["hires"])[..., :3]
    scale = float(library["scalefactors"]["tissue_hires_scalef"])
    x, y = np.asarray(table.obsm["spatial"][found.row], np.float64) * scale
    axes.imshow(image)
    axes.set_anchor("NW")
    axes.plot(x, y, "o", ms=11, mfc="none", mec="white", mew=3.4)
    axes.plot(x, y, "o", ms=11, mfc="none", mec=MARK, mew=1.8)
    frame(axes)
    sheet.text(LEFT, 1.54, "location on the slide", 9.5)
    axes = sheet.axes(LEFT + side + 0.25, 1.62, side, side)
    info = table.uns["cmrcnet"]
    shows = int(info["patch_px"]) * float(info["patch_mpp"])
    show_patch(axes, tissue.patch, "the slide is\nnot available")
    frame(axes, MARK, 2.2)
    words = f"its patch ({shows:.0f} µm)"
    sheet.text(LEFT + side + 0.25, 1.54, words, 9.5, MARK, bold=True)


def _matches(sheet: Sheet, found: Attribution, tissue: MatchedTissue) -> None:
    left, gap = 4.85, 0.1
    side = (RIGHT - left + gap) / SHOWN - gap
    sheet.text(left, 1.54, f"the {len(tissue.patches)} measured spots of largest similarity", 9.5)
    for number, patch in enumerate(tissue.patches):
        spot, at = found.spots.iloc[number], left + number * (side + gap)
        show_patch(sheet.axes(at, 1.62, side, side), patch, "no\npicture")
        text = f"{number + 1}. {cut(spot['section'])}\npatient {cut(spot['patient'], 9)}\n{cut(spot['barcode'])}\n"
        text += f"similarity {spot['similarity']:.2f}\nweight {spot['weight']:.1%}"
        sheet.text(at, 1.62 + side + 0.07, text, 7.6, va="top", spacing=1.35)


def _patient_weights(sheet: Sheet, found: Attribution) -> None:
    sheet.text(LEFT, 3.86, "weight per patient", 9.5)
    axes = sheet.axes(LEFT, 3.95, RIGHT - LEFT, 0.3)
    left = 0.0
    for number, (patient, share) in enumerate(found.patient_weights.items()):
        colour = _PATIENT_WEIGHTS[number] if number < len(_PATIENT_WEIGHTS) else "#c3cad3"
        axes.barh(0, share, left=left, color=colour, height=1, edgecolor="white", linewidth=1.5)
        words = f"patient {cut(patient, 10)}, {share:.0%}"
        if share > 0.0085 * len(words):
            axes.text(left + share / 2, 0, words, ha="center", va="center", color="white", fontsize=9.5)
        elif share > 0.04:
            axes.text(left + share / 2, 0, cut(patient, 4), ha="center", va="center", color="white", fontsize=8.5)
        left += share
    axes.set(xlim=(0, 1), ylim=(-0.5, 0.5))
    axes.axis("off")


def _foot_lines(table: AnnData, found: Attribution, tissue: MatchedTissue) -> list[str]:
    sentences = [found.sentence]
    ood = table.uns["cmrcnet"].get("ood")
    if ood is not None and int(ood["raised"]):
        sentences.append(str(ood["sentence"]))
    if tissue.missing:
        sentences.append("Not shown: " + " ".join(tissue.missing))
    return [line for sentence in sentences for line in textwrap.wrap(sentence, 198)]
