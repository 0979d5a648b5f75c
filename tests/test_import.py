"""Importing is quick, quiet, offline, and whole."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import cmrcnet

HEAVY = ("torch", "timm", "scanpy", "pandas", "anndata", "matplotlib", "skimage", "sklearn", "lightning_fabric")
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(cmrcnet.__path__, "cmrcnet.") if module.name != "cmrcnet.__main__"
)


def _python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def _awake_after(statement: str) -> set[str]:
    """The heavy libraries that a fresh interpreter holds after `statement`, which must also print nothing."""
    done = _python(f"import sys\n{statement}\nsys.stdout.write(' '.join(m for m in {HEAVY!r} if m in sys.modules))")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return set(done.stdout.split())


def test_the_probe_sees_a_heavy_library():
    assert "pandas" in _awake_after("import pandas")


def test_importing_the_package_wakes_nothing_heavy():
    assert _awake_after("import cmrcnet") == set()


@pytest.mark.parametrize(
    "name",
    [
        "read_section",
        "read_cohort",
        "inspect",
        "check_cohort",
        "open_slide",
        "choose_panel",
        "ExactSearch",
        "synthetic_cohort",
    ],
)
def test_what_needs_no_network_does_not_wake_torch(name):
    awake = _awake_after(f"import cmrcnet; cmrcnet.{name}")
    assert not awake & {"torch", "timm", "lightning_fabric"}


def test_help_wakes_no_torch():
    awake = _awake_after(
        "import contextlib, io, cmrcnet.cli\n"
        "with contextlib.redirect_stdout(io.StringIO()): cmrcnet.cli.main(['--help'])"
    )
    assert not awake & {"torch", "timm", "scanpy", "anndata", "matplotlib", "skimage", "sklearn", "lightning_fabric"}


@pytest.mark.parametrize("statement", ["import cmrcnet", "import cmrcnet; cmrcnet.read_section"])
def test_importing_opens_no_socket(statement):
    done = _python(
        "import socket\n"
        "def refuse(*_): raise AssertionError('a socket was opened')\n"
        "socket.socket.connect = refuse\n" + statement
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", cmrcnet.__all__)
def test_every_public_name_is_there(name):
    assert getattr(cmrcnet, name) is not None


def test_public_names_are_listed_and_others_refused():
    assert set(cmrcnet.__all__) < set(dir(cmrcnet))
    assert cmrcnet.__version__
    with pytest.raises(AttributeError, match="attribute nonsense"):
        _ = cmrcnet.nonsense


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports(module):
    assert importlib.import_module(module).__name__ == module


def test_every_room_and_floor_was_walked():
    walked = {name.split(".")[1] for name in MODULES}
    assert {"slides", "readers", "genes", "datasets", "search", "models", "features"} <= walked
    assert {"training", "inference", "evaluation", "cli", "config"} <= walked
