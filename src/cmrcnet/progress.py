"""Progress of long work: a bar with time left on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

Item = TypeVar("Item")
_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_].*?(?:\x07|\x1b\\|$)|[ -/]*[0-~])", re.DOTALL)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
log = logging.getLogger("cmrcnet")

SECONDS_BETWEEN_LINES = 15.0


def printable(text: str) -> str:
    """Text without what a terminal would obey: escape sequences, control characters, marks that turn the reading order.

    Names of sections and patients come from files of others; line ends and tabs stay.

    Examples
    --------
    >>> printable("P1\\x1b[2J\\x07S1")
    'P1S1'
    """
    return _CONTROL.sub("", _SEQUENCE.sub("", text))


class Meter:
    """Counts finished items of one job. `note` is shown behind the bar (a loss, a score)."""

    def __init__(self, label: str, total: int | None, unit: str) -> None:
        self.label, self.total, self.unit = printable(label), total, unit
        self.done = self.skipped = 0
        self.note = ""
        self._start = self._last = time.monotonic()

    def advance(self, by: int = 1, note: str | None = None) -> None:
        """Count `by` more finished items, and log a line now and then."""
        self.done += by
        if note is not None:
            self.note = note
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            log.info("%s", self.line(now))

    def skip(self, by: int) -> None:
        """Count `by` items that were done before: they count for the share, not for the rate."""
        self.done += by
        self.skipped += by

    def line(self, now: float) -> str:
        """One plain line: label, share done, rate, time left."""
        rate = (self.done - self.skipped) / max(now - self._start, 1e-9)
        share = f"{self.done}/{self.total}" if self.total else str(self.done)
        left = f", {(self.total - self.done) / rate:.0f} s left" if self.total and rate > 0 else ""
        return (
            f"{self.label}: {share} {self.unit}, {rate:.1f} {self.unit}/s{left}{', ' + self.note if self.note else ''}"
        )


class _BarMeter(Meter):
    """A meter that also moves a bar."""

    def __init__(self, label: str, total: int | None, unit: str, bar: Progress) -> None:
        super().__init__(label, total, unit)
        self._bar, self._task = bar, bar.add_task(self.label, total=total, note="")

    def advance(self, by: int = 1, note: str | None = None) -> None:
        self.done += by
        if note is not None:
            self.note = note
        self._bar.update(self._task, advance=by, note=self.note)

    def skip(self, by: int) -> None:
        """As `Meter.skip`; the clock of the bar starts with the first real work."""
        super().skip(by)
        if self.done == self.skipped:
            self._bar.reset(self._task, completed=self.done)
        else:
            self._bar.update(self._task, advance=by)


@contextmanager
def metered(label: str, total: int | None = None, unit: str = "items") -> Iterator[Meter]:
    """Show the progress of a job: ``with metered("encode", 2000, "patches") as meter: ... meter.advance(64)``."""
    if not (sys.stderr.isatty() and log.isEnabledFor(logging.INFO)):
        yield Meter(label, total, unit)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _BarMeter(label, total, unit, bar)


def tracked(items: Iterable[Item], label: str, total: int | None = None, unit: str = "items") -> Iterator[Item]:
    """Iterate and show the progress."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with metered(label, total, unit) as meter:
        for item in items:
            yield item
            meter.advance()
