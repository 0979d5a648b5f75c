"""The cure for a torchvision of another build, tried on stand-ins in interpreters of their own."""

from __future__ import annotations

import os
import subprocess
import sys

ILL = """
import torch
@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold): ...
@torch.library.register_fake("torchvision::qnms")
def qnms(dets, scores, iou_threshold): ...
"""
PROBE = """
import sys
from cmrcnet.models.encoder_weights import import_timm, is_stubbed
import_timm(); import_timm()
import torch, timm
assert timm.whole and sys.modules["timm.layers"].whole
print(is_stubbed(), hasattr(torch.ops.torchvision, "nms"), timm.imports)
"""


def run(tmp_path, torchvision: str, probe: str = PROBE) -> subprocess.CompletedProcess:
    """Run `probe` where `torchvision` and a timm that needs it stand before the installed ones."""
    files = {
        "torchvision/__init__.py": torchvision,
        "timm/__init__.py": "import builtins\nbuiltins.count = getattr(builtins, 'count', 0) + 1\n"
        "from timm import layers\nimports, whole = builtins.count, True\n",
        "timm/layers/__init__.py": "import torchvision\nwhole = True\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    before = filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(before)}
    return subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, env=environment, timeout=120, check=False
    )


def test_the_stand_in_is_really_ill(tmp_path):
    done = run(tmp_path, ILL, "import timm")
    assert "RuntimeError: operator torchvision::nms does not exist" in done.stderr


def test_missing_operators_are_declared_and_the_import_begins_again(tmp_path):
    done = run(tmp_path, ILL)
    assert (done.stderr, done.stdout.split()) == ("", ["True", "True", "2"])


def test_a_healthy_torchvision_is_left_alone(tmp_path):
    done = run(tmp_path, "")
    assert (done.stderr, done.stdout.split()) == ("", ["False", "False", "1"])


def test_other_ills_are_not_hidden(tmp_path):
    done = run(tmp_path, "raise RuntimeError('no such device')")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "RuntimeError: no such device"


def test_the_installed_timm_can_be_imported():
    from cmrcnet.models.encoder_weights import import_timm

    assert import_timm().create_model is not None
