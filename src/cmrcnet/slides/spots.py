"""Where expression was measured, or will be predicted, on one slide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cmrcnet.errors import SectionError, ShapeMismatch


@dataclass(frozen=True, eq=False)
class Spots:
    """Named locations on one slide.

    Parameters
    ----------
    barcodes : tuple of str
        One name a spot, all different.
    centre_px : numpy.ndarray, shape (spots, 2), float64
        x, y of each centre in level-0 pixels of the slide.
    diameter_um : float
        Diameter of the measured area in micrometres.
    """

    barcodes: tuple[str, ...]
    centre_px: np.ndarray
    diameter_um: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "barcodes", tuple(str(b) for b in self.barcodes))
        centres = (
            np.array(self.centre_px, dtype=np.float64).reshape(-1, 2)
            if len(self.barcodes) == 0
            else np.array(self.centre_px, dtype=np.float64)
        )
        if centres.shape != (len(self.barcodes), 2):
            raise ShapeMismatch("centre_px", want=(len(self.barcodes), 2), got=centres.shape)
        centres.setflags(write=False)
        object.__setattr__(self, "centre_px", centres)
        if len(set(self.barcodes)) != len(self.barcodes):
            seen: set[str] = set()
            twice = sorted({b for b in self.barcodes if b in seen or seen.add(b)})
            raise SectionError.repeated_barcodes(twice)

    def __len__(self) -> int:
        return len(self.barcodes)

    def take(self, rows: Sequence[int] | np.ndarray) -> Spots:
        """The spots at `rows` (indices or a boolean mask), in that order."""
        chosen = np.asarray(rows)
        if chosen.shape == (0,) and chosen.dtype == np.float64:  # what numpy makes of []
            chosen = chosen.astype(np.intp)
        index = np.arange(len(self))[chosen]
        return Spots(tuple(self.barcodes[i] for i in index), self.centre_px[index], self.diameter_um)
