"""The house rules (docs/concepts/house.md), each held by a test that can fail.

Most checks read the source as syntax trees. Each is a function of a tree, and beside each a test plants a violation
and sees that it is found.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from numpydoc.validate import validate

import cmrcnet

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src" / "cmrcnet"
FILES = sorted(SRC.rglob("*.py"))
MODULES = [".".join(path.relative_to(SRC).with_suffix("").parts) for path in FILES]


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(_path_of(module).read_text(encoding="utf-8"))


def _path_of(module: str) -> Path:
    return SRC.joinpath(*module.split(".")).with_suffix(".py")


def names_used(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that is imported or spoken of: ``sys.argv``, ``argparse``, ``torch.load``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def mentions(tree: ast.AST, *names: str) -> list[str]:
    return sorted({used for used in names_used(tree) for name in names if used == name or used.startswith(f"{name}.")})


# --- 1 and 2: imports run down, and rooms that need no network never wake torch --------------------------------------


def lint_imports(root: Path) -> subprocess.CompletedProcess:
    """Run the contracts of `root`/pyproject.toml on `root`/src."""
    return subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"],
        cwd=root,
        env={"PYTHONPATH": str(root / "src"), "PATH": "", "HOME": str(root)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def copied_house(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("house")
    shutil.copy(ROOT / "pyproject.toml", root)
    shutil.copytree(SRC, root / "src" / "cmrcnet", ignore=shutil.ignore_patterns("__pycache__"))
    return root


def test_the_import_contracts_hold(copied_house):
    done = lint_imports(copied_house)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("slides/slide.py", "from cmrcnet import cli", "Imports run down the journey, never up"),
        ("slides/slide.py", "def later():\n    from cmrcnet.readers import registry", "Imports run down the journey"),
        ("inference/__init__.py", "import cmrcnet.training", "Imports run down the journey, never up"),
        ("training/__init__.py", "import cmrcnet.inference", "Imports run down the journey, never up"),
        ("search/exact.py", "import torch", "Rooms that need no network never wake torch"),
        ("genes/__init__.py", "def later():\n    import timm", "Rooms that need no network never wake torch"),
    ],
)
def test_the_import_contracts_break_on_a_planted_violation(copied_house, file, line, broken):
    target = copied_house / "src" / "cmrcnet" / file
    whole = target.read_text()
    try:
        target.write_text(f"{whole}\n{line}\n")
        done = lint_imports(copied_house)
    finally:
        target.write_text(whole)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(rf"{re.escape(broken)}.* BROKEN", done.stdout), done.stdout


def test_every_file_has_a_floor():
    """A new room or top-level file must be given its place in the layers of pyproject.toml."""
    import tomllib

    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    floors = {name.strip() for layer in contracts[0]["layers"] for name in layer.split("|")}
    rooms = {module.split(".")[0] for module in MODULES} - {"__init__"}
    assert rooms == floors


# --- 3: the model opens no file --------------------------------------------------------------------------------------

OPENERS = {
    "open", "read_text", "read_bytes", "write_text", "write_bytes", "save_file", "load_file", "safe_open", "memmap",
    "imread", "iterdir", "exists", "is_file", "mkdir", "unlink",
}  # fmt: skip
MODEL_FILES_ON_DISK = {
    "models.artefact": "the folders of models and students",
    "models.encoder_weights": "reads the weights of an encoder",
}


def file_calls(tree: ast.AST) -> list[str]:
    called = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [name for name in called if name.rsplit(".", 1)[-1] in OPENERS or name == "torch.load"]


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("models.") and m not in MODEL_FILES_ON_DISK])
def test_the_model_opens_no_file_and_knows_no_slide(module):
    assert file_calls(tree_of(module)) == []
    slides = ("slide.Slide", "slide.ArraySlide", "slide.open_slide", "slide.known_scale", "section", "patches")
    assert mentions(tree_of(module), *(f"cmrcnet.slides.{each}" for each in slides)) == []


@pytest.mark.parametrize("module", MODEL_FILES_ON_DISK)
def test_the_list_of_model_files_on_disk_is_no_longer_than_needed(module):
    assert file_calls(tree_of(module)) != []


def test_opening_a_file_would_be_seen():
    assert file_calls(ast.parse("with open(p) as f: f.read()")) == ["open"]
    assert file_calls(ast.parse("x = path.read_text()")) == ["path.read_text"]


# --- 4: who may take a path, who may read the command line -----------------------------------------------------------

ROOMS_THAT_TAKE_PATHS = {
    "cli": "the command line: path in, path out",
    "readers": "read what others wrote",
    "datasets": "write the cohort that ships",
    "export": "write predictions, and what others read of them",
    "storage": "the one way of writing, and locks",
}
NOUNS_ON_DISK = {
    "slides.slide": "a slide is a file: open_slide is its load",
    "slides.section.Section": "from_anndata opens its slide",
    "slides.backends": "its pixels by OpenSlide and Pillow",
    "slides.tiff": "its pixels by tifffile",
    "slides.tiff_header": "its header, before anything allocates by it",
    "slides.slide_files": "a slide may be several files",
    "slides.decoders": "which of these reads it rightly, tried in a child process",
    "config.Config": "load",
    "models.trained_model.TrainedModel": "save_pretrained and from_pretrained",
    "models.student.Student": "save_pretrained and from_pretrained",
    "models.artefact": "what the folders of models and students have in common",
    "models.encoders": "a weights file is named by the user",
    "models.encoder_weights": "a weights file is named by the user",
    "features.resumable.ResumableFeatures": "a folder that a killed run goes on with",
    "training.checkpoint.Checkpoints": "a folder of states",
    "retrieval.bank.ReferenceBank": "save and load",
    "inference.location_features.LocationFeatures": "the folder of its feature tmp",
    "inference.predict": "a slide predicted into a file",
    "inference.slide_batch": "many slides, one after the other",
    "retrieval.store": "the folder of a bank",
    "retrieval.bank_index": "the index folder in a bank",
    "retrieval.edit": "a bank is edited in its folder",
    "evaluation.protocol.run_folder": "a folder of results, which may take long to make",
    "evaluation.report.evaluation_report": "writes the report",
}


def functions_of(module: str, tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every function and method by its dotted name, module first."""

    def walk(prefix: str, body: list[ast.stmt]) -> Iterator[tuple[str, ast.FunctionDef]]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{prefix}.{node.name}", node
            elif isinstance(node, ast.ClassDef):
                yield from walk(f"{prefix}.{node.name}", node.body)

    yield from walk(module, tree.body)


