"""Entry point of the `cmrcnet` command: the commands, how errors become exit codes, warnings and standard streams."""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from cmrcnet.cli import (
    bank_commands,
    cohort_commands,
    evaluate_commands,
    model_commands,
    outcome_commands,
    predict_commands,
    view_command,
)
from cmrcnet.cli.doctor import doctor
from cmrcnet.errors import CmrcnetError, CmrcnetWarning, NoSpace
from cmrcnet.progress import printable
from cmrcnet.slides.decoders import slides_probed_first
from cmrcnet.storage.refusals import error_number, refusal_sentence

if TYPE_CHECKING:
    from cyclopts import App

VERBS: dict[str, Callable] = {
    "demo": cohort_commands.demo_command,
    "inspect": cohort_commands.inspect_command,
    "train": model_commands.train_command,
    "index": bank_commands.index_command,
    "bank add": bank_commands.bank_add_command,
    "bank drop": bank_commands.bank_drop_command,
    "bank list": bank_commands.bank_list_command,
    "bank merge": bank_commands.bank_merge_command,
    "bank rebuild-index": bank_commands.bank_rebuild_index_command,
    "predict": predict_commands.predict_command,
    "distil": model_commands.distil_command,
    "pack": model_commands.pack_command,
    "export": predict_commands.export_command,
    "explain": predict_commands.explain_command,
    "view": view_command.view_command,
    "evaluate": evaluate_commands.evaluate_command,
    "sweep": evaluate_commands.sweep_command,
    "transfer": evaluate_commands.transfer_command,
    "outcomes": outcome_commands.outcomes_command,
    "localise": predict_commands.localise_command,
    "fetch": cohort_commands.fetch_command,
    "presets": model_commands.presets_command,
    "encoders": model_commands.encoders_command,
    "doctor": doctor,
}

GROUPS = {"bank": "List, extend, merge or reduce a reference bank."}

ABOUT = """Predict spatial gene expression from H&E slides, and show the measured spots behind each prediction.

- First run: `cmrcnet demo --out demo`
- Your own data: `inspect`, `evaluate`, `train`, `index`, `predict`, `export`, in this order
- Help on a command: `cmrcnet COMMAND --help`
- Fewer messages: `--quiet` with any command
"""

PROBLEMS_FOUND = 1
USER_ERROR = 2
INTERRUPTED = 130
_OPEN_FILES = 8192
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|failed to map segment|bad_alloc|"
    r"not enough memory", re.IGNORECASE,
)  # fmt: skip


def main(arguments: Sequence[str] | None = None, verbs: Mapping[str, Callable] = VERBS) -> int:
    """Run one command.

    Returns
    -------
    int
        Exit code: 0 done, 1 `inspect` found problems or some of many slides are broken, 2 an error that the user can
        correct, 130 interrupted.
    """

    with safe_streams(), slides_probed_first():
        return _run(list(sys.argv[1:] if arguments is None else arguments), verbs)


def _run(arguments: list[str], verbs: Mapping[str, Callable]) -> int:
    from cyclopts import CycloptsError

    if sys.flags.optimize >= 2:
        return _print_error(
            "Python runs with PYTHONOPTIMIZE=2 (python -OO), which removes the texts that the command line and its "
            "libraries are built from; unset it, or set it to 1."
        )
    _set_up_messages(quiet="--quiet" in arguments)
    _allow_open_files()
    arguments = [argument for argument in arguments if argument != "--quiet"]
    try:
        answer = make_app(verbs)(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except (CycloptsError, CmrcnetError) as error:
        return _print_error(error)
    except KeyboardInterrupt:
        next_step = "Continue with --resume; a prediction continues with the same command."
        print(f"\ncmrcnet: interrupted; no half-written output is left. {next_step}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The program that read our output (head, less) has ended. Python would report it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error_number(error) in (errno.ENOSPC, errno.EDQUOT):  # outside of the writes that raise NoSpace themselves
            return _print_error(NoSpace(error.filename or "the output"))
        if error_number(error) is None:
            raise
        return _print_error(refusal_sentence(error))
    except (MemoryError, RuntimeError, ImportError) as error:
        if error_number(error) is not None:  # of HDF5, which hides it in a message
            return _print_error(refusal_sentence(error))
        if not (isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error))):
            raise
        return _print_error(
            "There is not enough memory for this; close other programs, raise a limit that was set (ulimit -v), or ask "
            "for less at a time (--batch 8, --workers 1, fewer --genes)."
        )
    return PROBLEMS_FOUND if answer is False else 0


