"""How hard an approximate index looks: a number that grows with k, chosen so that the recall asked for is reached."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """Cells looked into (ivf) or candidates kept (hnsw) for some k.

    Parameters
    ----------
    steps : tuple of (k, value)
        Measured ones, rising in k.
    """

    steps: tuple[tuple[int, int], ...]

    def at(self, k: int) -> int:
        """The value of the first step that reaches k; beyond the last, in proportion to k.

        Parameters
        ----------
        k : int
        """
        for reach, value in self.steps:
            if k <= reach:
                return value
        reach, value = self.steps[-1]
        return math.ceil(value * k / reach)