def parameters(function: ast.FunctionDef) -> list[ast.arg]:
    each = function.args
    return [*each.posonlyargs, *each.args, *each.kwonlyargs, *filter(None, [each.vararg, each.kwarg])]


def takes_path(function: ast.FunctionDef) -> bool:
    return any(
        a.annotation and re.search(r"\b(Path|PathLike)\b", ast.unparse(a.annotation)) for a in parameters(function)
    )


def path_takers(module: str, tree: ast.Module) -> list[str]:
    """Functions of `module` that accept a path although they have no business with the disk."""
    if module.split(".")[0] in ROOMS_THAT_TAKE_PATHS:
        return []
    found = [name for name, function in functions_of(module, tree) if takes_path(function)]
    homes = [home for home in NOUNS_ON_DISK if home == module or home.startswith(f"{module}.")]
    # A noun's module may hand its path on to private functions of its own.
    return [
        name
        for name in found
        if not any(name.startswith(f"{home}.") for home in homes)
        and not (homes and name.rsplit(".", 1)[1].startswith("_"))
    ]


@pytest.mark.parametrize("module", MODULES)
def test_paths_are_taken_only_by_those_whose_job_it_is(module):
    assert path_takers(module, tree_of(module)) == []


@pytest.mark.parametrize("room", ROOMS_THAT_TAKE_PATHS)
def test_the_list_of_rooms_that_take_paths_is_no_longer_than_needed(room):
    inside = [m for m in MODULES if m == room or m.startswith(f"{room}.")]
    assert any(takes_path(function) for m in inside for _, function in functions_of(m, tree_of(m)))


