"""The campaign sees every kind of fault, and finds none in a short run over all loaders."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cmrcnet.errors import BadInput
from tests.fuzz import campaign
from tests.fuzz.targets import TARGETS, Target

ROOT = Path(__file__).parents[2]


def _refuse(folder: Path) -> str:
    raise BadInput(folder, "a table", "it is damaged")


def _crash(folder: Path) -> str:
    os.kill(os.getpid(), signal.SIGSEGV)
    return ""


def _hang(folder: Path) -> str:
    time.sleep(60)
    return ""


def _grow(folder: Path) -> str:
    with mmap.mmap(-1, 80 << 20) as fresh:  # an array may lie in memory that this process has freed before
        for _ in range(80):  # page by page: a second copy would meet the limit of address space first
            fresh.write(bytes(1 << 20))
    return ""


def _break(folder: Path) -> str:
    return {}["no such key"]


LOADERS = {"refused": _refuse, "crash": _crash, "hang": _hang, "memory": _grow, "traceback": _break}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each case runs in a fork")
@pytest.mark.parametrize("kind", LOADERS)
def test_each_kind_of_end_is_told(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "WAITED", 1.0)
    monkeypatch.setattr(campaign, "BYTES", 50 << 20)
    (tmp_path / "x").mkdir()
    target = Target("x", LOADERS[kind])
    assert campaign.run_case("x", target, tmp_path, None, "").kind == kind


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each case runs in a fork")
@pytest.mark.parametrize(("sealed", "kind"), [(True, "silent"), (False, "changed")])
def test_other_content_is_a_fault_only_in_our_own_files(sealed, kind, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.bin").write_bytes(bytes(range(256)) * 8)
    target = Target("x", lambda folder: (folder / "a.bin").read_bytes().hex(), sealed)
    (tmp_path / "bomb.gz").write_bytes(b"bomb")
    outcomes = campaign.campaign(tmp_path, cases=30, targets={"x": target})
    assert kind in campaign.counts(outcomes)
    assert {"silent": "changed", "changed": "silent"}[kind] not in campaign.counts(outcomes)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each case runs in a fork")
def test_a_short_campaign_finds_no_fault(tmp_path):
    """Two cases a target, in another process; `python -m tests.fuzz --minutes 60` is the long one."""
    command = [sys.executable, "-m", "tests.fuzz", "--cases", str(2 * len(TARGETS))]
    command += ["--report", str(tmp_path / "report.jsonl")]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
