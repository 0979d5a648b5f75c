"""Every public name has an example in its docstring, and every example runs and prints what it says."""

from __future__ import annotations

import doctest
import inspect
import sys
import warnings

import pytest
import torch

import cmrcnet
from cmrcnet.errors import CmrcnetWarning

NOT_YET: set[str] = set()
"""Public names without an example. The list may only shrink."""


def examples_of(name: str) -> list[doctest.DocTest]:
    """Examples in the docstring of a public name and, for a class, of its public methods."""
    thing = getattr(cmrcnet, name)
    members = inspect.getmembers(thing, inspect.isroutine) if inspect.isclass(thing) else []
    found = [(name, thing), *((f"{name}.{each}", member) for each, member in members if not each.startswith("_"))]
    parser = doctest.DocTestParser()
    tests = []
    for where, each in found:
        if getattr(each, "__module__", "").startswith("cmrcnet"):
            names = vars(sys.modules[each.__module__]) | {"cmrcnet": cmrcnet}  # as `python -m doctest` has them
            test = parser.get_doctest(inspect.getdoc(each) or "", names, where, None, 0)
            tests += [test] if test.examples else []
    return tests


@pytest.mark.parametrize("name", cmrcnet.__all__)
def test_every_public_name_has_an_example_that_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CMRCNET_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)  # so small that more threads take longer
    tests = examples_of(name)
    if name in NOT_YET:
        assert not tests, f"{name} has an example now: take it off NOT_YET"
        return
    assert tests, f"{name} has no Examples in its docstring"
    for test in tests:
        said: list[str] = []
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CmrcnetWarning)  # a model of one epoch is at chance
            failed, _ = runner.run(test, out=said.append, clear_globs=False)
        assert failed == 0, "".join(said)


def test_a_wrong_example_would_be_seen():
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "sum", None, 0)
    assert doctest.DocTestRunner().run(test, out=lambda text: None).failed == 1


def test_the_list_of_names_without_an_example_knows_no_others():
    assert set(cmrcnet.__all__) >= NOT_YET
