"""The spatial neighbours of each spot within its own section."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cmrcnet.errors import BadOption, ShapeMismatch

RADIUS_UM = 300.0
"""Reaches the eight neighbours at 200 um pitch (first-generation arrays) and about three rings at 100 um (Visium)."""

MOST = 24
"""Neighbours kept for one spot, the nearest."""


@dataclass(frozen=True, eq=False)
class Neighbourhoods:
    """Who lies near whom.

    Parameters
    ----------
    ids : numpy.ndarray, shape (spots, widest), int64
        Rows of the neighbours, nearest first, the spot itself not among them; filled up with the spot itself.
    present : numpy.ndarray, shape (spots, widest), bool
        Which entries of `ids` are neighbours.
    """

    ids: np.ndarray
    present: np.ndarray

    def __post_init__(self) -> None:
        if self.ids.shape != self.present.shape:
            raise ShapeMismatch("present", want=self.ids.shape, got=self.present.shape)


def find_neighbourhoods(
    location_um: np.ndarray, section_of: np.ndarray, *, radius_um: float = RADIUS_UM, most: int = MOST
) -> Neighbourhoods:
    """Find each spot's neighbours within a radius, in its own section.

    Parameters
    ----------
    location_um : array, shape (spots, 2)
        x, y of each centre in micrometres, in its section's own frame.
    section_of : array, shape (spots,)
        Section of each spot; spots of different sections are never neighbours.
    radius_um : float
    most : int
        Neighbours kept for one spot.

    Returns
    -------
    Neighbourhoods

    Raises
    ------
    BadOption, ShapeMismatch
    """
    from scipy.spatial import cKDTree

    if not radius_um > 0 or most < 1:
        raise BadOption("radius_um, most", (radius_um, most), "a radius above 0 and one neighbour or more")
    if location_um.shape != (len(section_of), 2):
        raise ShapeMismatch("location_um", want=(len(section_of), 2), got=location_um.shape)
    ids = np.tile(np.arange(len(section_of))[:, None], (1, most))
    present = np.zeros(ids.shape, bool)
    for name in dict.fromkeys(section_of):
        rows = np.flatnonzero(section_of == name)
        asked = min(most + 1, len(rows))
        distance, near = cKDTree(location_um[rows]).query(
            location_um[rows], k=np.arange(1, asked + 1), distance_upper_bound=np.nextafter(radius_um, np.inf)
        )
        for own, (row, far, members) in enumerate(zip(rows, distance, near, strict=True)):
            kept = members[np.isfinite(far) & (members != own)][:most]
            ids[row, : len(kept)], present[row, : len(kept)] = rows[kept], True
    widest = max(1, int(present.sum(axis=1).max(initial=0)))
    return Neighbourhoods(ids[:, :widest], present[:, :widest])
