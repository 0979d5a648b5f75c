"""Standard streams of the command line: any encoding, no control characters, and no end of the run with a reader's."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from cmrcnet.progress import printable


class _Stream:
    """A text stream whose characters are all printable, or that outlives its reader."""

    def __init__(self, raw: TextIO, *, strip: bool, outlive: bool) -> None:
        self.raw, self._strip, self._outlive = raw, strip, outlive

    def write(self, text: str) -> int:
        """Write text; where the reader has gone, into nothing."""
        try:
            return self.raw.write(printable(text) if self._strip else text)
        except (OSError, ValueError):  # ValueError: closed
            if not self._outlive:
                raise
            self.raw = _nothing()
            return len(text)

    def flush(self) -> None:
        """Flush, as `write`."""
        try:
            self.raw.flush()
        except (OSError, ValueError):
            if not self._outlive:
                raise
            self.raw = _nothing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


@contextmanager
def safe_streams() -> Iterator[None]:
    """Make the standard streams safe while the block runs.

    A stream that is closed is opened on nothing, so that no file of ours gets its number; what the terminal's
    encoding lacks becomes ``?``; control characters in names do not reach standard output (nor, by the formatter of our
    log, standard error); and work goes on when the reader of standard error has gone.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError, ValueError):
                stream.reconfigure(errors="replace")
    streams: Any = sys
    streams.stdout = _Stream(before[0] or _nothing(), strip=True, outlive=before[0] is None)
    streams.stderr = _Stream(before[1] or _nothing(), strip=False, outlive=True)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _nothing() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123
