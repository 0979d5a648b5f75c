"""Every method that ships, in the order of the tables, and the way in for a user's own."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from cmrcnet.errors import BadOption, UnknownName
from cmrcnet.evaluation.methods.method import Method

_SHIPPED = {
    "cmrcnet": "trained_cmrcnet:TrainedCMRCNet",
    "cmrcnet-retrieval": "trained_cmrcnet:RETRIEVAL",
    "cmrcnet-ridge": "trained_cmrcnet:RIDGE",
    "cmrcnet-kernel": "trained_cmrcnet:KERNEL",
    "ridge": "baselines:RIDGE",
    "patch-ridge": "baselines:PATCH_RIDGE",
    "hest-probe": "baselines:HestProbe",
    "untrained-encoder": "baselines:UNTRAINED_ENCODER",
    "colour-ridge": "baselines:COLOUR_RIDGE",
    "contrastive-only": "trained_cmrcnet:ContrastiveOnly",
    "bleep": "retrieval_baselines:BLEEP",
    "mclstexp": "retrieval_baselines:MCLSTEXP",
    "loki": "retrieval_baselines:LOKI",
    "st-net": "regression_baselines:ST_NET",
    "deepspot": "regression_baselines:DEEPSPOT",
    "triplex": "regression_baselines:TRIPLEX",
    "gene-mean": "controls:GeneMean",
    "random-k": "controls:RandomSpots",
    "coordinates-knn": "controls:CoordinatesKNN",
    "depth-null": "controls:DepthNull",
    "permuted-pairs": "trained_cmrcnet:PermutedPairs",
}
"""Name to where its class is; imported when it is asked for, so that the names are had without torch."""


def shipped_methods() -> tuple[str, ...]:
    """Names of the methods that come with the package, in the order of the tables."""
    return tuple(_SHIPPED)


def method_of(name: str) -> Method:
    """The method of a name: one that ships, or one of your own as ``module:object``.

    The module is looked for where Python looks, then in the current folder. The object is a class that takes no
    argument, a function that makes a method, or a method ready made.

    Raises
    ------
    UnknownName
        No method of this name ships.
    BadOption
        The module or the object is not there, or the object lacks a name, an about or a fit.
    """
    if name not in _SHIPPED and ":" not in name:
        raise UnknownName("method", name, shipped_methods(), "One of your own is given as module:object.")
    label = _SHIPPED.get(name, name)
    module_name, _, object_name = (f"{__name__}.{label}" if name in _SHIPPED else name).partition(":")
    found: object = _module(label, module_name)
    for part in object_name.split("."):
        if not part or not hasattr(found, part):
            raise _not_a_method(label, f"the module {module_name} has no {object_name or 'object of an empty name'}")
        found = getattr(found, part)
    if isinstance(found, type) or inspect.isfunction(found):
        try:
            found = found()
        except TypeError as error:
            raise _not_a_method(label, f"it cannot be made without arguments ({error})") from error
    return _checked(found, label)


def chosen_methods(methods: Sequence[str | Method] | None) -> list[Method]:
    """Methods by name or as they are, in the order given; all that ship for None. `BadOption` for none or twins."""
    given = shipped_methods() if methods is None else methods
    chosen = [method_of(each) if isinstance(each, str) else _checked(each, type(each).__name__) for each in given]
    names = [method.name for method in chosen]
    if not names or len(set(names)) != len(names):
        raise BadOption("methods", ", ".join(names), "at least one method, each named once")
    return chosen


def _module(label: str, name: str) -> ModuleType:
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the user's module is there, and something that it imports is not: its own sentence says what
        raise _not_a_method(label, f"there is no module {error.name}, also not in the current folder") from error
    except (ValueError, TypeError) as error:  # an empty name, a relative name
        raise _not_a_method(label, f"{name!r} is not the name of a module") from error
    finally:
        if here in sys.path:
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(here)]


def _not_a_method(label: object, why: str) -> BadOption:
    return BadOption.from_sentence(
        f"{label} is not a method: {why}; wanted a class or object with name, about and fit(training), given as "
        "module:object."
    )


def _checked(found: object, label: object) -> Method:
    for attribute in ("name", "about"):
        value = getattr(found, attribute, None)
        if not isinstance(value, str) or not value.strip():
            raise _not_a_method(label, f"its {attribute} is {value!r}, not a text")
    fit = getattr(found, "fit", None)
    if not callable(fit):
        raise _not_a_method(label, "it has no fit")
    try:
        inspect.signature(fit).bind(None)
    except (TypeError, ValueError) as error:
        raise _not_a_method(label, f"its fit does not take the training data alone ({error})") from error
    assert isinstance(found, Method)
    return found
