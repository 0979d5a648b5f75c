"""What `cmrcnet train`, `predict` and `evaluate` run and read, on a small synthetic cohort.

    python benchmarks/trace_verbs.py --label before --out docs/benchmarks/trace_verbs.json
    python benchmarks/trace_verbs.py --verb train --settings default --paths

Each verb runs through the command line's `main` in a process of its own, with an empty cache and a profile function
(`sys.setprofile`) that sees every call. Counted are:

- files of the package of which at least one function body ran (neither module level nor class bodies), functions that
  ran (lambdas included, comprehensions not), and the deepest stack of frames of the package, in any one thread;
- sections: how often each was handed out by a method of `Cohort` ("asked"), and how often one was built by anything
  but `Section` itself, which is how often its files were read ("loaded");
- slides: calls of `Slide.read` in any slide class, and pixels asked for, by the module that wanted them: the innermost
  frame of the package outside the slide's own class and `PLUMBING`. Reads by `FEATURES` are patches for the encoder.

`evaluate` runs twice: in one process, and with two workers, which are traced too; there, how often sections are loaded
depends on which worker is free first. With `--out`, the figures are put into the file under `--label`; those of other
labels are kept.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import argparse
import ast
import atexit
import importlib
import inspect
import json
import statistics
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

PACKAGE = "cmrcnet"

FEATURES = ("features", "evaluation.features", "evaluation.methods.frozen_features")
"""Modules, or folders of modules, that read slides to make the encoder's input."""

PLUMBING = ("slides.patches", "slides.slide")
"""Modules that read slides for others."""

SETTINGS_FLAG = "--config"
"""The command line's option that takes the name of shipped settings (`--settings` here)."""

SHORT = ("--set", "train.epochs=2", "head.k=10")
COHORT = {"patients": 4, "spots": 40, "genes": 120}
"""As many patients and sections as `cmrcnet demo` has, each smaller."""

VERBS: dict[str, tuple[str, ...]] = {
    "train": ("train", "cohort/cohort.csv", "--out", "traced-model", *SHORT),
    "predict": ("predict", "model", "unseen.png", "--bank", "bank", "--out", "unseen.h5ad", "--mpp", "1.0"),
    "evaluate": (
        *("evaluate", "cohort/cohort.csv", "--out", "run-1", "--methods", "cmrcnet", "ridge", "--workers", "1"),
        *SHORT,
    ),
    "evaluate, 2 workers": (
        *("evaluate", "cohort/cohort.csv", "--out", "run-2", "--methods", "cmrcnet", "ridge", "--workers", "2"),
        *SHORT,
    ),
}
BEFOREHAND = (
    ("train", "cohort/cohort.csv", "--out", "model", *SHORT),
    ("index", "model", "cohort/cohort.csv", "--out", "bank"),
)
"""What is run untraced for `predict`."""

_WORKERS_WRITE_TO = "TRACE_VERBS_FOLDER"


# --- tracing ---------------------------------------------------------------------------------------------------------


