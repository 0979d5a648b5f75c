"""One sheet that explains one predicted place: its patch, the measured tissue behind it, and what that tissue says."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.analysis.attribution import Attribution, attribution
from cmrcnet.analysis.gene_strips import GENES_AT, ROW, draw_genes
from cmrcnet.analysis.matched_tissue import MatchedTissue, matched_tissue
from cmrcnet.analysis.sheet import DPI, INK, LEFT, MARK, RIGHT, WARN, WIDE, Sheet, cut, frame, show_patch
from cmrcnet.errors import TooFew, UnknownName
from cmrcnet.slides.section import Cohort
from cmrcnet.slides.slide import Slide

if TYPE_CHECKING:
    from anndata import AnnData

SHOWN = 8
"""Matches whose patches and values are shown."""
MOST_GENES = 8

_PATIENT_WEIGHTS = ("#7a2e8e", "#2a7f9e", "#c0792a", "#4b8b3b", "#9a3b4f", "#5f6b7a")


def attribution_sheet(
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
    Damaged
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = attribution(table, place)
    chosen = _chosen_genes(table, found.row, genes)
    tissue = matched_tissue(table, found, chosen, cohort=cohort, slide=slide, shown=SHOWN)
    foot = _foot_lines(table, found, tissue)
    with mpl.rc_context({"font.family": "sans-serif", "font.size": 10, "text.color": INK, "svg.fonttype": "none"}):
        high = GENES_AT + ROW * len(chosen) + 0.95 + 0.24 * len(foot)
        drawing = Figure(figsize=(WIDE, high), dpi=DPI, facecolor="white")
        FigureCanvasAgg(drawing)
        sheet = Sheet(drawing, high)
        _head(sheet, table, found)
        _place(sheet, table, found, tissue)
        _matches(sheet, found, tissue)
        _patient_weights(sheet, found)
        draw_genes(sheet, table, found, chosen, tissue)
        sheet.text(LEFT, high - 0.22, "\n".join(foot), 9.6, INK, va="bottom", spacing=1.5)
        out = io.BytesIO()
        drawing.savefig(out, format=kind, metadata={"Software": None} if kind == "png" else None)
    return out.getvalue()


def _chosen_genes(table: AnnData, row: int, genes: Sequence[str] | None) -> list[str]:
    """Those asked for; else the best graded; else, where none is graded, those of which most is predicted here."""
    known = list(map(str, table.var_names))
    if genes is None:
        rank = table.var["reliability"].to_numpy(np.float64)
        if np.isfinite(rank).any():
            if "grade" in table.var:
                rank = np.where(table.var["grade"].isin(["A", "B", "C"]), rank, rank - 2)
            return [known[i] for i in np.argsort(-np.nan_to_num(rank, nan=-9), kind="stable")[:MOST_GENES]]
        most = np.nan_to_num(np.asarray(table.X[row], np.float64))
        return [known[i] for i in np.argsort(-most, kind="stable")[:MOST_GENES]]
    unknown = [gene for gene in genes if gene not in known]
    if unknown:
        raise UnknownName("gene in the prediction", unknown[0], known)
    if not genes:
        raise TooFew("genes to show", 0, 1, "name some, or leave them out")
    return list(dict.fromkeys(genes))[:MOST_GENES]


def _head(sheet: Sheet, table: AnnData, found: Attribution) -> None:
    told, obs = table.uns["cmrcnet"], table.obs.iloc[found.row]
    sheet.text(LEFT, 0.42, "ATTRIBUTION OF ONE PREDICTION", 9.5, MARK, bold=True)
    sheet.text(LEFT, 0.80, f"{found.place} on {told['slide']}", 19, INK, bold=True)
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
        warnings.append("outside what the model knows")
    if obs.get("abstained", 0):
        warnings.append("refused: too uncertain")
    if warnings:
        words = "  ·  ".join(warnings)
        sheet.text(RIGHT, 0.74, words, 10.5, WARN, bold=True, ha="right", boxed=True)


def _place(sheet: Sheet, table: AnnData, found: Attribution, tissue: MatchedTissue) -> None:
    """The place on its slide, and its patch."""
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
    sheet.text(LEFT, 1.54, "where it is", 9.5)
    axes = sheet.axes(LEFT + side + 0.25, 1.62, side, side)
    told = table.uns["cmrcnet"]
    shows = int(told["patch_px"]) * float(told["patch_mpp"])
    show_patch(axes, tissue.patch, "the slide is\nnot at hand")
    frame(axes, MARK, 2.2)
    words = f"what is seen there ({shows:.0f} µm)"
    sheet.text(LEFT + side + 0.25, 1.54, words, 9.5, MARK, bold=True)


def _matches(sheet: Sheet, found: Attribution, tissue: MatchedTissue) -> None:
    left, gap = 4.85, 0.1
    side = (RIGHT - left + gap) / SHOWN - gap
    sheet.text(left, 1.54, f"the {len(tissue.patches)} measured spots that count most", 9.5)
    for number, patch in enumerate(tissue.patches):
        spot, at = found.spots.iloc[number], left + number * (side + gap)
        show_patch(sheet.axes(at, 1.62, side, side), patch, "no\npicture")
        said = f"{number + 1}. {cut(spot['section'])}\npatient {cut(spot['patient'], 9)}\n{cut(spot['barcode'])}\n"
        said += f"similarity {spot['similarity']:.2f}\nweight {spot['weight']:.1%}"
        sheet.text(at, 1.62 + side + 0.07, said, 7.6, va="top", spacing=1.35)


def _patient_weights(sheet: Sheet, found: Attribution) -> None:
    sheet.text(LEFT, 3.86, "patient_weights per patient, by weight", 9.5)
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
    said = [found.sentence]
    alarm = table.uns["cmrcnet"].get("ood")
    if alarm is not None and int(alarm["raised"]):
        said.append(str(alarm["sentence"]))
    if tissue.missing:
        said.append("Not shown: " + " ".join(tissue.missing))
    return [line for sentence in said for line in textwrap.wrap(sentence, 198)]
