"""The documentation agrees with the code: reference pages, commands, samples, links, figures."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

import cmrcnet

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(page for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")] if "_build" not in page.parts[:-1])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


def blocks(page: Path, *languages: str) -> list[str]:
    """Fenced code blocks of a page in one of these languages, cells of notebooks among them."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.M | re.S)
    for cell in re.findall(r"^```\{code-cell\} python\n(.*?)^```", text, flags=re.M | re.S):
        magic, _, rest = cell.partition("\n")
        if not magic.startswith("%%writefile"):
            fenced.append(("bash", rest) if magic == "%%bash" else ("python", cell))
    return [text for language, text in fenced if language in languages]


# --- reference -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["cli_page", "config_page", "python_page"])
def test_reference_pages_are_what_the_code_says(reference, page):
    name = page.replace("_page", ".md")
    written = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert written == getattr(reference, page)(), f"{name} is out of date: run python docs/make_reference.py"


def test_every_option_and_every_command_is_in_the_reference(reference):
    from cmrcnet.cli.app import VERBS

    assert all(f"## cmrcnet {verb}\n" in reference.cli_page() for verb in VERBS)
    assert reference.config_page().count("| `model.") >= 20


# --- commands ------------------------------------------------------------------------------------------------------

COMMANDS = sorted(
    {
        (name, re.split(r"  #| \|\| | 2> ", line)[0].strip())
        for name, page in zip(NAMES, PAGES, strict=True)
        for block in blocks(page, "bash")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("cmrcnet ")
    }
)


def test_the_pages_show_commands():
    assert len(COMMANDS) > 15
    assert {command.split()[1] for _, command in COMMANDS} >= {"inspect", "train", "index", "predict", "evaluate"}


def understood(command: str):
    """Parse a command as the command line would, without running it."""
    from cmrcnet.cli.app import make_app

    words = [word for word in shlex.split(command)[1:] if word != "--quiet"]
    return make_app().parse_args(words, exit_on_error=False, print_error=False)


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_in_the_pages_parses(page, command):
    from cmrcnet.cli.app import VERBS
    from cmrcnet.cli.options import ConfigOptions

    function, bound, *_ = understood(command)
    words = command.split()
    assert VERBS.get(words[1]) is function or VERBS[" ".join(words[1:3])] is function
    for options in bound.arguments.values():
        if isinstance(options, ConfigOptions):
            options.load()


@pytest.mark.parametrize("command", ["cmrcnet trian cohort.csv --out m", "cmrcnet train cohort.csv --to m"])
def test_a_wrong_command_would_be_seen(command):
    from cyclopts import CycloptsError

    with pytest.raises(CycloptsError):
        understood(command)


def test_make_targets_in_the_pages_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {m for page in PAGES for m in re.findall(r"^make (\w+)", page.read_text(encoding="utf-8"), flags=re.M)}
    assert named >= {"demo", "test"}
    assert all(re.search(rf"^{target}:", makefile, flags=re.M) for target in named)


# --- snippets ------------------------------------------------------------------------------------------------------

SNIPPETS = [(name, snippet) for name, page in zip(NAMES, PAGES, strict=True) for snippet in blocks(page, "python")]


@pytest.mark.parametrize(("page", "snippet"), SNIPPETS)
def test_python_in_the_pages_names_public_things(page, snippet):
    tree = ast.parse(snippet)
    spoken = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "cmrcnet"
    }
    assert spoken <= set(cmrcnet.__all__)