class Trace:
    """A profile function for all threads, and what it has seen."""

    def __init__(self) -> None:
        package = importlib.import_module(PACKAGE)
        assert package.__file__ is not None
        self._root = str(Path(package.__file__).parent) + os.sep
        self._section_class = package.Section
        self._hands_out = codes_of(package.Cohort)
        self._section_codes = codes_of(package.Section)
        self._builds = package.Section.__init__.__code__
        self._read_arguments = tuple(inspect.signature(package.Slide.read).parameters)
        self._local = threading.local()
        self._ours: dict[CodeType, bool] = {}
        self.functions: set[tuple[str, str]] = set()
        self.depth = 0
        self.asked: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self.loaded: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self.reads: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self.pixels: Counter[tuple[str, tuple[str, ...]]] = Counter()

    def start(self) -> None:
        """See every call from now on, in this thread and in those that are started."""
        threading.setprofile(self._seen)
        sys.setprofile(self._seen)

    def stop(self) -> None:
        """See nothing more."""
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]

    def figures(self) -> dict[str, Any]:
        """What was seen, ready for JSON; `merged` puts several together."""
        return {
            "functions": sorted(map(list, self.functions)),
            "depth": self.depth,
            "asked": [[*key, count] for key, count in self.asked.items()],
            "loaded": [[*key, count] for key, count in self.loaded.items()],
            "slides": [[*key, count, self.pixels[key]] for key, count in self.reads.items()],
        }

    def _seen(self, frame: FrameType, event: str, value: object) -> None:
        if event == "call":
            code = frame.f_code
            if self._is_ours(code):
                self._local.depth = depth = getattr(self._local, "depth", 0) + 1
                self.depth = max(self.depth, depth)
                self.functions.add((self._file(code), code.co_qualname))
                if code.co_name == "read":
                    self._slide_read(frame)
            elif code is self._builds:
                if frame.f_back is None or frame.f_back.f_code not in self._section_codes:
                    self.loaded[frame.f_locals["name"], self._path(frame.f_back)] += 1
            elif code is threading.Thread.start.__code__:
                frame.f_locals["self"].started_at = self._path(frame.f_back)
        elif event == "return":
            code = frame.f_code
            if self._is_ours(code):
                self._local.depth = getattr(self._local, "depth", 1) - 1
                if code in self._hands_out and isinstance(value, self._section_class):
                    caller = frame.f_back
                    if caller is None or caller.f_code not in self._hands_out:
                        self.asked[value.name, self._path(caller)] += 1

    def _is_ours(self, code: CodeType) -> bool:
        """Whether it is the body of a function of the package (comprehensions are part of theirs)."""
        known = self._ours.get(code)
        if known is None:
            is_function = bool(code.co_flags & inspect.CO_OPTIMIZED)
            plain = code.co_name == "<lambda>" or not code.co_name.startswith("<")
            known = self._ours[code] = is_function and plain and self._in_package(code)
        return known

    def _slide_read(self, frame: FrameType) -> None:
        """Count the call if it is a slide's `read`, and not one slide that asks another."""
        code = frame.f_code
        if code.co_varnames[: len(self._read_arguments)] != self._read_arguments:
            return
        caller = frame.f_back
        while caller is not None:
            above = caller.f_code
            if above.co_name == "read" and above.co_varnames[: len(self._read_arguments)] == self._read_arguments:
                return
            caller = caller.f_back
        path = self._path(frame.f_back)
        wanted = [where for where in path if not is_in(module_of(where), PLUMBING)]
        key = (module_of((wanted or ["?"])[-1]), path)
        self.reads[key] += 1
        self.pixels[key] += frame.f_locals["width"] * frame.f_locals["height"]

    def _path(self, frame: FrameType | None) -> tuple[str, ...]:
        """Frames of the package from the outermost, those of the thread that started this one before them."""
        found: list[str] = []
        while frame is not None:
            code = frame.f_code
            if self._in_package(code) and not is_module_level(code):
                found.append(f"{self._file(code)}:{frame.f_lineno} {code.co_qualname}")
            frame = frame.f_back
        before = getattr(threading.current_thread(), "started_at", ())
        return tuple(dict.fromkeys([*before, *reversed(found)]))

    def _in_package(self, code: CodeType) -> bool:
        """Whether the code stands in a Python file of the package (compiled templates of the report do not)."""
        return code.co_filename.startswith(self._root) and code.co_filename.endswith(".py")

    def _file(self, code: CodeType) -> str:
        return code.co_filename.removeprefix(self._root).replace(os.sep, "/")


def codes_of(kind: type) -> set[CodeType]:
    """Code of the methods that a class itself defines, properties left out."""
    return {function.__code__ for each in vars(kind).values() if inspect.isfunction(function := _plain(each))}


def _plain(member: object) -> object:
    return member.__func__ if isinstance(member, classmethod | staticmethod) else member


def is_module_level(code: CodeType) -> bool:
    """Whether code is the body of a module or a class."""
    return not code.co_flags & inspect.CO_OPTIMIZED


def module_of(where: str) -> str:
    """``training.fit`` of ``training/fit.py:81 fit``."""
    return where.split(":")[0].removesuffix(".py").replace("/", ".")


def is_in(module: str, places: Iterable[str]) -> bool:
    """Whether a module is one of these, or lies in one of them."""
    return any(module == place or module.startswith(f"{place}.") for place in places)


