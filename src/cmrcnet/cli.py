"""The command line: one verb a workflow, flags and help taken from the workflow's signature and docstring."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence

from cmrcnet import doctor, workflows
from cmrcnet.errors import CmrcnetError, CmrcnetWarning, NoSpace

VERBS: dict[str, Callable] = {
    "demo": workflows.demo,
    "inspect": workflows.inspect,
    "train": workflows.train,
    "index": workflows.index,
    "bank add": workflows.bank_add,
    "bank drop": workflows.bank_drop,
    "bank list": workflows.bank_list,
    "bank merge": workflows.bank_merge,
    "bank search": workflows.bank_search,
    "predict": workflows.predict,
    "distil": workflows.distil,
    "export": workflows.export,
    "explain": workflows.explain,
    "evaluate": workflows.evaluate,
    "sweep": workflows.sweep,
    "transfer": workflows.transfer,
    "localise": workflows.localise,
    "fetch": workflows.fetch,
    "presets": workflows.presets,
    "encoders": workflows.encoders,
    "doctor": doctor.doctor,
}

GROUPS = {"bank": "Look into a reference bank, add to it, take out of it."}

ABOUT = """Predict spatial gene expression from H&E, with the measured tissue behind every prediction.

A first look:    cmrcnet demo --out demo
Your own data:   cmrcnet inspect cohort.csv, then evaluate, train, index, predict, export
Any verb:        cmrcnet VERB --help
Less talk:       --quiet with any verb
"""

PROBLEMS_FOUND = 1
USER_ERROR = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None, verbs: Mapping[str, Callable] = VERBS) -> int:
    """Run one command.

    Returns
    -------
    int
        Exit code: 0 done, 1 `inspect` found problems or some of many slides are broken, 2 something that you can
        mend, 130 interrupted.
    """
    from cyclopts import CycloptsError

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _speak_plainly(quiet="--quiet" in arguments)
    arguments = [argument for argument in arguments if argument != "--quiet"]
    try:
        answer = _app(verbs)(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        return _refuse(str(error))
    except CmrcnetError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        goes_on = "Long work goes on with --resume, a prediction by the same command."
        print(f"\ncmrcnet: interrupted; nothing half-written is left. {goes_on}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (head, less) has gone. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno == 28:  # ENOSPC, met outside one of our own writes
            return _refuse(str(NoSpace(error.filename or "the output")))
        raise
    return PROBLEMS_FOUND if answer is False else 0


def entry() -> None:
    """What the installed `cmrcnet` command calls."""
    sys.exit(main())


def _app(verbs: Mapping[str, Callable]):
    from cyclopts import App, Parameter

    from cmrcnet import __version__

    # No --no-overwrite twins, and `--genes A B C` takes all three.
    plain = Parameter(negative=(), consume_multiple=True)
    app = App(
        name="cmrcnet",
        help=ABOUT,
        help_format="plaintext",
        version=__version__,
        default_parameter=plain,
        suppress_keyboard_interrupt=False,
    )
    for place, (name, verb) in enumerate(verbs.items()):
        *group, last = name.split()
        if group and group[0] not in app:
            about = GROUPS.get(group[0], "")
            app.command(
                App(name=group[0], help=about, help_format="plaintext", default_parameter=plain, sort_key=place)
            )
        (app[group[0]] if group else app).command(verb, name=last, sort_key=place)
    return app


def _refuse(sentence: str) -> int:
    print(f"cmrcnet: {sentence}", file=sys.stderr)
    return USER_ERROR


def _speak_plainly(quiet: bool) -> None:
    """Our own log and warnings as plain lines on stderr; other libraries' notices stay out of the way."""
    log = logging.getLogger("cmrcnet")
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers, log.propagate = [handler], False
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it notices of a bad file, our own sentence says
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", CmrcnetWarning)
    warnings.showwarning = lambda message, category, *rest: log.warning("warning: %s", message)
