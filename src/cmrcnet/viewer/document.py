"""The page of the viewer as a Bokeh document: panels with the slide and an overlay, what chooses it, and cards.

Plot coordinates are micrometres with y upwards, so y is minus the distance from the slide's upper edge.

The file is one thing: the widgets of one page and what happens when they change.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from cmrcnet.errors import CmrcnetError, UnknownName
from cmrcnet.slides.section import Cohort
from cmrcnet.viewer.location import card, location_card
from cmrcnet.viewer.overlay import (
    EXPRESSION,
    GLYPHS,
    OF_GENES,
    SIGNATURE,
    PredictedSlide,
    colour_range,
    genes_by_reliability,
    raster,
)
from cmrcnet.viewer.region import CAVEAT, MOST, Region, region_table, to_geojson
from cmrcnet.viewer.tiles import TILE_PX

if TYPE_CHECKING:
    from bokeh.document import Document

PALETTES = ("Viridis", "Cividis", "Magma", "Inferno", "Greys")
"""All of even lightness and safe for colour-blind eyes; the first is the default."""
LISTED = 400
"""Genes in the list at once; a search finds the others."""
IN_TABLE = 25
"""Genes of a region's table that are shown."""
MARK = "#7a2e8e"
MARGIN = 1.15
"""Side of the first view, in extents of the locations."""
EACH, SHARED, FIXED = "of each panel", "shared by the panels", "fixed"
AS_PREDICTED, COUNTS = "log1p, as predicted", "counts (expm1)"

