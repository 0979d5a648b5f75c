"""HTML pages without anything from outside: an environment that fills the templates with escaped text."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


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
    """Fill a template.

    Parameters
    ----------
    template : str
        Its name in `templates/`.
    values : mapping of str to object
        The variables of the template.
    """
    return Markup(_environment().get_template(template).render(values))


def table(
    heads: Sequence[str], rows: Iterable[Sequence[object]], *, main_row: int | None = None, words: Sequence[int] = ()
) -> Markup:
    """Return a table that scrolls sideways on a narrow screen.

    Parameters
    ----------
    rows : iterable of sequence
        Values of each row.
    main_row : int, optional
        Index of the highlighted row.
    words : sequence of int
        Columns that hold sentences.
    """
    macros: Any = _environment().get_template("macros.html").module
    return macros.table(heads, list(rows), main_row=main_row, words=words)
