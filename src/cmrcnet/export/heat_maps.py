"""Heat-maps of chosen genes over the slide, as one PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cmrcnet.export.shown_genes import genes_to_show
from cmrcnet.export.stored_prediction import StoredPrediction

PANEL_INCHES, DPI = 3.6, 160
COLUMNS = 4
RANGE = (1, 99)
"""Percentiles at which the colours begin and end: a few extreme locations must not pale the rest."""
MARGIN = 0.05
"""Share of the locations' extent that is shown around them."""
_INK = "#333333"


def write_heat_maps(prediction: StoredPrediction, path: Path, genes: Sequence[str] | None = None) -> None:
    """Draw the slide, and beside it one map a gene on the same scale of length.

    Parameters
    ----------
    prediction : StoredPrediction
    path : Path
    genes : sequence of str, optional
        Those that vary most when left out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = genes_to_show(prediction, genes)
    picture, step = prediction.picture
    across = min(COLUMNS, len(shown) + 1)
    down = math.ceil((len(shown) + 1) / across)
    width, height = (side * step for side in picture.shape[1::-1])
    left, top, right, bottom = window = _window(prediction, width, height)
    panel = (PANEL_INCHES * 1.16, PANEL_INCHES * min((bottom - top) / (right - left), 2.5) + 0.35)
    figure = Figure((across * panel[0], down * panel[1] + 0.3), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    extent = (0, width, height, 0)
    axes[0].imshow(picture, extent=extent)
    axes[0].set_title(str(prediction.facts["slide"]), color=_INK, fontsize=10)
    _scale_bar(axes[0], window, float(prediction.facts["mpp"]))
    grey = np.repeat(picture.mean(axis=2, keepdims=True).astype(np.uint8) // 3 + 170, 3, axis=2)
    corners = _squares(prediction.centre_px, prediction.side_px / 2)
    for ax, gene in zip(axes[1:], shown, strict=False):
        ax.imshow(grey, extent=extent)
        _map(ax, corners, prediction.column(gene))
        measured, kind = float(prediction.var.loc[gene, "reliability"]), prediction.var.loc[gene, "reliability_is"]
        ax.set_title(gene if math.isnan(measured) else f"{gene}  ({kind} = {measured:.2f})", color=_INK, fontsize=10)
    for ax in axes[: len(shown) + 1]:
        ax.set(xlim=(left, right), ylim=(bottom, top))
    figure.suptitle(f"Predicted expression, {prediction.facts['units']}", color=_INK, fontsize=10)
    figure.savefig(path, dpi=DPI, format="png")


def _map(ax, corners: np.ndarray, values: np.ndarray) -> None:
    """One gene's locations in colour, with the colours' meaning beside them."""
    from matplotlib.collections import PolyCollection

    known = np.isfinite(values)
    locations = PolyCollection(corners[known], cmap="magma", linewidths=0, antialiaseds=False)
    locations.set_array(values[known])
    if known.any():
        locations.set_clim(*np.percentile(values[known], RANGE))
    ax.add_collection(locations, autolim=False)
    bar = ax.figure.colorbar(locations, ax=ax, shrink=0.8, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, colors=_INK, length=2)


def _squares(centres: np.ndarray, half: float) -> np.ndarray:
    """Corners of each location: (locations, 4, 2)."""
    return centres[:, None] + half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])


def _window(prediction: StoredPrediction, width: float, height: float) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the part of the slide that is shown: the locations, and a margin around them."""
    low, high = prediction.centre_px.min(axis=0), prediction.centre_px.max(axis=0)
    margin = prediction.side_px / 2 + MARGIN * (high - low).max()
    (left, top), (right, bottom) = np.maximum(low - margin, 0), np.minimum(high + margin, (width, height))
    return left, top, right, bottom


def _scale_bar(ax, window: tuple[float, float, float, float], mpp: float) -> None:
    """A bar of a round length, about a fifth of the picture's width, at its foot."""
    left, top, right, bottom = window
    wanted = (right - left) * mpp / 5
    magnitude = 10 ** math.floor(math.log10(wanted))
    length = max(step * magnitude for step in (1, 2, 5) if step * magnitude <= wanted)
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    start, y = left + 0.03 * (right - left), bottom - 0.035 * (bottom - top)
    ax.plot([start, start + length / mpp], [y, y], color="black", linewidth=3, solid_capstyle="butt")
    ax.text(start, y - 0.015 * (bottom - top), text, fontsize=8, color="black", va="bottom")
