"""A slide that ends its decoder ends a child process only, and the next slide is served."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cmrcnet.errors import BadInput
from cmrcnet.slides import probe as ours
from cmrcnet.slides.probe import SlideProbe

HOSTILE = """
import os, time
from cmrcnet.slides import probe
read = probe._read_parts
def hostile(path):
    if "abort" in path.name: os.abort()
    if "hang" in path.name: time.sleep(60)
    if "print" in path.name: os.write(1, b"a library prints\\n")
    if "divide" in path.name: 1 / 0
    read(path)
probe._read_parts = hostile
probe.serve()
"""


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(np.full((30, 40, 3), 200, np.uint8)).save(tmp_path / "sound.png")
    for name in ("abort", "hang", "print", "divide"):
        (tmp_path / f"{name}.png").write_bytes((tmp_path / "sound.png").read_bytes())
    (tmp_path / "broken.png").write_bytes((tmp_path / "sound.png").read_bytes()[:-20])
    return tmp_path


def test_sound_and_broken_slides(picture):
    with SlideProbe() as probe:
        probe.check(picture / "sound.png")
        with pytest.raises(BadInput, match="truncated"):
            probe.check(picture / "broken.png")
        with pytest.raises(BadInput, match="does not exist"):
            probe.check(picture / "gone.png")
        child = probe._process._child
        probe.check(picture / "sound.png")
        assert probe._process._child is child and child.poll() is None
    assert child.poll() is not None


def test_a_child_that_dies_or_hangs_is_replaced(picture, monkeypatch):
    monkeypatch.setattr(ours, "_CHILD", HOSTILE)
    with SlideProbe() as probe:
        probe.check(picture / "sound.png")
        with pytest.raises(BadInput, match=r"abort.png .* process that tried to decode it ended with code"):
            probe.check(picture / "abort.png")
        probe.check(picture / "print.png")
        with pytest.raises(BadInput, match=r"divide.png .* ZeroDivisionError"):
            probe.check(picture / "divide.png")
        monkeypatch.setattr(ours, "MOST_SECONDS", 1.0)
        with pytest.raises(BadInput, match=r"hang.png .* took longer than 1 s"):
            probe.check(picture / "hang.png")
        monkeypatch.setattr(ours, "MOST_SECONDS", 60.0)
        probe.check(picture / "sound.png")