Later = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs a function beside the event loop."""


@dataclass(eq=False)
class Panel:
    """One plot: a slide with an overlay of values at `centre_um` (places, 2)."""

    kind: str
    slide: PredictedSlide
    centre_um: np.ndarray
    side_um: float
    figure: Any
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

    def draw(self, values: np.ndarray) -> None:
        """Show values (places,)."""
        self.values = values
        if not self.pooled:
            self.source.data["value"] = values
            return
        ranges = self.figure.x_range, self.figure.y_range
        (left, right), (below, above) = ((float(r.start), float(r.end)) for r in ranges)
        across, down = right - left, above - below
        window = (left - across / 2, -above - down / 2, right + across / 2, -below + down / 2)
        slide = self.slide.tiles
        window = (max(window[0], 0.0), max(window[1], 0.0), min(window[2], slide.width_um),
                  min(window[3], slide.height_um))  # fmt: skip
        if window[0] >= window[2] or window[1] >= window[3]:
            return
        found = raster(self.centre_um, values, self.side_um, window)
        self.source.data = {
            "image": [found.cells[::-1]],
            "x": [found.left],
            "y": [-found.bottom],
            "dw": [found.right - found.left],
            "dh": [found.bottom - found.top],
        }


class Page:
    """The document of one browser tab.

    Parameters
    ----------
    slide : PredictedSlide
    other : PredictedSlide, optional
        A second prediction, of the same slide or of another.
    cohort : Cohort, optional
        That of the bank.
    gene : str, optional
        Shown first; the most reliable when left out.
    tile_url : str
        Where tiles are served: ``.../tiles``.
    later : function, optional
        Runs slow work beside the event loop; at once when left out.
    """

    def __init__(
        self,
        slide: PredictedSlide,
        *,
        other: PredictedSlide | None = None,
        cohort: Cohort | None = None,
        gene: str | None = None,
        tile_url: str = "tiles",
        later: Later | None = None,
    ) -> None:
        self.slide, self.other, self.cohort, self._later = slide, other, cohort, later
        self.ranked = genes_by_reliability(slide.prediction)
        self.gene = self.ranked[0][0] if gene is None else gene
        if self.gene not in slide.prediction.var.index:
            raise UnknownName("gene in the prediction", self.gene, slide.prediction.genes)
        self.regions: dict[str, Region] = {}
        self.panels = self._make_panels(tile_url)
        self._make_controls()
        self.show()

    # --- panels

    def _make_panels(self, tile_url: str) -> list[Panel]:
        from bokeh.models import Range1d

        def around(slide: PredictedSlide) -> tuple[Any, Any]:
            """Ranges that show all locations, as a square with a margin."""
            low, high = slide.centre_um.min(axis=0), slide.centre_um.max(axis=0)
            half = MARGIN * float((high - low).max() + slide.side_um) / 2
            x, y = (low + high) / 2
            return Range1d(x - half, x + half), Range1d(-y - half, -y + half)

        ranges = around(self.slide)
        predicted = self.slide.centre_um
        panels = [self._panel("predicted", self.slide, predicted, self.slide.side_um, ranges, f"{tile_url}/0")]
        truth = self.slide.truth
        if truth is not None:
            for kind in ("measured", "error"):
                side = float(truth.spots.diameter_um)
                panels.append(self._panel(kind, self.slide, self.slide.truth_um, side, ranges, f"{tile_url}/0"))
        if self.other is not None:
            same = self.other.prediction.facts["slide_fingerprint"] == self.slide.prediction.facts["slide_fingerprint"]
            own = ranges if same else around(self.other)
            found = self._panel("second", self.other, self.other.centre_um, self.other.side_um, own, f"{tile_url}/1")
            panels.append(found)
        return panels

    def _panel(
        self, kind: str, slide: PredictedSlide, centre_um: np.ndarray, side_um: float, ranges: Any, url: str
    ) -> Panel:
        from bokeh.models import (
            BasicTicker,
            ColorBar,
            ColumnDataSource,
            HoverTool,
            LassoSelectTool,
            LinearColorMapper,
            Metric,
            PanTool,
            ResetTool,
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
            tools=[pan, wheel, lasso, ResetTool()],
            active_drag=pan,
            active_scroll=wheel,
            sizing_mode="stretch_both",
            min_height=240,
            toolbar_location="above",
            background_fill_color="#ffffff",
            outline_line_color="#dde3ea",
            title=" ",
        )
        plot.axis.visible, plot.grid.visible = False, False
        plot.title.text_font_size = "12px"
        plot.toolbar.logo = None
        resolution = tiles.mpp * 2**tiles.deepest
        plot.add_tile(
            WMTSTileSource(
                url=f"{url}/{{Z}}/{{X}}/{{Y}}.jpg",
                tile_size=TILE_PX,
                min_zoom=0,
                max_zoom=tiles.deepest,
                initial_resolution=resolution,
                x_origin_offset=0.0,
                y_origin_offset=TILE_PX * resolution,
                wrap_around=False,
            ),
            level="image",
        )
        mapper = LinearColorMapper(palette=f"{PALETTES[0]}256", nan_color="rgba(0, 0, 0, 0)")
        pooled = len(centre_um) > GLYPHS
        fill: Any = {"field": "value", "transform": mapper}
        if pooled:
            source = ColumnDataSource({name: [] for name in ("image", "x", "y", "dw", "dh")})
            glyph = plot.image("image", "x", "y", "dw", "dh", source=source, color_mapper=mapper, level="glyph")
            tips = [("value", "@image{0.00}")]
        else:
            if kind in ("predicted", "second"):
                names = slide.prediction.obs.index
            else:
                assert self.slide.truth is not None
                names = self.slide.truth.spots.barcodes
            source = ColumnDataSource(
                {
                    "x": centre_um[:, 0],
                    "y": -centre_um[:, 1],
                    "value": np.full(len(centre_um), np.nan, np.float32),
                    "name": np.asarray(names, dtype=object),
                }
            )
            if slide.tiled:
                glyph = plot.rect("x", "y", side_um, side_um, source=source, fill_color=fill, line_color=None)
            else:
                glyph = plot.circle("x", "y", radius=side_um / 2, source=source, fill_color=fill, line_color=None)
            glyph.nonselection_glyph = glyph.selection_glyph = None
            tips = [("location", "@name"), ("value", "@value{0.00}")]
        plot.add_tools(HoverTool(tooltips=tips, renderers=[glyph]))
        bar = ColorBar(color_mapper=mapper, ticker=BasicTicker(desired_num_ticks=5), height=8, title=" ")
        bar.title_text_font_size, bar.major_label_text_font_size = "11px", "11px"
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
        plot.rect("x", "y", side_um * 1.2, side_um * 1.2, source=mark, fill_color=None, line_color=MARK, line_width=3)
        outline = ColumnDataSource({"x": [], "y": [], "colour": []})
        plot.patches("x", "y", source=outline, fill_color=None, line_color="colour", line_width=2.5)
        return Panel(kind, slide, centre_um, side_um, plot, source, mapper, glyph, mark, outline)

    # --- controls

    def _make_controls(self) -> None:
        from bokeh.events import ButtonClick, RangesUpdate, SelectionGeometry, Tap
        from bokeh.models import (
            Button,
            ColumnDataSource,
            CustomJS,
            Div,
            MultiSelect,
            NumericInput,
            RadioButtonGroup,
            Select,
            Slider,
            TextInput,
            Toggle,
        )

        wide: Any = {"sizing_mode": "stretch_width"}
        self.quantity = Select(title="Show", value=EXPRESSION, options=list(self.slide.quantities), **wide)
        self.search = TextInput(title="Search a gene", placeholder="name, then Enter", **wide)
        listed = self.ranked[:LISTED]
        if self.gene not in dict(listed):
            listed = [each for each in self.ranked if each[0] == self.gene] + listed
        self.genes = MultiSelect(
            title="Genes, most reliable first (grade, Pearson)",
            value=[self.gene],
            options=list(listed),
            size=11,
            stylesheets=["select.bk-input { font: 12px ui-monospace, 'DejaVu Sans Mono', monospace; }"],
            **wide,
        )
        whole = ColumnDataSource({"gene": [g for g, _ in self.ranked], "line": [line for _, line in self.ranked]})
        filtered = f"""
            const wanted = search.value_input.trim().toUpperCase(), found = [], {{gene, line}} = whole.data;
            for (let i = 0; i < gene.length && found.length < {LISTED}; i++)
                if (gene[i].toUpperCase().includes(wanted)) found.push([gene[i], line[i]]);
            genes.options = found;"""
        names: Any = {"search": self.search, "genes": self.genes, "whole": whole}
        self.search.js_on_change("value_input", CustomJS(args=names, code=filtered))
        first = """
            const wanted = search.value.trim().toUpperCase();
            const exact = genes.options.find((each) => each[0].toUpperCase() === wanted) ?? genes.options[0];
            if (wanted && exact) genes.value = [exact[0]];"""
        self.search.js_on_change("value", CustomJS(args=names, code=first))
        signatures = list(self.slide.signatures)
        self.signature = Select(
            title="Signature", value=signatures[0] if signatures else "", options=[*signatures], visible=False, **wide
        )
        self.palette = Select(title="Colours", value=PALETTES[0], options=list(PALETTES), **wide)
        self.opacity = Slider(title="Opacity", start=0, end=1, step=0.05, value=0.75, **wide)
        self.scale = Select(title="Scale", value=AS_PREDICTED, options=[AS_PREDICTED, COUNTS], **wide)
        self.range = Select(title="Range of the colours", value=SHARED, options=[EACH, SHARED, FIXED], **wide)
        self.low = NumericInput(title="from", value=0.0, mode="float", visible=False, **wide)
        self.high = NumericInput(title="to", value=5.0, mode="float", visible=False, **wide)
        self.drag = RadioButtonGroup(labels=["Move", "Region A", "Region B"], active=0, **wide)
        self.clear = Button(label="Clear", **wide)
        self.download = Button(label="Save GeoJSON", disabled=True, **wide)
        self.find = TextInput(title="Go to location", placeholder="its name, then Enter", **wide)
        nearer, further = Button(label="Zoom in", **wide), Button(label="Zoom out", **wide)
        whole_slide = Button(label="Whole slide", **wide)
        self.link = Toggle(label="Link the two slides", active=True, **wide)
        style = (resources.files("cmrcnet.viewer") / "templates" / "card.css").read_text("utf-8")
        cards: Any = {"disable_math": True, "stylesheets": [style], **wide}
        self.location = Div(text=card("hint.html", {}), **cards)
        self.region = Div(**cards)
        self.geojson = ColumnDataSource({"text": [""]})
        self.top = Div(name="top", text=self._top(), **cards)

        for widget in (
            self.quantity, self.genes, self.signature, self.palette, self.scale, self.range, self.low, self.high,
        ):  # fmt: skip
            widget.on_change("value", lambda _attr, _old, _new: self.show())
        self.find.on_change("value", lambda _attr, _old, new: self.go_to(new))
        self.clear.on_event(ButtonClick, lambda _: self.clear_regions())
        for panel in self.panels:
            self.opacity.js_link("value", panel.glyph.glyph, "global_alpha" if panel.pooled else "fill_alpha")
            setattr(panel.glyph.glyph, "global_alpha" if panel.pooled else "fill_alpha", self.opacity.value)
            panel.figure.on_event(Tap, self._tapped(panel))
            panel.figure.on_event(SelectionGeometry, self._drawn(panel))
            if panel.pooled:
                panel.figure.on_event(RangesUpdate, self._moved(panel))
        pans = [panel.figure.tools[0] for panel in self.panels]
        lassos = [panel.figure.tools[2] for panel in self.panels]
        switch = """
            for (const pan of pans) pan.active = cb_obj.active == 0;
            for (const lasso of lassos) lasso.active = cb_obj.active != 0;"""
        self.drag.js_on_change("active", CustomJS(args={"pans": pans, "lassos": lassos}, code=switch))
        save = """
            const link = document.createElement("a");
            link.href = URL.createObjectURL(new Blob([source.data.text[0]], {type: "application/geo+json"}));
            link.download = "regions.geojson";
            link.click();"""
        self.download.js_on_event(ButtonClick, CustomJS(args={"source": self.geojson}, code=save))
        figures = [panel.figure for panel in self.panels]
        zoom = """
            for (const range of new Set(figures.flatMap((f) => [f.x_range, f.y_range]))) {
                const middle = (range.start + range.end) / 2, half = (range.end - range.start) / 2 * factor;
                range.setv({start: middle - half, end: middle + half});
            }"""
        for button, factor in ((nearer, 0.6), (further, 1 / 0.6)):
            button.js_on_event(ButtonClick, CustomJS(args={"figures": figures, "factor": factor}, code=zoom))
        fit = """
            for (const [figure, width, height] of figures) {
                const {x_range, y_range, inner_width, inner_height} = figure;
                const step = Math.max(width / inner_width, height / inner_height) / 2;
                x_range.setv({start: width / 2 - step * inner_width, end: width / 2 + step * inner_width});
                y_range.setv({start: -height / 2 - step * inner_height, end: -height / 2 + step * inner_height});
            }"""
        sized = [[panel.figure, panel.slide.tiles.width_um, panel.slide.tiles.height_um] for panel in self.panels]
        whole_slide.js_on_event(ButtonClick, CustomJS(args={"figures": sized}, code=fit))
        from bokeh.layouts import column, row

        rows = [
            self.quantity, self.search, self.genes, self.signature, self.palette, self.opacity, self.scale, self.range,
            row(self.low, self.high, sizing_mode="stretch_width"),
            row(nearer, further, sizing_mode="stretch_width"), whole_slide,
        ]  # fmt: skip
        if self.other is not None and self.panels[-1].figure.x_range is not self.panels[0].figure.x_range:
            self._link_slides()
            rows.append(self.link)
        rows += [self.find, self.drag, row(self.clear, self.download, sizing_mode="stretch_width")]
        self.controls = column(rows, name="controls", sizing_mode="stretch_width")
        self.side = column([self.location, self.region], name="side", sizing_mode="stretch_width")

    def _link_slides(self) -> None:
        """Pan and zoom two slides together, each from where it is."""
        from bokeh.models import CustomJS

        one, two = self.panels[0].figure, self.panels[-1].figure
        code = """
            const last = (window.cmrcnet_last ??= new Map());
            const keep = () => { for (const range of all) last.set(range.id, [range.start, range.end]); };
            if (!link.active || window.cmrcnet_linking || !last.has(cb_obj.id)) { keep(); return; }
            const pair = pairs.find((each) => each.includes(cb_obj));
            const to = pair[0] === cb_obj ? pair[1] : pair[0], before = last.get(cb_obj.id);
            const scale = (cb_obj.end - cb_obj.start) / (before[1] - before[0]);
            const moved = (cb_obj.start + cb_obj.end - before[0] - before[1]) / 2;
            const middle = (to.start + to.end) / 2 + moved, half = (to.end - to.start) / 2 * scale;
            window.cmrcnet_linking = true;
            to.setv({start: middle - half, end: middle + half});
            window.cmrcnet_linking = false;
            keep();"""
        pairs = [[one.x_range, two.x_range], [one.y_range, two.y_range]]
        every = [each for pair in pairs for each in pair]
        for each in every:
            callback = CustomJS(args={"pairs": pairs, "all": every, "link": self.link}, code=code)
            each.js_on_change("start", callback)
            each.js_on_change("end", callback)

    def _top(self) -> str:
        facts = self.slide.prediction.facts
        ood: Any = facts.get("ood", {})
        notes = [str(ood["sentence"])] if int(ood.get("raised", 0)) else []
        for each in (self.slide, self.other):
            if each is not None and not each.deep:
                notes.append(f"Of {each.name} only the small picture in the table is shown; deep zoom needs the slide.")
        return card(
            "top.html",
            {
                "slide": self.slide.name,
                "other": None if self.other is None else self.other.name,
                "locations": len(self.slide.prediction),
                "genes": len(self.slide.prediction.genes),
                "reliability": str(self.slide.prediction.facts.get("gene_reliability", "")),
                "notes": notes,
            },
        )

    # --- what is shown

    def show(self) -> None:
        """Compute what the widgets ask for and draw it in every panel."""
        quantity = self.quantity.value
        if self.genes.value:
            self.gene = self.genes.value[-1]
        name = self.signature.value if quantity == SIGNATURE else self.gene
        self.scale.visible = quantity == EXPRESSION and self.slide.scaling.kind == "counts"
        counts = self.scale.visible and self.scale.value == COUNTS
        self.signature.visible = quantity == SIGNATURE
        self.search.visible = self.genes.visible = quantity in OF_GENES
        self.low.visible = self.high.visible = self.range.value == FIXED
        drawn = [self._values(panel, quantity, name, counts) for panel in self.panels]
        alike = [values for panel, (values, _, _) in zip(self.panels, drawn, strict=True) if panel.kind != "error"]
        low, high = self.low.value, self.high.value
        if low is None or high is None or low >= high:
            low, high = colour_range(np.concatenate(alike))
        shared = (low, high) if self.range.value == FIXED else colour_range(np.concatenate(alike))
        for panel, (values, units, title) in zip(self.panels, drawn, strict=True):
            ends = colour_range(values) if self.range.value == EACH else shared
            palette: Any = f"{self.palette.value}256"
            if panel.kind == "error":
                far = max(abs(end) for end in colour_range(values))
                ends, palette = (-far, far), _diverging()
            panel.mapper.update(low=ends[0], high=ends[1], palette=palette)
            panel.figure.title.text = title
            panel.figure.below[-1].title = units
            panel.draw(values)

    def _values(self, panel: Panel, quantity: str, name: str, counts: bool) -> tuple[np.ndarray, str, str]:
        """Values, their units, and the title of a panel."""
        of = quantity if quantity not in (EXPRESSION, SIGNATURE) else name
        of = f"{name}: {quantity}" if quantity in OF_GENES[1:] else of
        nothing = np.full(len(panel.centre_um), np.nan, np.float32)
        units, title = "", ""
        try:
            values, units = panel.slide.values(quantity, name)
        except UnknownName:
            return nothing, units, f"{of}: not in the table of {panel.slide.name}"
        if panel.kind in ("measured", "error"):
            measured = panel.slide.measured(quantity, name)
            if measured is None:
                return nothing, units, f"{of}: not measured"
            if counts:
                values, measured = np.expm1(values), np.expm1(measured)
            kind = "measured" if panel.kind == "measured" else "predicted minus measured"
            values = measured if panel.kind == "measured" else panel.slide.error(values, measured)
            title = f"{of}, {kind}"
        else:
            values = np.expm1(values) if counts else values
            title = f"{of}, predicted" if quantity in (EXPRESSION, SIGNATURE) else of
            title += f" ({panel.slide.name})" if self.other is not None else ""
        return values, f"expm1 of {units}" if counts else units, title

    # --- a location

    def _tapped(self, panel: Panel) -> Callable[[Any], None]:
        def tapped(event: Any) -> None:
            distance, row = panel.slide.nearest(np.array([event.x, -event.y]))
            if distance <= panel.slide.side_um:
                self.choose(panel.slide, int(row))

        return tapped

    def go_to(self, name: str) -> None:
        """Choose the location of a name on the first slide."""
        names = self.slide.prediction.obs.index
        if name in names:
            self.choose(self.slide, names.tolist().index(name))
        elif name:
            self.location.text = card("hint.html", {"problem": f"There is no location {name}."})

    def choose(self, slide: PredictedSlide, row: int) -> None:
        """Mark a location and show its card."""
        x, y = slide.centre_um[row]
        for panel in self.panels:
            here = panel.slide is slide
            panel.mark.data = {"x": [x] if here else [], "y": [-y] if here else []}
        gene, ranked = self.gene, [each for each, _ in self.ranked]
        self.side.children = [self.location, self.region]

        def make() -> str:
            try:
                return location_card(slide, row, gene, ranked, self.cohort)
            except CmrcnetError as error:
                return card("hint.html", {"problem": str(error)})

        if self._later is not None and self.cohort is not None:
            waiting = "The measured tissue of these spots is being read."
            self.location.text = location_card(slide, row, gene, ranked, None, without=waiting)
        self._fill(self.location, make)

    def _fill(self, target: Any, make: Callable[[], str]) -> None:
        """Fill a card with what takes a moment to make."""
        if self._later is None or target.document is None:
            target.text = make()
            return
        later = self._later

        async def fill() -> None:
            target.text = await later(make)

        target.document.add_next_tick_callback(fill)

    # --- regions

    def _drawn(self, panel: Panel) -> Callable[[Any], None]:
        def drawn(event: Any) -> None:
            shape = event.geometry
            if event.final and shape["type"] == "poly" and panel.slide is self.slide:
                outline = np.column_stack([shape["x"], -np.asarray(shape["y"], np.float64)])
                self.draw_region("B" if self.drag.active == 2 else "A", outline)

        return drawn

    def draw_region(self, name: str, outline_um: np.ndarray) -> None:
        """Take an outline (corners, 2) as region A or B, and compare the two, or A with the rest."""
        self.regions[name] = Region.drawn(name, outline_um, self.slide.centre_um)
        self._show_regions()

    def clear_regions(self) -> None:
        """Forget both regions."""
        self.regions.clear()
        self._show_regions()

    def _show_regions(self) -> None:
        regions = [self.regions[name] for name in sorted(self.regions)]
        self.geojson.data = {"text": [to_geojson(regions, self.slide.prediction)]}
        self.download.disabled = not regions
        for panel in self.panels:
            if panel.slide is self.slide:
                panel.outline.data = {
                    "x": [region.outline_um[:, 0] for region in regions],
                    "y": [-region.outline_um[:, 1] for region in regions],
                    "colour": [MARK if region.name == "A" else "#0b6e4f" for region in regions],
                }
        if not regions:
            self.region.text = ""
            return
        first = regions[0]
        rest = np.setdiff1d(np.arange(len(self.slide.prediction)), first.rows, assume_unique=True)
        other = regions[1].rows if len(regions) > 1 else rest

        def make() -> str:
            try:
                table = region_table(self.slide.prediction, first, other)
            except CmrcnetError as error:
                return card("hint.html", {"problem": str(error)})
            return card(
                "region.html",
                {
                    "region": first,
                    "against": f"region {regions[1].name}" if len(regions) > 1 else "the rest",
                    "other": len(other),
                    "sampled": MOST if max(len(first.rows), len(other)) > MOST else 0,
                    "caveat": CAVEAT,
                    "genes": table.head(IN_TABLE).to_dict("records"),
                    "units": self.slide.prediction.facts["units"],
                },
            )

        self.side.children = [self.region, self.location]
        self.region.text = card("hint.html", {"problem": f"Region {first.name}: comparing its genes …"})
        self._fill(self.region, make)

    def _moved(self, panel: Panel) -> Callable[[Any], None]:
        def moved(_: Any) -> None:
            if panel.values is not None:
                panel.draw(panel.values)

        return moved

    # --- the document

    def add_to(self, doc: Document) -> None:
        """Put the page into a document."""
        from jinja2 import Template

        doc.title = f"{self.slide.name}, predicted expression"
        doc.template = Template((resources.files("cmrcnet.viewer") / "templates" / "page.html").read_text("utf-8"))
        doc.template_variables["live"] = True
        for root in (self.top, self.controls, *(panel.figure for panel in self.panels), self.side):
            doc.add_root(root)


def _diverging() -> list[str]:
    """Purple to orange through white: safe for colour-blind eyes."""
    from bokeh.palettes import PuOr11, interp_palette

    return list(interp_palette(PuOr11[::-1], 256))
