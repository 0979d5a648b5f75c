"""HTML pages without anything from outside: templates filled with escaped text, and figures as SVG."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cmrcnet.slides.table_kinds import TableKind, feature_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAIN_COLOUR, GREY = "#7a2e8e", "#9aa4b0"


@cache
def _environment() -> Environment:
    """Templates of this package; every value is escaped unless it is `Markup`."""
    environment = Environment(
        loader=PackageLoader("cmrcnet.evaluation.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["base64"] = lambda image: base64.b64encode(image).decode("ascii")
    return environment


def render(template: str, values: Mapping[str, Any]) -> Markup:
    """Fill a template of `templates/`."""
    return Markup(_environment().get_template(template).render(values))


def page_of_kind(page: str, kind: TableKind) -> str:
    """A page whose text speaks of features, where its table holds no genes; tags, scripts and styles stay."""
    parts = re.split(r"(<script.*?</script>|<style.*?</style>|<[^>]*>)", page, flags=re.DOTALL)
    return "".join(part if place % 2 else feature_words(part, kind) for place, part in enumerate(parts))


def table(
    heads: Sequence[str], rows: Iterable[Sequence[object]], *, main_row: int | None = None, words: Sequence[int] = ()
) -> Markup:
    """Return a table that scrolls sideways; `main_row` is highlighted, and the columns `words` hold sentences."""
    macros: Any = _environment().get_template("macros.html").module
    return macros.table(heads, list(rows), main_row=main_row, words=words)


def svg(draw: Callable[[Axes], None], size: tuple[float, float]) -> bytes:
    """Draw on the axes of a small figure of a size in inches; the same bytes every time."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    plain: Any = {"svg.fonttype": "none", "svg.hashsalt": "cmrcnet", "font.family": "sans-serif", "font.size": 10}
    with mpl.rc_context(plain):
        drawing = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(drawing)
        axes = drawing.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        out = io.BytesIO()
        drawing.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
