"""One plot of the viewer: a slide, values over it, their colours, and marks of what was chosen.

Plot coordinates are micrometres with y upwards, so y is minus the distance from the slide's upper edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cmrcnet.viewer.overlay import GLYPHS, PredictedSlide, lie_side_by_side, raster
from cmrcnet.viewer.tiles import TILE_PX

PALETTES = ("Viridis", "Cividis", "Magma", "Inferno", "Greys")
"""All of even lightness and safe for colour-blind eyes; the first is the default."""
MARK, MARK_B = "#7a2e8e", "#0b6e4f"
"""Of a location and region A; of region B."""


@dataclass(eq=False)
class Panel:
    """A plot with values at `centre_um` (places, 2) over a slide (`below`).

    `kind` is predicted, measured, error or second.
    """

    kind: str
    slide: PredictedSlide
    centre_um: np.ndarray
    side_um: float
    figure: Any
    below: Any
    source: Any
    mapper: Any
    glyph: Any
    mark: Any
    outline: Any
    values: np.ndarray | None = None

    @property
    def pooled(self) -> bool:
        """Whether the server pools the locations to a raster."""
        return len(self.centre_um) > GLYPHS

    @property
    def opacity(self) -> str:
        """Name of the glyph's property that holds its opacity."""
        return "global_alpha" if self.pooled else "fill_alpha"

    def draw(self, values: np.ndarray) -> None:
        """Show values (places,); of many, those in sight and around it."""
        self.values = values
        if not self.pooled:
            self.source.data["value"] = values
            return
        x, y, tiles = self.figure.x_range, self.figure.y_range, self.slide.tiles
        left, right, top, bottom = float(x.start), float(x.end), -float(y.end), -float(y.start)
        beside, above = (right - left) / 2, (bottom - top) / 2
        left, right = max(left - beside, 0.0), min(right + beside, tiles.width_um)
        top, bottom = max(top - above, 0.0), min(bottom + above, tiles.height_um)
        if left >= right or top >= bottom:
            return
        found = raster(self.centre_um, values, self.side_um, (left, top, right, bottom))
        self.source.data = {
            "image": [found.cells[::-1]],
            "x": [found.left],
            "y": [-found.bottom],
            "dw": [found.right - found.left],
            "dh": [found.bottom - found.top],
        }


def make_panel(
    kind: str,
    slide: PredictedSlide,
    centre_um: np.ndarray,
    side_um: float,
    names: Sequence[str],
    ranges: tuple[Any, Any],
    under: Any,
) -> Panel:
    """Make an empty panel.

    Parameters
    ----------
    names : sequence of str
        Of the places.
    ranges : tuple of bokeh.models.Range1d
        x and y; panels that share them move together.
    under : str or bokeh.models.ColumnDataSource
        Where the slide's tiles are served; or a picture of the whole slide, as the column ``url``.
    """
    from bokeh.models import (
        BasicTicker,
        ColorBar,
        ColumnDataSource,
        HoverTool,
        LassoSelectTool,
        LinearColorMapper,
        Metric,
        PanTool,
        ScaleBar,
        WheelZoomTool,
        WMTSTileSource,
    )
    from bokeh.plotting import figure

    tiles = slide.tiles
    wheel, pan, lasso = WheelZoomTool(zoom_on_axis=False), PanTool(), LassoSelectTool(continuous=False)
    plot: Any = figure(
        name=f"panel {kind}",
        x_range=ranges[0],
        y_range=ranges[1],
        tools=[pan, wheel, lasso] if isinstance(under, str) else [pan, wheel],
        active_drag=pan,
        active_scroll=wheel,
        sizing_mode="stretch_both",
        min_height=240,
        toolbar_location=None,  # what its buttons do, the controls do for all panels
        outline_line_color="#dde3ea",
        title=" ",
    )
    plot.axis.visible, plot.grid.visible = False, False
    plot.title.text_font_size = "12px"
    if isinstance(under, str):
        resolution = tiles.mpp * 2**tiles.deepest
        served = WMTSTileSource(
            url=f"{under}/{{Z}}/{{X}}/{{Y}}.jpg",
            tile_size=TILE_PX,
            min_zoom=0,
            max_zoom=tiles.deepest,
            initial_resolution=resolution,
            x_origin_offset=0.0,
            y_origin_offset=TILE_PX * resolution,
            wrap_around=False,
        )
        below = plot.add_tile(served, level="image")
    else:
        below = plot.image_url(
            "url", 0, 0, tiles.width_um, tiles.height_um, source=under, anchor="top_left", level="image"
        )
    mapper = LinearColorMapper(palette=f"{PALETTES[0]}256", nan_color="rgba(0, 0, 0, 0)")
    fill: Any = {"field": "value", "transform": mapper}
    if len(centre_um) > GLYPHS:
        source = ColumnDataSource({name: [] for name in ("image", "x", "y", "dw", "dh")})
        glyph = plot.image("image", "x", "y", "dw", "dh", source=source, color_mapper=mapper, level="glyph")
        tips = [("value", "@image{0.00}")]
    else:
        source = ColumnDataSource(
            {
                "x": centre_um[:, 0],
                "y": -centre_um[:, 1],
                "value": np.full(len(centre_um), np.nan, np.float32),
                "name": np.asarray(names, dtype=object),
            }
        )
        if lie_side_by_side(centre_um, side_um):
            glyph = plot.rect("x", "y", side_um, side_um, source=source, fill_color=fill, line_color=None)
        else:
            glyph = plot.circle("x", "y", radius=side_um / 2, source=source, fill_color=fill, line_color=None)
        glyph.nonselection_glyph = glyph.selection_glyph = None
        tips = [("location", "@name"), ("value", "@value{0.00}")]
    plot.add_tools(HoverTool(tooltips=tips, renderers=[glyph]))
    bar = ColorBar(color_mapper=mapper, ticker=BasicTicker(desired_num_ticks=5), height=8, title=" ")
    bar.title_text_font_size = bar.major_label_text_font_size = "11px"
    plot.add_layout(bar, "below")
    plot.add_layout(
        ScaleBar(
            range=ranges[0],
            unit="µm",
            dimensional=Metric(base_unit="m"),
            orientation="horizontal",
            location="bottom_left",
            background_fill_alpha=0.8,
            border_line_color=None,
            bar_length=0.18,
        )
    )
    mark = ColumnDataSource({"x": [], "y": []})
    around = 1.2 * side_um
    plot.rect("x", "y", around, around, source=mark, fill_color=None, line_color=MARK, line_width=3)
    outline = ColumnDataSource({"x": [], "y": [], "colour": []})
    plot.patches("x", "y", source=outline, fill_color=None, line_color="colour", line_width=2.5)
    return Panel(kind, slide, centre_um, side_um, plot, below, source, mapper, glyph, mark, outline)