@pytest.mark.parametrize("home", NOUNS_ON_DISK)
def test_the_list_of_nouns_on_disk_is_no_longer_than_needed(home):
    module = next((m for m in MODULES if home == m or home.startswith(f"{m}.")), None)
    assert module, f"{home} is gone: take it off the list"
    assert any(takes_path(f) for name, f in functions_of(module, tree_of(module)) if name.startswith(f"{home}."))


def test_a_path_taker_would_be_seen():
    planted = ast.parse(
        "def score(table, out: Path | None = None): ...\nclass A:\n    def read(self, file: 'Path'): ..."
    )
    assert path_takers("evaluation.metrics", planted) == ["evaluation.metrics.score", "evaluation.metrics.A.read"]
    assert path_takers("retrieval.bank", planted) == ["retrieval.bank.score", "retrieval.bank.A.read"]
    assert path_takers("cli.bank_commands", planted) == []


@pytest.mark.parametrize("module", [m for m in MODULES if m.split(".")[0] != "cli"])
def test_only_the_command_line_parses_arguments(module):
    assert mentions(tree_of(module), "argparse", "optparse", "getopt", "click", "typer", "cyclopts", "sys.argv") == []


def test_argument_parsing_would_be_seen():
    assert mentions(ast.parse("import sys\nx = sys.argv[1]"), "sys.argv") == ["sys.argv"]
    assert mentions(ast.parse("from argparse import ArgumentParser"), "argparse") == ["argparse.ArgumentParser"]
    assert mentions(ast.parse("from sys import argv"), "sys.argv") == ["sys.argv"]


# --- 5 and 6: no drawers, no endless files ---------------------------------------------------------------------------

DRAWERS = {"util", "utils", "utilities", "helper", "helpers", "common", "core", "base", "misc", "tools", "stuff"}
LONG = 450


@pytest.mark.parametrize("module", MODULES)
def test_no_file_is_a_drawer(module):
    words = {word for part in module.split(".") for word in part.split("_")}
    assert not words & DRAWERS


@pytest.mark.parametrize("module", [m for m in MODULES if len(_path_of(m).read_text().splitlines()) > LONG])
def test_a_long_file_says_why_it_is_one_thing(module):
    """Past 450 lines the module docstring says so in these words: "one thing"."""
    assert "one thing" in (ast.get_docstring(tree_of(module)) or ""), f"{module} is long and does not say why"


def test_most_files_are_short():
    lengths = sorted(len(path.read_text().splitlines()) for path in FILES)
    assert lengths[len(lengths) // 2] <= 240


# --- words: every public thing says what it is -----------------------------------------------------------------------


def undocumented(module: str, tree: ast.Module) -> list[str]:
    """Public modules, classes, functions and methods without a docstring."""
    found = [] if ast.get_docstring(tree) or not tree.body else [module]
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node) and not any("overload" in ast.unparse(d) for d in node.decorator_list):
                found.append(f"{module}.{node.name}")
            if isinstance(node, ast.ClassDef):
                found += [
                    f"{module}.{node.name}.{method.name}"
                    for method in node.body
                    if isinstance(method, ast.FunctionDef)
                    and not method.name.startswith("_")
                    and method.name != "forward"  # torch's word; the class says what it computes
                    and not ast.get_docstring(method)
                    and not any("overload" in ast.unparse(d) for d in method.decorator_list)
                ]
    return found


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_has_a_docstring(module):
    assert undocumented(module, tree_of(module)) == []


def test_a_missing_docstring_would_be_seen():
    planted = ast.parse(
        '"""A room."""\ndef f(): ...\nclass A:\n    """A."""\n    def g(self): ...\n    def _h(self): ...'
    )
    assert undocumented("room", planted) == ["room.f", "room.A.g"]


def faults(name: str, wanted: set[str]) -> list[str]:
    return [f"{code} {what}" for code, what in validate(name)["errors"] if code in wanted]


def _home(name: str) -> str:
    return f"{getattr(cmrcnet, name).__module__}.{name}"


PUBLIC_FUNCTIONS = [n for n in cmrcnet.__all__ if n[0].islower()]
PUBLIC_CLASSES = [n for n in cmrcnet.__all__ if n[0].isupper()]
SAYS_ALL = {"GL08", "SS01", "SS02", "SS03", "PR01", "PR02", "PR03", "PR10", "RT01"}
SAYS_NOTHING_FALSE = {"GL08", "SS01", "SS02", "PR02", "PR03", "PR10"}


