"""The page itself: one HTML file without anything from outside, and the few shapes that its sections are made of."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from importlib import resources
from string import Template
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmrcnet.evaluation.protocol.evaluation_run import EvaluationRun


def page(title: str, body: str) -> str:
    """The whole file. `body` is HTML that is safe already; the title is text."""
    room = resources.files("cmrcnet.evaluation.report") / "templates"
    frame, script = ((room / f"report_page.{kind}").read_text(encoding="utf-8") for kind in ("html", "js"))
    return Template(frame).substitute(title=text(title), body=body, script=script)


def text(value: object) -> str:
    """Any value as text that cannot be taken for markup. Everything from outside the package goes through this."""
    return html.escape(str(value), quote=True)


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    identity: str = "",
    sortable: bool = False,
    main_row: int | None = None,
    words: Sequence[int] = (),
    tall: bool = False,
) -> str:
    """A table that scrolls sideways on a narrow screen; columns in `words` hold sentences."""

    def cells(tag: str, values: Sequence[object]) -> str:
        kind = [' class="words"' if i in words else "" for i in range(len(values))]
        return "".join(f"<{tag}{k}>{text(v)}</{tag}>" for k, v in zip(kind, values, strict=True))

    marked = ' class="main"'
    body = "".join(f"<tr{marked if i == main_row else ''}>{cells('td', row)}</tr>\n" for i, row in enumerate(rows))
    attributes = (f' id="{text(identity)}"' if identity else "") + (' class="sortable"' if sortable else "")
    return (
        f'<div class="scroll{" tall" if tall else ""}"><table{attributes}>\n'
        f"<thead><tr>{cells('th', heads)}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )


def figure(image: bytes, kind: str, alternative: str, caption: str) -> str:
    """A picture inside the file. `kind` is jpeg, png or svg+xml; `caption` is safe HTML."""
    data = base64.b64encode(image).decode("ascii")
    return (
        f'<figure><img alt="{text(alternative)}" src="data:image/{kind};base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )


def folded(summary: str, body: str) -> str:
    """Something that opens at a touch. `body` is safe HTML."""
    return f"<details><summary>{text(summary)}</summary>{body}</details>\n"


def stamp_line(run: EvaluationRun, more: str = "") -> str:
    """The protocol in small print, for under a table."""
    return f'<p class="stamp">{text(run.stamp.to_text())} {text(more)}</p>\n'
