"""Maps in the report: truth, prediction and error on the tissue, and predictions where there is no truth."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from cmrcnet.evaluation.methods.method import MAIN
from cmrcnet.evaluation.metrics.scoring import truth_of
from cmrcnet.evaluation.report.gene_section import LEAST_DETECTED, gene_means, predicted
from cmrcnet.evaluation.report.page import render
from cmrcnet.evaluation.report.summary import number
from cmrcnet.genes.table import scaling_of

if TYPE_CHECKING:
    from anndata import AnnData

    from cmrcnet.evaluation.protocol.evaluate import EvaluationRun

_SIDE_INCHES, _DPI = 3.4, 130  # 442 px: sharp in a 240 px column, about 40 kB as JPEG
_SECTIONS = 4
_BEST, _BEST_OTHERS = 4, 2
_UNSEEN_GENES = 7


def held_out_maps(run: EvaluationRun) -> Markup:
    """Render truth, prediction and error of a choice of genes on a few sections, one gene at a time."""
    shown, chosen = _sections_to_show(run), _genes_to_show(run)
    if not shown or not chosen:
        return Markup("<p>No maps: CMRCNet was not among the methods of this run.</p>\n")
    rows: dict[str, list[dict[str, Any]]] = {gene: [] for gene in chosen}
    for name in shown:
        table, section = run.predictions[name], run.cohort.read(name)
        view = tissue_view(table)
        scores = run.genes[(run.genes.method == MAIN) & (run.genes.section == name)].set_index("gene").pearson
        measured = [gene for gene in chosen if gene in scores.index]
        if not measured:
            continue
        _, truth = truth_of(section, measured, scaling_of(table))
        for column, gene in enumerate(measured):
            true = np.asarray(truth[:, column].todense()).ravel()
            guess = predicted(table, [gene]).ravel()
            rows[gene].append(
                {
                    "section": name,
                    "patient": section.patient,
                    "spots": f"{len(section.spots):,}",
                    "pearson": number(float(scores[gene])),
                    "maps": [
                        _map(view, true, f"Measured {gene} on {name}", "measured"),
                        _map(view, guess, f"Predicted {gene} on {name}", "predicted"),
                        _map(view, guess - true, f"Error of {gene} on {name}", "error", "error"),
                    ],
                }
            )
    units = run.protocol_info.units or "log-expression"
    return render("maps.html", {"chosen": chosen, "rows": rows, "units": units})


def unseen_maps(run: EvaluationRun, table: AnnData) -> Markup:
    """Render predicted genes on a slide without expression: the HVG with the highest scores in the evaluation."""
    view = tissue_view(table)
    name = next(iter(table.uns["spatial"]))
    frame = gene_means(run, MAIN)
    known = set(map(str, table.var_names))
    listed = frame[frame.sets.str.contains("HVG") & frame.index.isin(known)]
    genes = list(listed.sort_values("pearson", ascending=False, kind="stable").index[:_UNSEEN_GENES])
    values = {
        "unseen": name,
        "locations": f"{table.n_obs:,}",
        "genes": f"{table.n_vars:,}",
        "tissue": _jpeg(_drawn(view, fade=0.0)),
        "maps": [
            (
                gene,
                number(float(frame.pearson[gene])),
                _map(view, predicted(table, [gene]).ravel(), f"Predicted {gene} on {name}"),
            )
            for gene in genes
        ],
    }
    return render("maps.html", values)


def _sections_to_show(run: EvaluationRun) -> list[str]:
    """Best, worst and evenly between, by HVG Pearson, among those with a table; in the order of the score."""
    scores = run.scores
    picked = scores[(scores.method == MAIN) & (scores.gene_set == "HVG") & (scores.metric == "pearson")]
    picked = picked[picked.section.isin(list(run.predictions))].sort_values("value", ascending=False, kind="stable")
    names = list(picked.section)
    if len(names) <= _SECTIONS:
        return names
    return [names[round(i)] for i in np.linspace(0, len(names) - 1, _SECTIONS)]


def _genes_to_show(run: EvaluationRun) -> dict[str, str]:
    """Genes by their rank in mean Pearson, and what they are: the best, a typical and the worst HVG."""
    if MAIN not in run.methods:
        return {}
    frame = gene_means(run, MAIN)
    frame = frame[(frame.defined * 2 > frame.sections) & frame.pearson.notna()]
    frame = frame.sort_values("pearson", ascending=False, kind="stable")
    listed = frame.index[frame.sets.str.split().map(lambda sets: "HVG" in sets)]
    found: dict[str, str] = {}
    for number_of, gene in enumerate(listed[:_BEST], 1):
        found[gene] = f"HVG number {number_of}"
    if len(listed):
        found.setdefault(listed[len(listed) // 2], "typical HVG (the median)")
        found.setdefault(listed[-1], "worst HVG")
    often = frame.index[frame.detected >= LEAST_DETECTED]
    others = [gene for gene in often if gene not in found][:_BEST_OTHERS]
    return found | dict.fromkeys(others, f"among the best of all genes seen in {LEAST_DETECTED:.0%} of spots or more")


def _map(
    view: TissueView, values: np.ndarray, alternative: str, caption: str = "", colours: str = "viridis"
) -> dict[str, Any]:
    """A map, and the ends of the colour scale under it; `colours` names a scale of the page's style sheet."""
    jpeg, low, high = map_jpeg(view, values, "RdBu_r" if colours == "error" else colours, centred=colours == "error")
    return {
        "jpeg": jpeg,
        "alternative": alternative,
        "caption": caption,
        "colours": colours,
        "low": f"{low:.2f}",
        "high": f"{high:.2f}",
    }