@pytest.mark.parametrize("name", PUBLIC_FUNCTIONS)
def test_public_functions_document_every_parameter_and_what_they_return(name):
    takes_nothing = not inspect.signature(getattr(cmrcnet, name)).parameters  # then the summary says what is returned
    assert faults(_home(name), SAYS_ALL - ({"RT01"} if takes_nothing else set())) == []


@pytest.mark.parametrize("name", PUBLIC_CLASSES)
def test_public_classes_and_their_methods_document_nothing_false(name):
    kind = getattr(cmrcnet, name)
    own = [m for m in vars(kind) if not m.startswith("_") and inspect.isroutine(inspect.getattr_static(kind, m))]
    # PR02 is not asked of classes: a dataclass or a protocol may describe attributes that no constructor takes.
    found = {_home(name): faults(_home(name), SAYS_NOTHING_FALSE - {"PR02"})}
    found |= {f"{name}.{m}": faults(f"{_home(name)}.{m}", SAYS_NOTHING_FALSE) for m in own if m != "forward"}
    assert {what: wrong for what, wrong in found.items() if wrong} == {}


def test_each_verb_documents_every_flag():
    """The command line's help is made of these docstrings."""
    verbs = importlib.import_module("cmrcnet.cli.app").VERBS
    found = {
        verb: faults(f"{function.__module__}.{function.__name__}", {"GL08", "SS01", "SS03", "PR01", "PR02", "PR03"})
        for verb, function in verbs.items()
    }
    assert {verb: wrong for verb, wrong in found.items() if wrong} == {}


def test_a_wrong_docstring_would_be_seen():
    assert any(fault.startswith("PR01") for fault in faults("shutil.copy", SAYS_ALL))


# --- safety ----------------------------------------------------------------------------------------------------------

RUNS_CODE = (
    "pickle", "cPickle", "cloudpickle", "dill", "joblib.load", "marshal", "shelve", "torch.save", "torch.jit.load",
    "np.load", "numpy.load", "pandas.read_pickle", "pd.read_pickle", "yaml.load", "yaml.unsafe_load",
)  # fmt: skip


def unsafe(tree: ast.AST) -> list[str]:
    """What could run code when it loads a file, or write a file that could."""
    harmless = {"np.load", "numpy.load"}  # asked about below
    spoken = set(mentions(tree, "pickle"))
    if spoken <= {"pickle", "pickle.UnpicklingError"} and "pickle.UnpicklingError" in spoken:
        harmless |= spoken  # to catch what torch.load raises
    found = [name for name in mentions(tree, *RUNS_CODE) if name not in harmless]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg: getattr(keyword.value, "value", ...) for keyword in node.keywords}
        if called == "torch.load" and given.get("weights_only") is not True:
            found.append("torch.load without weights_only=True")
        if called in ("np.load", "numpy.load") and given.get("allow_pickle", False) is not False:
            found.append("np.load with allow_pickle")
        if called in ("eval", "exec"):
            found.append(called)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_nothing_that_is_loaded_can_run_code(module):
    assert unsafe(tree_of(module)) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "torch.save(x, p)",
        "np.load(p, allow_pickle=True)",
        "yaml.load(t)",
        "eval(t)",
    ],
)
def test_loading_code_would_be_seen(line):
    assert unsafe(ast.parse(line)) != []


def test_safe_loading_is_not_accused():
    assert unsafe(ast.parse("torch.load(p, weights_only=True); np.load(p, mmap_mode='r'); yaml.safe_load(t)")) == []


@pytest.mark.parametrize("module", MODULES)
def test_no_function_swallows_keywords(module):
    """``**kwargs`` hides renamed and misspelt options."""
    given = {"interop.LazySlideStudent.try_compile"}  # a signature of LazySlide's
    assert [n for n, function in functions_of(module, tree_of(module)) if function.args.kwarg and n not in given] == []


@pytest.mark.parametrize("module", MODULES)
def test_no_fault_is_caught_nameless(module):
    bare = [node.lineno for node in ast.walk(tree_of(module)) if isinstance(node, ast.ExceptHandler) and not node.type]
    assert bare == []


