"""The page of the viewer as a Bokeh document: panels with the slide and an overlay, what chooses it, and cards.

The file is one thing: the widgets of a page and what happens when they change.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from cmrcnet.errors import CmrcnetError, UnknownName
from cmrcnet.slides.section import Cohort
from cmrcnet.viewer.linked_views import keep_views
from cmrcnet.viewer.location import card, location_card
from cmrcnet.viewer.overlay import (
    EXPRESSION,
    OF_GENES,
    SIGNATURE,
    PredictedSlide,
    colour_range,
    genes_by_reliability,
)
from cmrcnet.viewer.panel import MARK, MARK_B, PALETTES, Panel, make_panel
from cmrcnet.viewer.region import CAVEAT, MOST, Region, region_table, to_geojson
from cmrcnet.viewer.saved_page import saved_page

if TYPE_CHECKING:
    from bokeh.document import Document

PAUSE_MS = 120
"""Milliseconds of moving after which many locations are pooled anew."""
LISTED = 400
"""Genes in the list at once; a search finds the others."""
IN_TABLE = 25
"""Genes of a region's table that are shown."""
MARGIN = 1.15
"""Side of the first view, in extents of the locations."""
EACH, SHARED, FIXED = "of each panel", "shared by the panels", "fixed"
AS_PREDICTED, COUNTS = "log1p, as predicted", "counts (expm1)"

