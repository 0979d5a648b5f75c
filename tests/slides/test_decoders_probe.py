"""A slide that ends its decoder ends a child process only, and the next slide is served."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cmrcnet.cli.app import main
from cmrcnet.errors import BadInput, MissingInput
from cmrcnet.slides import decoders as ours
from cmrcnet.slides.decoders import slides_probed_first
from cmrcnet.slides.slide import open_slide
from cmrcnet.storage import child_process

HOSTILE = """
import os, time
from cmrcnet.slides import decoders
opened = decoders.open_slide
def hostile(path):
    if "abort" in path.name: os.abort()
    if "hang" in path.name: time.sleep(60)
    if "slow" in path.name: time.sleep(2)
    while "spin" in path.name: pass
    if "print" in path.name: os.write(1, b"a library prints\\n")
    if "divide" in path.name: 1 / 0
    return opened(path)
decoders.open_slide = hostile
decoders.serve()
"""


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)).save(tmp_path / "sound.png")
    for name in ("abort", "hang", "print", "divide", "slow", "spin"):
        (tmp_path / f"{name}.png").write_bytes((tmp_path / "sound.png").read_bytes())
    (tmp_path / "broken.png").write_bytes((tmp_path / "sound.png").read_bytes().replace(b"IDAT", b"IDAT" + bytes(99)))
    (tmp_path / "text.png").write_bytes(b"text")
    return tmp_path


def test_sound_and_broken_slides(picture):
    with slides_probed_first():
        assert open_slide(picture / "sound.png").width_px == 40
        with pytest.raises(BadInput, match=r"broken.png cannot be read"):
            open_slide(picture / "broken.png")
        with pytest.raises(MissingInput, match="does not exist"):
            open_slide(picture / "gone.png")
        with pytest.raises(BadInput, match="cannot be read as a slide"):
            open_slide(picture / "text.png")
        child = ours._child._child
        open_slide(picture / "print.png")
        assert ours._child._child is child and child.poll() is None
    open_slide(picture / "broken.png")  # found when it is read


def test_a_child_that_dies_or_hangs_is_replaced(picture, monkeypatch, capsys):
    ours._child.end()
    monkeypatch.setattr(ours._child, "code", HOSTILE)
    with slides_probed_first():
        open_slide(picture / "sound.png")
        with pytest.raises(BadInput, match=r"abort.png .* process that tried to decode it ended with code"):
            open_slide(picture / "abort.png")
        open_slide(picture / "print.png")
        with pytest.raises(BadInput, match=r"divide.png .* ZeroDivisionError"):
            open_slide(picture / "divide.png")
        monkeypatch.setattr(ours, "PROBE_SECONDS", 1.0)
        monkeypatch.setattr(child_process, "PATIENCE", 100.0)
        open_slide(picture / "slow.png")  # waiting, as on a busy machine, is no fault
        with pytest.raises(BadInput, match=r"spin.png .* took longer than 1 s of processor time"):
            open_slide(picture / "spin.png")
        monkeypatch.setattr(child_process, "PATIENCE", 3.0)
        with pytest.raises(BadInput, match=r"hang.png .* took longer than 3 s;"):
            open_slide(picture / "hang.png")
    monkeypatch.setattr(ours, "PROBE_SECONDS", 60.0)
    assert main(["inspect", str(picture / "abort.png")]) == 1
    assert "the process that tried to decode it ended with code -6" in capsys.readouterr().out
    ours._child.end()
