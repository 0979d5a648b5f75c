"""The view as one HTML file to mail: it needs no server and no network, and says what it leaves out."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

from cmrcnet.errors import BadOption
from cmrcnet.viewer.location import card
from cmrcnet.viewer.overlay import OF_GENES, SIGNATURE
from cmrcnet.viewer.panel import PALETTES

if TYPE_CHECKING:
    from cmrcnet.viewer.document import Page

LARGEST_MB = 20
"""Size of a page, at most, so that it can be mailed."""
VALUES_MB = 8
"""Values of further genes, at most."""
MOST_GENES = 40


def saved_page(page: Page) -> str:
    """Make the HTML of what a page shows, with further genes as far as `VALUES_MB` and `MOST_GENES` allow.

    Raises
    ------
    BadOption
        It would be larger than `LARGEST_MB`.
    """
    from bokeh.embed import file_html
    from bokeh.layouts import column, row
    from bokeh.models import CustomJS, Select
    from bokeh.palettes import all_palettes
    from bokeh.resources import INLINE
    from jinja2 import Template

    still = type(page)(page.slide, other=page.other, gene=page.gene)
    for name in ("quantity", "signature", "palette", "scale", "range", "low", "high", "opacity"):
        getattr(still, name).value = getattr(page, name).value
    quantity = page.quantity.value
    chosen = page.signature.value if quantity == SIGNATURE else page.gene
    names = [chosen]
    if quantity == SIGNATURE:
        names += [name for name in page.slide.signatures if name != chosen]
    elif quantity in OF_GENES:
        names += [gene for gene, _ in page.ranked[: MOST_GENES + 1] if gene != chosen]
    of_one = sum(len(panel.centre_um) * 4 * 4 / 3 for panel in still.panels)
    most = 1 if any(panel.pooled for panel in still.panels) else max(1, int(VALUES_MB * 2**20 / of_one))
    names = names[: min(most, MOST_GENES)]
    stores, titles, ends = {}, {}, {}
    for name in [*names[1:], chosen]:
        still.show_name(name)
        stores[name] = [None if panel.pooled else panel.source.data["value"] for panel in still.panels]
        titles[name] = [panel.figure.title.text for panel in still.panels]
        ends[name] = [[panel.mapper.low, panel.mapper.high] for panel in still.panels]
    for mine, live in zip(still.panels, page.panels, strict=True):
        for own, its in ((mine.figure.x_range, live.figure.x_range), (mine.figure.y_range, live.figure.y_range)):
            own.update(start=its.start, end=its.end)
        mine.mark.data, mine.outline.data = dict(live.mark.data), dict(live.outline.data)
    still.location.text = page.location.text if page.chosen else ""
    still.region.text = page.region.text

    wide: Any = {"sizing_mode": "stretch_width"}
    of_names = quantity in (*OF_GENES, SIGNATURE)
    choose = Select(title=quantity, value=chosen, options=[*names], visible=of_names, **wide)
    parts: Any = {
        "sources": [panel.source for panel in still.panels],
        "mappers": [panel.mapper for panel in still.panels],
        "figures": [panel.figure for panel in still.panels],
        "stores": stores,
        "titles": titles,
        "ends": ends,
    }
    code = """
        const name = cb_obj.value;
        sources.forEach((source, i) => {
            const values = stores[name][i], [low, high] = ends[name][i];
            if (values != null) source.data = {...source.data, value: values};
            mappers[i].setv({low, high});
            figures[i].title.text = titles[name][i];
        });"""
    choose.js_on_change("value", CustomJS(args=parts, code=code))
    palettes = {name: list(all_palettes[name][256]) for name in PALETTES}
    colours = Select(title="Colours", value=page.palette.value, options=[*PALETTES], **wide)
    mappers = [panel.mapper for panel in still.panels if panel.kind != "error"]
    paint = "for (const mapper of mappers) mapper.palette = palettes[cb_obj.value];"
    colours.js_on_change("value", CustomJS(args={"mappers": mappers, "palettes": palettes}, code=paint))
    of = "genes" if quantity in OF_GENES else "signatures"
    there = len(page.ranked) if quantity in OF_GENES else len(page.slide.signatures)
    left_out = [
        f"deep zoom (the slide is a picture of {max(page.slide.tiles.picture_size)} px)",
        *([f"{there - len(names):,} of {there:,} {of}"] if of_names else []),
        "other quantities",
        "the cards of other locations and regions",
    ]
    still.top.text = page.top.text + card("left_out.html", {"left_out": left_out})
    nearer, further, whole = still.zoom_buttons
    beside: Any = row(nearer, further, **wide)
    controls = column([choose, colours, still.opacity, beside, whole], name="controls", **wide)
    roots = [still.top, controls, *(panel.figure for panel in still.panels), still.side]
    template = Template((resources.files("cmrcnet.viewer") / "templates" / "page.html").read_text("utf-8"))
    html = file_html(
        roots, INLINE, page.title, template=template, template_variables={"live": False}, suppress_callback_warning=True
    )
    if len(html.encode()) > LARGEST_MB * 2**20:
        size = f"{len(html.encode()) / 2**20:.0f} MB, and {LARGEST_MB} are allowed"
        raise BadOption.from_sentence(f"The page would have {size}; leave out the second slide or the truth.")
    return html