def test_every_page_is_in_the_contents_of_the_site():
    listed = re.findall(r"^([\w/*-]+)$", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"), flags=re.M)
    reached = {page for entry in listed for page in (ROOT / "docs").glob(f"{entry}.md")}
    assert {page for page in PAGES if page.is_relative_to(ROOT / "docs")} - reached == {
        ROOT / "docs" / "README.md",
        ROOT / "docs" / "index.md",
    }


def test_there_are_snippets():
    assert {"README.md", "docs/tutorials/first-steps.md"} <= {name for name, _ in SNIPPETS}


# --- links ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = [t.split("#")[0] for t in re.findall(r"\]\(([^)\s]+)\)", prose) if not t.startswith(("http", "#"))]
    missing = [t for t in targets if not (page.parent / t).exists()]
    assert missing == []


def test_every_page_can_be_reached_from_the_index():
    linked = re.findall(r"\]\(([^)\s]+\.md)\)", (ROOT / "docs" / "README.md").read_text(encoding="utf-8"))
    reached = {(ROOT / "docs" / target).resolve() for target in linked}
    pages = {page for page in PAGES if page.is_relative_to(ROOT / "docs")} - {ROOT / "docs" / "README.md"}
    pages -= {ROOT / "docs" / "index.md"}  # the same page, for Sphinx
    assert pages <= reached


# --- the paper -----------------------------------------------------------------------------------------------------

PAPER_FIGURES = {"6.27", "6.11", "11.26", "0.2933", "0.3117"}
PAPER_CONSTANTS = {"0.1", "0.25", "1e-4", "1e-5", "1e-3", "1.3.0", "2506.08854"}


def test_no_figure_of_the_paper_is_quoted_that_we_do_not_know():
    text = (ROOT / "docs" / "paper" / "what-we-know.md").read_text(encoding="utf-8")
    fractions = set(re.findall(r"(?<![\w.])\d+(?:\.\d+)+\b|\b\d+e-\d+\b", text))
    assert fractions <= PAPER_FIGURES | PAPER_CONSTANTS
    assert fractions >= PAPER_FIGURES


def test_every_switch_of_the_released_code_has_its_row():
    import dataclasses
    import typing

    from cmrcnet.config import Config

    text = (ROOT / "docs" / "paper" / "deviations.md").read_text(encoding="utf-8")
    default, released = Config().to_dict(), Config.load("as-released").to_dict()
    sections = [
        f.name for f in dataclasses.fields(Config) if dataclasses.is_dataclass(typing.get_type_hints(Config)[f.name])
    ]
    flipped = {f"{s}.{k}" for s in sections for k in default[s] if default[s][k] != released[s][k]}
    # The encoder's scaling is told in the last table, by name of its meaning.
    unnamed = {key for key in flipped - {"model.standardize_tokens"} if f"`{key}`" not in text}
    assert unnamed == set()
    spoken = set(re.findall(rf"`((?:{'|'.join(sections)})\.\w+)`", text))
    assert all(key.split(".")[1] in default[key.split(".")[0]] for key in spoken)


def test_the_rows_state_what_the_configs_set():
    """Where a row has one switch and plain values, its last two cells are those of the presets."""
    from cmrcnet.config import Config

    text = (ROOT / "docs" / "paper" / "deviations.md").read_text(encoding="utf-8")
    checked = 0
    for row in re.findall(r"^\|(.*)\|$", text, flags=re.M):
        cells = [cell.strip() for cell in row.split(" | ")]
        if len(cells) != 7 or not re.fullmatch(r"`\w+\.\w+`", cells[4]):
            continue
        section, option = cells[4].strip("`").split(".")
        for cell, name in ((cells[5], "paper"), (cells[6], "as-released")):
            assert yaml.safe_load(cell.strip("`")) == Config.load(name).to_dict()[section][option], (option, name)
            checked += 1
    assert checked >= 24


# --- the papers of the house ---------------------------------------------------------------------------------------


def test_the_citation_cites_software_and_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    paper = cited["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Liu", "Eckstein", "Wang", "Feuerhake", "Merhof"]
    assert "2506.08854" in paper["url"]


def test_the_licence_is_the_one_that_is_declared():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_changelog_knows_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# --- where everything stands -----------------------------------------------------------------------------------------

HOUSE = (ROOT / "docs" / "concepts" / "house.md").read_text(encoding="utf-8")
FILE = re.compile(r"[\w*./-]+(?:\.(?:py|js|yaml|json|toml|md)|/)")


def lost_paths(text: str) -> list[str]:
    """Code spans that look like a path, and lead nowhere: from the root, the package, or the folder named before."""
    lost, before = [], ROOT
    for span in re.findall(r"`([^`\n]+)`", text):
        for path in span.split() if FILE.search(span) else []:
            if not FILE.fullmatch(path):
                continue
            found = [home for home in (ROOT, ROOT / "src" / "cmrcnet", before) if list(home.glob(path))]
            if not found:
                lost.append(path)
            elif "*" not in path:
                before = found[0] / path if path.endswith("/") else (found[0] / path).parent
    return lost


def lost_names(text: str) -> list[str]:
    """Names said to stand in a file, as in ``"`embed` in `models/cmrcnet.py`"``, that it does not hold."""
    lost = []
    for names, path in re.findall(r"((?:`[\w.]+`(?:, | and )?)+) in `([\w/]+\.py)`", text):
        file = next(home / path for home in (ROOT, ROOT / "src" / "cmrcnet") if (home / path).is_file())
        words = set(re.findall(r"\w+", file.read_text(encoding="utf-8")))
        lost += [f"{name} in {path}" for name in re.findall(r"`([\w.]+)`", names) if name.split(".")[-1] not in words]
    return lost


def test_the_house_page_names_files_that_exist_and_what_stands_in_them():
    assert len(re.findall(r"\.py`", HOUSE)) > 60
    assert lost_paths(HOUSE) == []
    assert lost_names(HOUSE) == []


def test_every_room_is_on_the_house_page():
    rooms = [path.name for path in sorted((ROOT / "src" / "cmrcnet").iterdir()) if (path / "__init__.py").is_file()]
    assert [room for room in rooms if f"{room}/" not in HOUSE] == []


def test_a_lost_path_would_be_seen():
    assert lost_paths("`models/cmrcnet.py`, `losses.py`; `models/gone.py`, `nowhere/`") == [
        "models/gone.py",
        "nowhere/",
    ]
    assert lost_names("`CMRCNet` and `Gone` in `models/cmrcnet.py`") == ["Gone in models/cmrcnet.py"]
