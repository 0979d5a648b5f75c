"""Generate docs/reference from the code.

    python docs/make_reference.py            # writes cli.md, config.md and python.md
    python docs/make_reference.py --check    # exit code 1 if a page is out of date

tests/test_docs.py runs the check.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
import typing
from itertools import pairwise
from pathlib import Path

import yaml
from numpydoc.docscrape import FunctionDoc

import cmrcnet
from cmrcnet.config import Config, shipped_presets

FOLDER = Path(__file__).parent / "reference"
STAMP = "<!-- Written by docs/make_reference.py: change the code, then run it. -->\n"


def pages() -> dict[str, str]:
    """Name and text of every generated page."""
    return {"cli.md": cli_page(), "config.md": config_page(), "python.md": python_page()}


# --- the command line ----------------------------------------------------------------------------------------------


def cli_page() -> str:
    """One section per command, from the parser's arguments and the docstring."""
    from cmrcnet.cli.app import VERBS, make_app

    lines = [
        STAMP,
        "# The command line",
        "",
        "`cmrcnet COMMAND --help` prints the same. Every command takes `--quiet`, which leaves warnings and results.",
        "",
        "Exit codes: 0 done; 1 `inspect` found problems or some of many slides are broken; 2 an error that you can",
        "correct, told in one sentence; 130 interrupted.",
        "",
    ]
    for verb, function in VERBS.items():
        doc = FunctionDoc(function)
        lines += [f"## cmrcnet {verb}", "", _prose(doc["Summary"]), ""]
        if doc["Extended Summary"]:
            lines += [_prose(doc["Extended Summary"]), ""]
        command = make_app()
        for word in verb.split():
            command = command[word]
        arguments = [each for each in command.assemble_argument_collection(parse_docstring=True) if each.name != "*"]
        lines += ["```text", _usage(verb, arguments), "```", ""]
        if arguments:
            lines += ["| option | default | meaning |", "|---|---|---|"]
            for each in arguments:
                name = each.name.removeprefix("--").upper() if _positional(each) else each.name
                meaning = _cell(_prose((each.parameter.help or "").splitlines()))
                lines.append(f"| `{name}` | {_default(each)} | {meaning} |")
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _positional(argument) -> bool:
    return argument.field_info.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD


def _usage(verb: str, arguments: list) -> str:
    words = [f"cmrcnet {verb}"]
    for each in arguments:
        value = each.name.removeprefix("--").upper()
        word = value if _positional(each) else each.name if each.hint is bool else f"{each.name} {value}"
        words.append(word if each.required else f"[{word}]")
    return "\n".join(textwrap.wrap(" ".join(words), 100, subsequent_indent="    ", break_on_hyphens=False))


def _default(argument) -> str:
    if argument.required:
        return "required"
    default = argument.field_info.default
    return "" if default is None or default is False else f"`{default}`"


# --- the config ----------------------------------------------------------------------------------------------------


def config_page() -> str:
    """List every option with its type, its default, and its value in each preset that changes it."""
    shipped = {name: Config.load(name) for name in shipped_presets()}
    beside = {name: Config.parts_beside_settings(name) for name in shipped}
    starts_from = {name: parts["extends"] for name, parts in beside.items() if "extends" in parts}
    lines = [
        STAMP,
        "# The config",
        "",
        "A config is a YAML file. It overrides the defaults below; a key that is not on this page is an error.",
        "Single options can be set on the command line: `--set head.k=100 train.epochs=20`.",
        "A file may start from a shipped config: `extends: default`. The key `task` is not an option: it names",
        "the data that `cmrcnet fetch` downloads (see [HEST](../how-to/hest.md)).",
        "`cmrcnet presets NAME` prints a shipped config in full, to be edited and passed to `--config`.",
        "",
        "The defaults are the fields of the frozen dataclasses in `cmrcnet/config.py`. Where the paper and its",
        "released code differ, they are the sound choice (see [deviations](../paper/deviations.md)).",
        "",
        "## Shipped presets",
        "",
        "| preset | description |",
        "|---|---|",
        *(f"| `{name}` | {config.about} |" for name, config in shipped.items()),
        "",
    ]
    hints = typing.get_type_hints(Config)
    for section in dataclasses.fields(Config):
        kind = hints[section.name]
        if not dataclasses.is_dataclass(kind):
            continue
        words = _field_words(kind)
        lines += [f"## {section.name}", "", inspect.getdoc(kind), ""]
        lines += ["| key | type | default | meaning | in presets |", "|---|---|---|---|---|"]
        for field in dataclasses.fields(kind):
            default = getattr(getattr(Config(), section.name), field.name)
            values = {name: getattr(getattr(config, section.name), field.name) for name, config in shipped.items()}
            set_in = [
                f"`{name}`: {_value(value)}"
                for name, value in values.items()
                # only the changes, for a config that extends another
                if value != (values[starts_from[name]] if name in starts_from else default)
            ]
            lines.append(
                f"| `{section.name}.{field.name}` | {_type(field.type)} | {_value(default)} "
                f"| {_cell(words.get(field.name, ''))} | {', '.join(set_in)} |"
            )
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _field_words(kind: type) -> dict[str, str]:
    """Return the docstring under each field of a dataclass."""
    [tree] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    return {
        line.target.id: " ".join(after.value.value.split())
        for line, after in pairwise(tree.body)
        if isinstance(line, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    }


def _type(annotation: str) -> str:
    literal = re.sub(r"Literal\[([^\]]*)\]", lambda found: found.group(1).replace(", ", " \\| "), annotation)
    return literal.replace(" | ", " \\| ").replace('"', "`").replace("tuple[", "list of ").replace(", ...]", "")


def _value(value: object) -> str:
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{yaml.safe_dump(value, default_flow_style=True).removesuffix('...').strip().removesuffix('...').strip()}`"


# --- the library ---------------------------------------------------------------------------------------------------


def python_page() -> str:
    """List the public names by folder; Sphinx makes a page of each from its docstring."""
    lines = [
        STAMP,
        "# The library",
        "",
        "All public names are available as `cmrcnet.NAME`. They are imported on first use: `import cmrcnet` alone",
        "imports no heavy library. In the site that `make docs` builds each has a page with shapes, units,",
        "errors and an example; `help(cmrcnet.NAME)` shows the same.",
        "",
    ]
    rooms: dict[str, list[str]] = {}
    for name in cmrcnet.__all__:
        rooms.setdefault(getattr(cmrcnet, name).__module__.split(".")[1], []).append(name)
    for room, names in sorted(rooms.items()):
        listed = [f"   {name}" for name in names]
        lines += [
            f"## {room}",
            "",
            "```{eval-rst}",
            ".. currentmodule:: cmrcnet",
            ".. autosummary::",
            "   :toctree: api",
        ]
        lines += ["   :nosignatures:", "", *listed, "```", ""]
    return "\n".join(lines).rstrip() + "\n"


# --- words ---------------------------------------------------------------------------------------------------------


def _prose(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


def _cell(text: str) -> str:
    """Escape text for a Markdown table cell."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def main(check: bool) -> int:
    """Write the pages, or with `check` list those that are out of date."""
    stale = []
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        path = FOLDER / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.write_text(text, encoding="utf-8")
    print(f"docs/reference: {', '.join(stale) or 'nothing'} {'out of date' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
