"""Workers for tests. The processes that run them import this module: it imports nothing large."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cmrcnet.errors import CmrcnetWarning, TooFew


@dataclass(frozen=True)
class Squares:
    """A worker that squares numbers, and leaves a file for each that it has begun."""

    folder: Path
    fails_to_start: bool = False
    ends_at_start: bool = False

    def __call__(self) -> Callable[[int], int]:
        if self.fails_to_start:
            raise TooFew("models", 0, 1, "train one")
        if self.ends_at_start:
            os._exit(9)

        def square(number: int) -> int:
            (self.folder / f"{number}.{os.getpid()}").touch()
            if number == 3:
                raise TooFew("threes", 3, 4, "add one")
            if number == 4:
                warnings.warn("four", CmrcnetWarning, stacklevel=2)
            if number == 99:
                os._exit(9)
            if number in (98, 97):
                os.kill(os.getpid(), signal.SIGKILL if number == 98 else signal.SIGTERM)
            if number >= 1000:
                time.sleep(2 if number < 600_000 else 600)
            return number**2

        return square


def lengths() -> Callable[[int], int]:
    return lambda number: len(str(number))
