"""Progress: plain lines in a log, a bar on a terminal, and never a change to what is iterated."""

from __future__ import annotations

import io
import logging
import re

import pytest

from cmrcnet import progress
from cmrcnet.progress import Meter, metered, tracked


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def test_a_line_says_what_how_far_how_fast_and_how_long_yet(clock):
    meter = Meter("encode", 200, "patches")
    clock.now += 10
    meter.done = 50
    meter.note = "loss 0.5"
    assert meter.line(clock.now) == "encode: 50/200 patches, 5.0 patches/s, 30 s left, loss 0.5"


def test_what_was_done_before_counts_as_far_and_not_as_fast(clock):
    meter = Meter("encode", 200, "patches")
    meter.skip(100)
    clock.now += 10
    meter.done += 50
    assert meter.line(clock.now) == "encode: 150/200 patches, 5.0 patches/s, 10 s left"


def test_without_a_total_nobody_knows_how_long_yet(clock):
    meter = Meter("read", None, "files")
    clock.now += 2
    meter.done = 6
    assert meter.line(clock.now) == "read: 6 files, 3.0 files/s"


def test_nothing_done_yet_is_no_division_by_zero(clock):
    assert Meter("encode", 10, "patches").line(clock.now) == "encode: 0/10 patches, 0.0 patches/s"


def test_lines_come_now_and_then_not_for_every_item(clock, caplog):
    caplog.set_level(logging.INFO, "cmrcnet")
    meter = Meter("encode", 100, "patches")
    for _ in range(100):
        clock.now += 1.0
        meter.advance()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 100 // progress.SECONDS_BETWEEN_LINES
    assert lines[0] == "encode: 15/100 patches, 1.0 patches/s, 85 s left"


def test_a_note_stays_until_the_next(clock):
    meter = Meter("fit", 10, "epochs")
    meter.advance(note="loss 2")
    meter.advance(3)
    assert (meter.done, meter.note) == (4, "loss 2")
    meter.advance(note="")
    assert meter.note == ""


def test_a_log_gets_no_bar(capsys):
    with metered("encode", 3, "patches") as meter:
        meter.advance(3)
    assert type(meter) is Meter
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch, caplog):
    """Call it inside the test (pytest sets its own stderr after the fixtures) to get a terminal for stderr."""

    def begin(level: int = logging.INFO) -> Terminal:
        screen = Terminal()
        monkeypatch.setattr("sys.stderr", screen)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "160")
        monkeypatch.delenv("NO_COLOR", raising=False)
        caplog.set_level(level, "cmrcnet")
        return screen

    return begin


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_terminal_gets_a_bar(terminal):
    screen = terminal()
    with metered("encode", 40, "patches") as meter:
        meter.advance(39, note="loss 0.25")
        meter.advance()
    assert (meter.done, meter.note) == (40, "loss 0.25")
    shown = plain(screen.getvalue())
    assert "encode" in shown and "40/40" in shown and "patches" in shown and "loss 0.25" in shown


def test_a_quiet_terminal_gets_none(terminal):
    screen = terminal(logging.WARNING)
    with metered("encode", 40, "patches") as meter:
        meter.advance(40)
    assert screen.getvalue() == ""


def test_a_failure_inside_is_passed_on_and_the_bar_goes(terminal):
    terminal()
    with pytest.raises(ValueError, match="stop"), metered("encode", 4):
        raise ValueError("stop")
    with metered("again", 1) as meter:  # a bar left open would refuse a second one
        meter.advance()


def test_tracking_gives_the_items_as_they_are():
    assert list(tracked([3, 1, 2], "sort")) == [3, 1, 2]
    assert list(tracked((n * n for n in range(4)), "square")) == [0, 1, 4, 9]  # no length
    assert list(tracked([], "nothing")) == []


def test_tracking_counts_an_item_once_it_is_done(monkeypatch):
    seen = []
    monkeypatch.setattr(Meter, "advance", lambda self, by=1, note=None: seen.append((self.label, self.total)))
    items = tracked("abc", "letters")
    next(items)
    assert seen == []
    assert [*items] == ["b", "c"]
    assert seen == [("letters", 3)] * 3
    assert list(tracked(iter("ab"), "letters", total=9)) == ["a", "b"] and seen[-1] == ("letters", 9)
