"""Parts: the locations that are read, encoded and kept together."""

from __future__ import annotations

from collections.abc import Iterator

PART = 256
"""Locations of a part: what a killed run has to do again at most."""


def part_slices(count: int) -> Iterator[slice]:
    """The parts of so many locations, in order; the last may be shorter.

    Parameters
    ----------
    count : int
    """
    for start in range(0, count, PART):
        yield slice(start, min(start + PART, count))