SEEDED = {"default_rng", "Generator", "SeedSequence", "PCG64"}
TORCH_DRAWS = {"rand", "randn", "randint", "randperm", "bernoulli", "multinomial", "normal"}


def unseeded(tree: ast.AST) -> list[str]:
    """Random choices that take neither a seed nor a generator: the global generators are nobody's."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"import {name}" for name in names if name == "random"]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("np.random", "numpy.random"):
            found += [] if node.attr in SEEDED else [ast.unparse(node)]
        elif isinstance(node, ast.Call):
            called, given = ast.unparse(node.func), {keyword.arg for keyword in node.keywords}
            if called == "np.random.default_rng" and not (node.args or given):
                found.append("np.random.default_rng()")
            if (
                called.removeprefix("torch.") in TORCH_DRAWS
                and called.startswith("torch.")
                and "generator" not in given
            ):
                found.append(called)
    return found


def assigned_twice(tree: ast.Module) -> list[str]:
    """Constants of a module that are assigned again further down, where the first value is lost without a word."""
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    return sorted({name for name in names if name.isupper() and names.count(name) > 1})


@pytest.mark.parametrize("module", MODULES)
def test_no_constant_is_assigned_twice(module):
    assert assigned_twice(tree_of(module)) == []


def test_a_constant_that_is_assigned_twice_would_be_seen():
    assert assigned_twice(ast.parse("A, B = 1, 2\nC = 3\nB = 4")) == ["B"]


@pytest.mark.parametrize("module", MODULES)
def test_no_random_number_without_a_seed(module):
    assert unseeded(tree_of(module)) == []


@pytest.mark.parametrize(
    "line",
    ["import random", "from random import shuffle", "np.random.seed(0)", "np.random.default_rng()", "torch.randn(3)"],
)
def test_an_unseeded_choice_would_be_seen(line):
    assert unseeded(ast.parse(line)) != []


def test_seeded_choices_are_not_accused():
    assert unseeded(ast.parse("np.random.default_rng(0).normal(); torch.randn(3, generator=g)")) == []
    assert unseeded(ast.parse("def f(random: np.random.Generator): random.normal()")) == []


# --- nothing of the machine on which it was written ------------------------------------------------------------------

# Written in pieces, so that this file does not accuse itself.
MACHINE = re.compile(
    "|".join(["/wo" + r"rk/", r"\.lib" + "rary/", "/ro" + "ot/", r"/ho" + r"me/\w", "heavy" + r"\.lock"])
)
BESIDE = "../sha" + "red"
MAY_NAME_BESIDE = ("tests/conftest.py", "pyproject.toml", "tests/test_structure.py")


def tracked_files() -> list[Path]:
    """What git would take, or, outside a checkout, all that is here."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        names = [ROOT / line for line in done.stdout.splitlines()]
    except (OSError, subprocess.CalledProcessError):
        names = [path for top in ("src", "tests", "docs", "benchmarks") for path in (ROOT / top).rglob("*")]
        names += ROOT.glob("*.*")
    return [path for path in names if path.is_file()]


def test_no_file_names_the_machine_it_was_written_on():
    named = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        where = path.relative_to(ROOT).as_posix()
        named += [f"{where}: {line.strip()[:100]}" for line in text.splitlines() if MACHINE.search(line)]
        if where not in MAY_NAME_BESIDE and not where.startswith("benchmarks/"):
            named += [f"{where}: {line.strip()[:100]}" for line in text.splitlines() if BESIDE in line]
    assert named == []


def test_a_machine_path_would_be_seen():
    assert MACHINE.search("read /wo" + "rk/main/data.csv")
    assert not MACHINE.search("network/model, the work of a GPU, rootless")
    assert len(tracked_files()) > 40


def test_no_weights_or_pictures_of_patients_are_tracked():
    large = [path.relative_to(ROOT).as_posix() for path in tracked_files() if path.stat().st_size > 2 * 2**20]
    pickles = [path.name for path in tracked_files() if path.suffix in {".pt", ".pth", ".pkl", ".ckpt"}]
    assert (large, pickles) == ([], [])
