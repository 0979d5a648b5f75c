"""Maps of selected genes for other programs: GeoJSON for QuPath, a PNG of heat maps, an OME-TIFF of rasters.

In QuPath: File, Import objects, from file; then Measure, Show measurement maps. Coordinates are level-0 pixels.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cmrcnet.export.stored_prediction import StoredPrediction, genes_to_show

DIGITS = 5
"""Significant digits of a measurement."""


def write_geojson(prediction: StoredPrediction, path: Path, genes: Sequence[str] | None = None) -> None:
    """Write a GeoJSON FeatureCollection with one tile per location and its predictions as measurements."""
    shown = genes_to_show(prediction, genes)
    values = np.column_stack([prediction.column(gene) for gene in shown])
    family = uuid.uuid5(uuid.NAMESPACE_URL, str(prediction.facts["slide_fingerprint"]))
    similarity, corners = prediction.obs["similarity"].to_numpy(), _corners(prediction)
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for row, barcode in enumerate(prediction.obs.index):
            outline = corners[row, [0, 1, 2, 3, 0]].round(2).tolist()
            measurements = {"similarity": similarity[row], **dict(zip(shown, values[row], strict=True))}
            feature = {
                "type": "Feature",
                "id": str(uuid.uuid5(family, barcode)),
                "geometry": {"type": "Polygon", "coordinates": [outline]},
                "properties": {
                    "objectType": "tile",
                    "name": barcode,
                    # JSON has no NaN: unknown values are left out.
                    "measurements": {k: float(f"{v:.{DIGITS}g}") for k, v in measurements.items() if np.isfinite(v)},
                },
            }
            file.write((",\n" if row else "\n") + json.dumps(feature))
        file.write("\n]}\n")


PANEL_INCHES, DPI = 3.6, 160
COLUMNS = 4
RANGE = (1, 99)
"""Percentiles at the ends of the colour scale, which keep a few extreme locations from dominating it."""
MARGIN = 0.05
"""Margin around the locations, as a share of their extent."""
_INK = "#333333"


def write_heat_maps(prediction: StoredPrediction, path: Path, genes: Sequence[str] | None = None) -> None:
    """Draw the slide and one heat map per gene into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = genes_to_show(prediction, genes)
    picture, step = prediction.picture
    across = min(COLUMNS, len(shown) + 1)
    down = math.ceil((len(shown) + 1) / across)
    width, height = (side * step for side in picture.shape[1::-1])
    low, high = prediction.centre_px.min(axis=0), prediction.centre_px.max(axis=0)
    margin = prediction.side_px / 2 + MARGIN * (high - low).max()
    (left, top), (right, bottom) = np.maximum(low - margin, 0), np.minimum(high + margin, (width, height))
    panel = (PANEL_INCHES * 1.16, PANEL_INCHES * min((bottom - top) / (right - left), 2.5) + 0.35)
    figure = Figure((across * panel[0], down * panel[1] + 0.3), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    extent = (0, width, height, 0)
    axes[0].imshow(picture, extent=extent)
    axes[0].set_title(str(prediction.facts["slide"]), color=_INK, fontsize=10)
    _scale_bar(axes[0], (left, top, right, bottom), float(prediction.facts["mpp"]))
    grey = np.repeat(picture.mean(axis=2, keepdims=True).astype(np.uint8) // 3 + 170, 3, axis=2)
    corners = _corners(prediction)
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
    """Draw one gene's locations with a colour bar."""
    from matplotlib.collections import PolyCollection

    known = np.isfinite(values)
    locations = PolyCollection(list(corners[known]), cmap="magma", linewidths=0, antialiaseds=False)
    locations.set_array(values[known])
    if known.any():
        locations.set_clim(*np.percentile(values[known], RANGE))
    ax.add_collection(locations, autolim=False)
    bar = ax.figure.colorbar(locations, ax=ax, shrink=0.8, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, colors=_INK, length=2)


def _corners(prediction: StoredPrediction) -> np.ndarray:
    """Corners of each location, in level-0 pixels: (locations, 4, 2)."""
    return prediction.centre_px[:, None] + prediction.side_px / 2 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])


def _scale_bar(ax, window: tuple[float, float, float, float], mpp: float) -> None:
    """Draw a scale bar of a round length, about a fifth of the window's width."""
    left, top, right, bottom = window
    wanted = (right - left) * mpp / 5
    magnitude = 10 ** math.floor(math.log10(wanted))
    length = max(step * magnitude for step in (1, 2, 5) if step * magnitude <= wanted)
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    start, y = left + 0.03 * (right - left), bottom - 0.035 * (bottom - top)
    ax.plot([start, start + length / mpp], [y, y], color="black", linewidth=3, solid_capstyle="butt")
    ax.text(start, y - 0.015 * (bottom - top), text, fontsize=8, color="black", va="bottom")


def write_ome_tiff(prediction: StoredPrediction, path: Path, genes: Sequence[str] | None = None) -> None:
    """Write an OME-TIFF: one float32 channel per gene (`raster`), with its pixel size in micrometres."""
    import tifffile

    shown = genes_to_show(prediction, genes)
    pixel_um = float(prediction.facts["spot_diameter_um"])
    planes = np.stack([raster(prediction, prediction.column(gene)) for gene in shown])
    tifffile.imwrite(
        path,
        planes,
        ome=True,
        photometric="minisblack",
        compression="deflate",
        tile=(256, 256) if min(planes.shape[1:]) > 256 else None,
        metadata={
            "axes": "CYX",
            "Channel": {"Name": shown},
            "PhysicalSizeX": pixel_um,
            "PhysicalSizeXUnit": "µm",
            "PhysicalSizeY": pixel_um,
            "PhysicalSizeYUnit": "µm",
        },
    )


def raster(prediction: StoredPrediction, values: np.ndarray) -> np.ndarray:
    """Rasterise values (locations,), NaN where unknown, over the slide: (height, width) float32.

    A pixel is as large as a location, and the raster starts at the slide's top left corner. Pixels without a prediction
    are NaN; locations that share a pixel are averaged.
    """
    size = np.ceil(np.array(prediction.slide_px) / prediction.side_px - 1e-6).astype(int)
    column, row = np.minimum(np.floor(prediction.centre_px / prediction.side_px).astype(int), size - 1).T
    known = np.isfinite(values)
    where = row[known] * size[0] + column[known]
    count = np.bincount(where, minlength=size.prod())
    total = np.bincount(where, values[known], minlength=size.prod())
    mean = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return mean.reshape(size[1], size[0]).astype(np.float32)