def merged(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """`Trace.figures` of several processes put together."""
    whole: dict[str, Any] = {"functions": [], "depth": 0, "asked": [], "loaded": [], "slides": []}
    for part in parts:
        whole["depth"] = max(whole["depth"], part["depth"])
        for key in ("functions", "asked", "loaded", "slides"):
            whole[key] += part[key]
    return whole


def trace_here(arguments: Iterable[str], out: Path) -> None:
    """Run one command of the package in this process and write what was seen.

    Parameters
    ----------
    arguments : iterable of str
        Of the command line.
    out : Path
        JSON; what workers saw lies beside it, in ``worker-PID.json``.
    """
    main = importlib.import_module(f"{PACKAGE}.cli").main
    os.environ[_WORKERS_WRITE_TO] = str(out.parent)
    trace = Trace()
    trace.start()
    try:
        code = main(list(arguments))
    finally:
        trace.stop()
    if code != 0:
        sys.exit(f"exit code {code}: {' '.join(arguments)}")
    out.write_text(json.dumps(trace.figures()), encoding="utf-8")


def _trace_worker(folder: Path) -> None:
    """Trace this spawned process until it ends, by `os._exit` or otherwise."""
    trace, leave = Trace(), os._exit

    def write() -> None:
        trace.stop()
        (folder / f"worker-{os.getpid()}.json").write_text(json.dumps(trace.figures()), encoding="utf-8")

    def write_and_leave(status: int) -> None:
        write()
        leave(status)

    atexit.register(write)
    os._exit = write_and_leave  # type: ignore[assignment]
    trace.start()


# --- the journey -----------------------------------------------------------------------------------------------------


def prepare(folder: Path, verbs: Iterable[str], settings: str) -> None:
    """Write the cohort and an unseen slide; train and index once where `predict` is to be traced."""
    module = importlib.import_module(importlib.import_module(PACKAGE).synthetic_cohort.__module__)
    module.write_cohort(module.synthetic_cohort(**COHORT), folder / "cohort")
    module.write_slide(module.synthetic_slide(spots=COHORT["spots"]), folder / "unseen.png")
    if "predict" in verbs:
        for arguments in BEFOREHAND:
            command = [sys.executable, "-m", PACKAGE, *with_settings(arguments, settings)]
            run(command, folder, "cache-before")


def with_settings(arguments: Iterable[str], settings: str) -> list[str]:
    """The command line with the name of the settings, if the verb takes any."""
    arguments = list(arguments)
    return [*arguments, SETTINGS_FLAG, settings] if SHORT[0] in arguments else arguments


def run(command: list[str], folder: Path, cache: str) -> None:
    """Run a command in `folder` with a cache of that name; its output is shown when it fails."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "CMRCNET_CACHE": str(folder / cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"{done.stdout[-3000:]}\nfailed: {' '.join(command)}")


def trace_verb(verb: str, folder: Path, settings: str) -> dict[str, Any]:
    """Figures of one verb; where it used workers, theirs too, by themselves and together."""
    seen = folder / f"seen-{verb.replace(', ', '-').replace(' ', '-')}"
    seen.mkdir()
    here = [sys.executable, str(Path(__file__).resolve()), "--trace", verb, "--settings", settings]
    here += ["--out", str(seen / "here.json")]
    run(here, folder, f"cache-{seen.name}")
    main = json.loads((seen / "here.json").read_text(encoding="utf-8"))
    workers = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(seen.glob("worker-*.json"))]
    figures = summary(merged([main, *workers]))
    if workers:
        figures["main process"] = short(summary(main))
        figures["workers"] = short(summary(merged(workers))) | {"processes": len(workers)}
    return figures


def summary(seen: dict[str, Any]) -> dict[str, Any]:
    """Sums over what was seen."""
    functions = {(file, name) for file, name in seen["functions"]}
    by_module: dict[str, list[int]] = {}
    for module, _, reads, pixels in seen["slides"]:
        row = by_module.setdefault(module, [0, 0])
        row[0] += reads
        row[1] += pixels
    rows = [
        {"module": module, "reads": reads, "pixels": pixels, "features": is_in(module, FEATURES)}
        for module, (reads, pixels) in sorted(by_module.items(), key=lambda item: -item[1][1])
    ]
    reads, pixels = sum(row["reads"] for row in rows), sum(row["pixels"] for row in rows)
    other = [row for row in rows if not row["features"]]
    return {
        "files": len({file for file, _ in functions}),
        "functions": len(functions),
        "depth": seen["depth"],
        "sections": {kind: sections(seen[kind]) for kind in ("asked", "loaded")},
        "slides": {
            "reads": reads,
            "pixels": pixels,
            "other_share_of_reads": share(sum(row["reads"] for row in other), reads),
            "other_share_of_pixels": share(sum(row["pixels"] for row in other), pixels),
            "by_module": rows,
            "paths": by_path([[path, reads, pixels] for _, path, reads, pixels in seen["slides"]]),
        },
        "functions_by_file": dict(sorted(Counter(file for file, _ in functions).items())),
    }


def short(figures: dict[str, Any]) -> dict[str, Any]:
    """Without the lists of places."""
    slides = {key: value for key, value in figures["slides"].items() if key != "paths"}
    passes = {
        kind: {key: value for key, value in each.items() if key != "paths"}
        for kind, each in figures["sections"].items()
    }
    return figures | {"slides": slides, "sections": passes}


def sections(seen: list) -> dict[str, Any]:
    """How often each section was read, and from where."""
    each: Counter[str] = Counter()
    for name, _, count in seen:
        each[name] += count
    return {
        "most": max(each.values(), default=0),
        "each": dict(sorted(each.items())),
        "paths": by_path([[path, count] for _, path, count in seen]),
    }


def by_path(rows: list) -> list[dict[str, Any]]:
    """Counts summed by call path, the largest first."""
    found: dict[tuple[str, ...], list[int]] = {}
    for path, *counts in rows:
        sums = found.setdefault(tuple(path), [0] * len(counts))
        for i, count in enumerate(counts):
            sums[i] += count
    names = ("count", "pixels")
    return [
        dict(zip(names, sums, strict=False)) | {"path": " > ".join(path)}
        for path, sums in sorted(found.items(), key=lambda item: -item[1][-1])
    ]


def share(part: float, whole: float) -> float:
    """A rounded share; 0 of nothing."""
    return round(part / whole, 4) if whole else 0.0


# --- the source as it stands -----------------------------------------------------------------------------------------


def static_figures(root: Path) -> dict[str, Any]:
    """Size and shape of the package's source.

    Parameters
    ----------
    root : Path
        Folder of the package.

    Returns
    -------
    dict
        Modules, lines, functions (methods and inner functions included), the median length of a function (from its
        ``def`` to its last line, without decorators and docstring), the share of functions whose body is one
        ``return``, and how many private functions have exactly one caller: one function, class body or module that
        names them, in their own module or in one that imports them.
    """
    files = sorted(root.rglob("*.py"))
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in files}
    functions = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, FUNCTION)]
    lengths = [_length(function) for function in functions]
    private = list(_private_callers(trees))
    return {
        "modules": len(files),
        "lines": sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files),
        "functions": len(functions),
        "median_function_lines": statistics.median(lengths),
        "single_return_share": share(sum(_is_single_return(each) for each in functions), len(functions)),
        "private_functions": len(private),
        "private_with_one_caller": private.count(1),
    }


FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


def _docstring(function: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.stmt | None:
    return function.body[0] if ast.get_docstring(function) is not None else None


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    doc = _docstring(function)
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    return lines - (0 if doc is None else (doc.end_lineno or doc.lineno) - doc.lineno + 1)


def _is_single_return(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    body = function.body[1:] if _docstring(function) is not None else function.body
    return len(body) == 1 and isinstance(body[0], ast.Return)


def _private_callers(trees: dict[Path, ast.Module]) -> Iterator[int]:
    """For each private function, by its name and module: how many callers it has."""
    mentions = {file: list(_mentions(tree, "")) for file, tree in trees.items()}
    imported = {
        file: {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
        for file, tree in trees.items()
    }
    for file, tree in trees.items():
        defined = {node.name for node in ast.walk(tree) if isinstance(node, FUNCTION)}
        for name in sorted(name for name in defined if name.startswith("_") and not name.endswith("__")):
            callers = {(file, scope) for scope, said in mentions[file] if said == name and not _inside(scope, name)}
            for other in trees:
                if other != file and name in imported[other]:
                    callers |= {(other, scope) for scope, said in mentions[other] if said == name}
            yield len(callers)


def _inside(scope: str, name: str) -> bool:
    return name in scope.split(".")


def _mentions(node: ast.AST, scope: str) -> Iterator[tuple[str, str]]:
    """Names spoken of, with the dotted function or class in which they are."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Name):
            yield scope, child.id
        elif isinstance(child, ast.Attribute):
            yield scope, child.attr
        inner = f"{scope}.{child.name}" if isinstance(child, FUNCTION | ast.ClassDef) else scope
        yield from _mentions(child, inner)


# --- the command -----------------------------------------------------------------------------------------------------


def git(*words: str) -> str:
    """What git answers about this checkout; "" outside of one."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def to_markdown(figures: dict[str, Any]) -> str:
    """The figures as tables."""
    static = figures["static"]
    lines = [
        "| source | |",
        "|---|---|",
        *(f"| {name.replace('_', ' ')} | {value:,} |" for name, value in static.items()),
        "",
        "| verb | files | functions | depth | a section asked for, at most | loaded, at most | slide reads | pixels "
        "| not for features: reads | pixels |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    modules = ["| verb | module that reads the slide | reads | pixels | for features |", "|---|---|---|---|---|"]
    for verb, seen in rows_of(figures["verbs"]):
        asked, loaded, slides = seen["sections"]["asked"], seen["sections"]["loaded"], seen["slides"]
        lines.append(
            f"| {verb} | {seen['files']} | {seen['functions']} | {seen['depth']} | {asked['most']} | {loaded['most']} "
            f"| {slides['reads']:,} | {slides['pixels']:,} | {slides['other_share_of_reads']:.1%} "
            f"| {slides['other_share_of_pixels']:.1%} |"
        )
        modules += [
            f"| {verb} | `{row['module']}` | {row['reads']:,} | {row['pixels']:,} | {'yes' * row['features']} |"
            for row in slides["by_module"]
        ]
    each = ["| verb | sections asked for | loaded |", "|---|---|---|"]
    for verb, seen in rows_of(figures["verbs"]):
        told = (
            ", ".join(f"{n} {c}" for n, c in seen["sections"][kind]["each"].items()) for kind in ("asked", "loaded")
        )
        each.append(f"| {verb} | {' | '.join(told)} |")
    return "\n".join([*lines, "", *each, "", *modules])


def rows_of(verbs: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Verbs, and under one with workers its processes."""
    for verb, seen in verbs.items():
        yield verb, seen
        for process in ("main process", "workers"):
            if process in seen:
                yield f"{verb}: {process}", seen[process]


def paths_text(figures: dict[str, Any]) -> str:
    """Every place that reads a section or a slide, with the way to it."""
    lines = []
    for verb, seen in figures["verbs"].items():
        kinds: list[tuple[str, list[dict[str, Any]]]] = [
            ("section asked for", seen["sections"]["asked"]["paths"]),
            ("section loaded", seen["sections"]["loaded"]["paths"]),
            ("slide read", seen["slides"]["paths"]),
        ]
        for kind, rows in kinds:
            lines.append(f"\n{verb}: {kind}")
            for row in rows:
                pixels = f", {row['pixels']:,} px" if "pixels" in row else ""
                lines.append(f"  {row['count']:,} times{pixels}: {row['path']}")
    return "\n".join(lines)


def measure(verbs: Iterable[str], settings: str, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Trace the verbs, one after another, on one cohort in a temporary folder.

    Parameters
    ----------
    verbs : iterable of str
        Keys of `VERBS`.
    settings : str
        Name of the shipped settings to run with, `SHORT` on top.
    say : function (str)
        Told what comes next.

    Returns
    -------
    dict
        Commit, date, settings, figures of the source and of each verb.
    """
    verbs = list(verbs)
    package = importlib.import_module(PACKAGE)
    assert package.__file__ is not None
    changed = " and uncommitted changes of the source" if git("status", "--porcelain", "--", "../src") else ""
    figures: dict[str, Any] = {
        "commit": git("rev-parse", "HEAD") + changed,
        "date": date.today().isoformat(),
        "python": sys.version.split()[0],
        "cohort": COHORT,
        "settings": " ".join([settings, *SHORT]),
        "static": static_figures(Path(package.__file__).parent),
        "verbs": {},
    }
    with tempfile.TemporaryDirectory() as name:
        say("Preparing ...")
        prepare(Path(name), verbs, settings)
        for verb in verbs:
            say(f"Tracing {verb} ...")
            figures["verbs"][verb] = trace_verb(verb, Path(name), settings)
    return figures


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--verb", choices=["train", "predict", "evaluate"], help="trace this one only")
    parser.add_argument("--settings", default="tiny", help="name of the shipped settings to run with")
    parser.add_argument("--label", default="before", help="key of these figures in the file")
    parser.add_argument("--out", type=Path, help="where the figures are written as JSON")
    parser.add_argument("--paths", action="store_true", help="print every place that reads a section or a slide")
    parser.add_argument("--trace", choices=list(VERBS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.trace:
        trace_here(with_settings(VERBS[options.trace], options.settings), options.out)
        return
    chosen = [verb for verb in VERBS if options.verb in (None, verb.split(",")[0])]
    figures = measure(chosen, options.settings, lambda text: print(text, flush=True))
    print(to_markdown(figures))
    if options.paths:
        print(paths_text(figures))
    if options.out:
        known = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
        options.out.write_text(json.dumps(known | {options.label: figures}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__" and _WORKERS_WRITE_TO in os.environ:
    _trace_worker(Path(os.environ[_WORKERS_WRITE_TO]))