def entry() -> None:
    """Run the command that the installed `cmrcnet` script stands for."""
    sys.exit(main())


def make_app(verbs: Mapping[str, Callable] = VERBS) -> App:
    """Build the parser of all commands; options and help come from signatures and docstrings."""
    from cyclopts import App, Parameter
    from rich.console import Console

    import cmrcnet

    console = Console(file=getattr(sys.stdout, "raw", None))  # help has its colours; `safe_streams` strips what else is

    # No --no-overwrite, and `--genes A B C` takes all three.
    plain = Parameter(negative=(), consume_multiple=True)
    app = App(
        name="cmrcnet",
        help=ABOUT,
        help_format="markdown",
        version=str(cmrcnet.__version__),
        default_parameter=plain,
        suppress_keyboard_interrupt=False,
        console=console,
    )
    for position, (name, verb) in enumerate(verbs.items()):
        *group, last = name.split()
        if group and group[0] not in app:
            about = GROUPS.get(group[0], "")
            app.command(
                App(name=group[0], help=about, help_format="markdown", default_parameter=plain, sort_key=position)
            )
        (app[group[0]] if group else app).command(verb, name=last, sort_key=position)
    return app


def _print_error(error: Exception | str) -> int:
    print(f"cmrcnet: {printable(str(error))}", file=sys.stderr)
    return USER_ERROR


def _allow_open_files() -> None:
    """Raise the soft limit of open files to the hard one: a bank of many sections maps several files of each."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, _OPEN_FILES) if hard != resource.RLIM_INFINITY else _OPEN_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _PlainLines(logging.Formatter):
    """Messages as they are, but for characters that a terminal would obey."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _set_up_messages(quiet: bool) -> None:
    """Print our log and warnings as plain lines on stderr; hide those of other libraries."""
    log = logging.getLogger("cmrcnet")
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    handler = logging.StreamHandler()
    handler.setFormatter(_PlainLines("%(message)s"))
    log.handlers, log.propagate = [handler], False
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # our own error says what is wrong with the file
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", CmrcnetWarning)
    warnings.showwarning = lambda message, category, *rest: log.warning("warning: %s", message)


@dataclass(eq=False)
class _Stream:
    """A text stream whose characters are all printable (`strip`), or that outlives its reader."""

    raw: TextIO
    strip: bool
    outlive: bool

    def write(self, text: str) -> int:
        """Write text; where the reader has gone, into nothing."""
        try:
            return self.raw.write(printable(text) if self.strip else text)
        except (OSError, ValueError):  # ValueError: closed
            if not self.outlive:
                raise
            self.raw = _nothing()
            return len(text)

    def flush(self) -> None:
        """Flush, as `write`."""
        try:
            self.raw.flush()
        except (OSError, ValueError):
            if not self.outlive:
                raise
            self.raw = _nothing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


@contextmanager
def safe_streams() -> Iterator[None]:
    """Make the standard streams safe while the block runs.

    A stream that is closed is opened on nothing, so that no file of ours gets its number; what the terminal's
    encoding lacks becomes ``?``; control characters in names do not reach standard output (nor, by the formatter of our
    log, standard error); and work goes on when the reader of standard error has gone.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError, ValueError):
                stream.reconfigure(errors="replace")
    streams: Any = sys
    streams.stdout = _Stream(before[0] or _nothing(), strip=True, outlive=before[0] is None)
    streams.stderr = _Stream(before[1] or _nothing(), strip=False, outlive=True)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _nothing() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123