@dataclass(frozen=True, eq=False)
class TissueView:
    """A section's picture, cut to its spots."""

    pixels: np.ndarray  # (height, width, 3) float in [0, 1]
    centres: np.ndarray  # (spots, 2): x, y in pixels of the picture
    radius: float  # of a spot, in pixels of the picture

    @cached_property
    def faded(self) -> tuple[Any, Any]:
        """Axes with the faded picture, and what is drawn there: the background of every map of this section."""
        axes = _drawn(self, fade=0.55)
        return axes, axes.figure.canvas.copy_from_bbox(axes.bbox)


def tissue_view(table: AnnData) -> TissueView:
    """Take the picture that a prediction table carries, and cut it to the spots and a little around them."""
    library = next(iter(table.uns["spatial"].values()))
    image = np.asarray(library["images"]["hires"])[..., :3]
    image = image / 255.0 if image.dtype == np.uint8 else np.clip(image, 0, 1)
    scale = float(library["scalefactors"]["tissue_hires_scalef"])
    radius = float(library["scalefactors"]["spot_diameter_fullres"]) * scale / 2
    centres = np.asarray(table.obsm["spatial"], np.float64) * scale
    border = 0.04 * float(np.ptp(centres, axis=0).max(initial=0)) + 3 * radius
    low = np.floor(np.maximum(centres.min(axis=0) - border, 0)).astype(int)
    high = np.ceil(centres.max(axis=0) + border).astype(int)
    cut = image[low[1] : high[1], low[0] : high[0]]
    return TissueView(cut, centres - low, radius)


def map_jpeg(
    view: TissueView, values: np.ndarray, colours: str = "viridis", *, centred: bool = False
) -> tuple[bytes, float, float]:
    """Values (spots,) on the faded tissue, in a matplotlib colour map, and the values of its first and last colour.

    These are the 2nd and the 98th percentile. `centred`, for errors: the 98th percentile of the absolute values, below
    and above 0, so that the middle of the colour map stands for 0.
    """
    from matplotlib.collections import EllipseCollection

    if centred:
        high = float(np.nanpercentile(np.abs(values), 98))
        low = -high
    else:
        low, high = (float(v) for v in np.nanpercentile(values, [2, 98]))
    axes, background = view.faded
    width = 2 * max(view.radius, 0.008 * max(view.pixels.shape[:2]))
    spots = EllipseCollection(
        width, width, 0, units="xy", offsets=view.centres, offset_transform=axes.transData, cmap=colours, linewidths=0
    )
    spots.set_array(np.asarray(values, np.float64))
    spots.set_clim(low, high if high > low else low + 1)
    axes.figure.canvas.restore_region(background)
    axes.add_collection(spots, autolim=False)
    axes.draw_artist(spots)
    spots.remove()
    return _jpeg(axes), low, high


def _drawn(view: TissueView, fade: float) -> Any:
    """Axes that fill a figure with the picture, mixed with white by `fade`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = view.pixels.shape[:2]
    longest = max(height, width)
    drawing = Figure(figsize=(_SIDE_INCHES * width / longest, _SIDE_INCHES * height / longest), dpi=_DPI)
    axes = drawing.add_axes((0, 0, 1, 1))
    axes.imshow(view.pixels * (1 - fade) + fade, interpolation="antialiased")
    axes.set_axis_off()
    FigureCanvasAgg(drawing).draw()
    return axes


def _jpeg(axes: Any) -> bytes:
    """What is drawn on the axes' figure."""
    from PIL import Image

    out = io.BytesIO()
    drawn = np.asarray(axes.figure.canvas.buffer_rgba())[..., :3]
    Image.fromarray(drawn).save(out, "jpeg", quality=84, optimize=True)
    return out.getvalue()
