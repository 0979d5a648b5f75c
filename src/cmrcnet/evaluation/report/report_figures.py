"""Pictures of the report: expression on tissue, and training curves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData

_SIDE_INCHES, _DPI = 3.4, 130  # 442 px: sharp in a 240 px column, about 40 kB as JPEG
_MAIN, _NULL, _LIMIT = "#7a2e8e", "#9aa4b0", "#8a4b00"


@dataclass(frozen=True, eq=False)
class TissueView:
    """A section's picture, cut to its spots.

    Parameters
    ----------
    pixels : numpy.ndarray, shape (height, width, 3), float in [0, 1]
    centres : numpy.ndarray, shape (spots, 2)
        x, y in pixels of the picture.
    radius : float
        Of a spot, in pixels of the picture.
    """

    pixels: np.ndarray
    centres: np.ndarray
    radius: float


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


def tissue_jpeg(view: TissueView) -> bytes:
    """The tissue alone."""
    return _jpeg(*_canvas(view, fade=0.0))


def map_jpeg(
    view: TissueView, values: np.ndarray, colours: str = "viridis", *, centred: bool = False
) -> tuple[bytes, float, float]:
    """Values on the faded tissue.

    Parameters
    ----------
    view : TissueView
    values : numpy.ndarray, shape (spots,)
    colours : str
        A matplotlib colour map.
    centred : bool
        Its middle stands for 0, and both ends are as far from it: for errors.

    Returns
    -------
    jpeg : bytes
    low, high : float
        Values of the first and the last colour: the 2nd and the 98th percentile; when centred, the 98th percentile of
        the absolute values, below and above 0.
    """
    from matplotlib.collections import EllipseCollection

    if centred:
        high = float(np.nanpercentile(np.abs(values), 98))
        low = -high
    else:
        low, high = (float(v) for v in np.nanpercentile(values, [2, 98]))
    drawing, axes = _canvas(view, fade=0.55)
    width = 2 * max(view.radius, 0.008 * max(view.pixels.shape[:2]))
    spots = EllipseCollection(
        width, width, 0, units="xy", offsets=view.centres, offset_transform=axes.transData, cmap=colours, linewidths=0
    )
    spots.set_array(np.asarray(values, np.float64))
    spots.set_clim(low, high if high > low else low + 1)
    axes.add_collection(spots)
    return _jpeg(drawing, axes), low, high


def curve_svg(
    lines: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    *,
    title: str,
    limit: tuple[float, str] | None = None,
) -> bytes:
    """Curves over epochs.

    Parameters
    ----------
    lines : sequence of (kind, epochs, values)
        kind "main" is drawn in colour, "null" in grey behind.
    title : str
    limit : (value, name), optional
        A level to compare with, drawn across.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "cmrcnet", "font.family": "sans-serif", "font.size": 10}
    ):
        drawing = Figure(figsize=(4.2, 2.9), layout="constrained")
        FigureCanvasSVG(drawing)
        axes = drawing.add_subplot()
        for kind, epochs, values in sorted(lines, key=lambda line: line[0] == "main"):
            main = kind == "main"
            axes.plot(epochs, values, color=_MAIN if main else _NULL, lw=1.5 if main else 1.1, alpha=0.9)
        if limit is not None:
            axes.axhline(limit[0], color=_LIMIT, lw=1, ls=(0, (4, 3)))
            axes.annotate(
                limit[1], (1, limit[0]), xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points",
                ha="right", color=_LIMIT, fontsize=9,
            )  # fmt: skip
        axes.set_title(title, fontsize=10.5, loc="left")
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.12)
        out = io.BytesIO()
        drawing.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _canvas(view: TissueView, fade: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = view.pixels.shape[:2]
    longest = max(height, width)
    drawing = Figure(figsize=(_SIDE_INCHES * width / longest, _SIDE_INCHES * height / longest), dpi=_DPI)
    FigureCanvasAgg(drawing)
    axes = drawing.add_axes((0, 0, 1, 1))
    axes.imshow(view.pixels * (1 - fade) + fade, interpolation="antialiased")
    axes.set_axis_off()
    return drawing, axes


def _jpeg(drawing: Any, axes: Any) -> bytes:
    out = io.BytesIO()
    drawing.savefig(out, format="jpeg", pil_kwargs={"quality": 84, "optimize": True})
    return out.getvalue()