Later = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs a function beside the event loop."""


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
    tile_url : str, optional
        Where tiles are served: ``.../tiles``; the slide is one picture when left out.
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
        tile_url: str | None = None,
        later: Later | None = None,
    ) -> None:
        self.slide, self.other, self.cohort, self._later = slide, other, cohort, later
        self.ranked = genes_by_reliability(slide.prediction)
        self.gene = self.ranked[0][0] if gene is None else gene
        if self.gene not in slide.prediction.var.index:
            raise UnknownName("gene in the prediction", self.gene, slide.prediction.genes)
        self.regions: dict[str, Region] = {}
        self.chosen = False
        self.panels = self._make_panels(tile_url)
        self._make_controls()
        self.show()

    # --- panels

    def _make_panels(self, tile_url: str | None) -> list[Panel]:
        from bokeh.models import ColumnDataSource, Range1d, Toggle

        slides = [self.slide] if self.other is None else [self.slide, self.other]
        half = MARGIN * max(float(np.ptp(each.centre_um, axis=0).max()) + each.side_um for each in slides) / 2

        def around(slide: PredictedSlide) -> tuple[Any, Any]:
            """Ranges that show all locations, as a square with a margin; two slides at one scale."""
            x, y = (slide.centre_um.min(axis=0) + slide.centre_um.max(axis=0)) / 2
            return Range1d(x - half, x + half), Range1d(-y - half, -y + half)

        def under(number: int, slide: PredictedSlide) -> Any:
            return f"{tile_url}/{number}" if tile_url else ColumnDataSource({"url": [slide.tiles.picture()]})

        slide, ranges, below = self.slide, around(self.slide), under(0, self.slide)
        names = list(slide.prediction.obs.index)
        own = ranges
        panels = [make_panel("predicted", slide, slide.centre_um, slide.side_um, names, ranges, below)]
        if slide.truth is not None:
            spots = slide.truth.spots
            for kind in ("measured", "error"):
                made = make_panel(kind, slide, slide.truth_um, spots.diameter_um, spots.barcodes, ranges, below)
                panels.append(made)
        if self.other is not None:
            other = self.other
            same = other.prediction.facts["slide_fingerprint"] == slide.prediction.facts["slide_fingerprint"]
            own, names = ranges if same else around(other), list(other.prediction.obs.index)
            panels.append(make_panel("second", other, other.centre_um, other.side_um, names, own, under(1, other)))
        self.link = Toggle(label="Link the two slides", active=True, sizing_mode="stretch_width")
        keep_views([panels[0].figure, *([panels[-1].figure] if own is not ranges else [])], 2 * half, self.link)
        return panels

    # --- controls

    def _make_controls(self) -> None:
        from bokeh.events import ButtonClick, SelectionGeometry, Tap
        from bokeh.models import (
            Button,
            ColumnDataSource,
            CustomJS,
            Div,
            LassoSelectTool,
            MultiSelect,
            NumericInput,
            PanTool,
            RadioButtonGroup,
            Select,
            Slider,
            TextInput,
        )

        wide: Any = {"sizing_mode": "stretch_width"}
        self.quantity = Select(title="Show", value=EXPRESSION, options=list(self.slide.quantities), **wide)
        self.search = TextInput(title="Search a gene", placeholder="name, then Enter", **wide)
        listed = self.ranked[:LISTED]
        if self.gene not in dict(listed):
            listed = [each for each in self.ranked if each[0] == self.gene] + listed
        self.genes = MultiSelect(
            title="Genes by reliability (grade, Pearson)",
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
        self.clear = Button(label="Clear", width=64)
        self.download = Button(label="Save GeoJSON", disabled=True, **wide)
        self.find = TextInput(title="Go to location", placeholder="its name, then Enter", **wide)
        nearer, further = Button(label="Zoom in", **wide), Button(label="Zoom out", **wide)
        whole_slide = Button(label="Whole slide", **wide)
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
            self.opacity.js_link("value", panel.glyph.glyph, panel.opacity)
            setattr(panel.glyph.glyph, panel.opacity, self.opacity.value)
            panel.figure.on_event(Tap, self._tapped(panel))
            panel.figure.on_event(SelectionGeometry, self._drawn(panel))
            if panel.pooled:
                for moved in (panel.figure.x_range, panel.figure.y_range):
                    moved.on_change("end", self._moved(panel))
        tools = [tool for panel in self.panels for tool in panel.figure.tools]
        pans = [tool for tool in tools if isinstance(tool, PanTool)]
        lassos = [tool for tool in tools if isinstance(tool, LassoSelectTool)]
        switch = """
            for (const pan of pans) pan.active = cb_obj.active == 0;
            for (const lasso of lassos) lasso.active = cb_obj.active != 0;"""
        self.drag.js_on_change("active", CustomJS(args={"pans": pans, "lassos": lassos}, code=switch))
        save = """
            const link = document.createElement("a");
            link.href = URL.createObjectURL(new Blob([source.data.text[0]]));
            link.download = name;
            link.click();"""
        self.download.js_on_event(
            ButtonClick, CustomJS(args={"source": self.geojson, "name": "regions.geojson"}, code=save)
        )
        figures = [panel.figure for panel in self.panels]
        zoom = """
            for (const range of new Set(figures.flatMap((f) => [f.x_range, f.y_range]))) {
                const middle = (range.start + range.end) / 2, half = (range.end - range.start) / 2 * factor;
                range.setv({start: middle - half, end: middle + half});
            }"""
        for button, factor in ((nearer, 0.6), (further, 1 / 0.6)):
            button.js_on_event(ButtonClick, CustomJS(args={"figures": figures, "factor": factor}, code=zoom))
        fit = """
            const steps = figures.map(([f, width, height]) => Math.max(width / f.inner_width, height / f.inner_height));
            const step = Math.max(...steps) / 2;
            for (const [{x_range, y_range, inner_width, inner_height}, width, height] of figures) {
                x_range.setv({start: width / 2 - step * inner_width, end: width / 2 + step * inner_width});
                y_range.setv({start: -height / 2 - step * inner_height, end: -height / 2 + step * inner_height});
            }"""
        sized = [[panel.figure, panel.slide.tiles.width_um, panel.slide.tiles.height_um] for panel in self.panels]
        whole_slide.js_on_event(ButtonClick, CustomJS(args={"figures": sized}, code=fit))
        self.zoom_buttons = nearer, further, whole_slide
        self.saved = ColumnDataSource({"text": [""]})
        self.save = Button(label="Save this page", **wide)
        self.save.on_event(ButtonClick, lambda _: self._save())
        self.saved.js_on_change("data", CustomJS(args={"source": self.saved, "name": "page.html"}, code=save))
        from bokeh.layouts import column, row

        rows = [
            self.quantity, self.search, self.genes, self.signature,
            self.drag, row(self.clear, self.download, **wide), row(nearer, further, **wide), whole_slide,
        ]  # fmt: skip
        if self.other is not None and self.panels[-1].figure.x_range is not self.panels[0].figure.x_range:
            rows.append(self.link)
        rows += [self.palette, self.opacity, self.scale, self.range, row(self.low, self.high, **wide)]
        rows += [self.find, self.save]
        self.controls = column(rows, name="controls", sizing_mode="stretch_width")
        self.side = column([self.location, self.region], name="side", sizing_mode="stretch_width")

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
                "locations": [len(each.prediction) for each in (self.slide, self.other) if each is not None],
                "genes": len(self.slide.prediction.genes),
                "reliability": str(self.slide.prediction.facts.get("gene_reliability", "")),
                "notes": notes,
            },
        )

    # --- what is shown

    def show(self) -> None:
        """Compute what the widgets ask for and draw it in every panel."""
        from bokeh.palettes import PuOr11, interp_palette

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
                ends, palette = (-far, far), list(interp_palette(PuOr11[::-1], 256))  # safe for colour-blind eyes
            if panel.pooled:
                panel.source.data = {name: [] for name in panel.source.data}  # or each end would colour the old values
            panel.mapper.update(low=ends[0], high=ends[1], palette=palette)
            panel.draw(values)
            panel.figure.below[-1].title = units
            panel.figure.title.text = title  # last: it never stands over the values of another gene

    def show_name(self, name: str) -> None:
        """Show another gene, or signature."""
        if self.quantity.value == SIGNATURE:
            self.signature.value = name
        else:
            self.genes.value = [name]

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
            away = np.hypot(panel.slide.centre_um[:, 0] - event.x, panel.slide.centre_um[:, 1] + event.y)
            row = int(np.argmin(away))
            if away[row] <= panel.slide.side_um:
                self.choose(panel.slide, row)

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
        self.chosen = True
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
        self.geojson.data = {"text": [to_geojson(regions, self.slide)]}
        self.download.disabled = not regions
        for panel in self.panels:
            if panel.slide is self.slide:
                panel.outline.data = {
                    "x": [region.outline_um[:, 0] for region in regions],
                    "y": [-region.outline_um[:, 1] for region in regions],
                    "colour": [MARK if region.name == "A" else MARK_B for region in regions],
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

    def _moved(self, panel: Panel) -> Callable[[str, Any, Any], None]:
        """Draw what came into sight, once for all moves within `PAUSE_MS`."""
        waiting = []

        def draw() -> None:
            waiting.clear()
            if panel.values is not None:
                panel.draw(panel.values)

        def moved(_attr: str, _old: Any, _new: Any) -> None:
            if not waiting and panel.figure.document is not None:
                waiting.append(panel.figure.document.add_timeout_callback(draw, PAUSE_MS))

        return moved

    # --- the document

    def _save(self) -> None:
        """Make a page to keep, which the browser then downloads."""
        self.save.update(label="Saving …", disabled=True)
        document: Any = self.save.document

        def fill() -> None:
            try:
                made = saved_page(self)
                self.saved.data = {"text": [made]}
            except CmrcnetError as error:
                self.location.text = card("hint.html", {"problem": str(error)})
            self.save.update(label="Save this page", disabled=False)

        document.add_next_tick_callback(fill)

    @property
    def title(self) -> str:
        """Of the browser's tab."""
        return f"{self.slide.name}, predicted expression"

    def add_to(self, doc: Document) -> None:
        """Put the page into a document."""
        from bokeh.events import ClientReconnected, ConnectionLost
        from bokeh.models import CustomJS
        from jinja2 import Template

        tiles = [panel.below for panel in self.panels]
        code = "for (const each of tiles) each.visible = visible;"  # or a lost server would be asked without end
        for event, visible in ((ConnectionLost, False), (ClientReconnected, True)):
            doc.js_on_event(event, CustomJS(args={"tiles": tiles, "visible": visible}, code=code))
        doc.title = self.title
        doc.template = Template((resources.files("cmrcnet.viewer") / "templates" / "page.html").read_text("utf-8"))
        doc.template_variables["live"] = True
        with doc.models.freeze():  # or each root would search those before it again
            for root in (self.top, self.controls, *(panel.figure for panel in self.panels), self.side):
                doc.add_root(root)
