"""The regular lattice that spots were printed on, found from their centres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order, connected_components
from scipy.spatial import cKDTree

_NEXT = 1.25
"""Lattice neighbours lie within so many pitches: beyond jitter, short of a square's diagonal (1.41)."""
_LEAST_ORDER = 0.4
"""Of the directions to neighbours: 1 on a lattice, about 0 where spots lie anywhere."""
_MOST_OFF = 0.3
"""Spots that lie further off their locations, root mean square in pitches, were printed on no such lattice."""
_TURN = {"square": 4, "hexagonal": 6}
_SHAPE = {"square": np.eye(2), "hexagonal": np.array([[1.0, 0.0], [0.5, np.sqrt(0.75)]])}


@dataclass(frozen=True, eq=False)
class SpotLattice:
    """Spots on a lattice.

    Parameters
    ----------
    kind : {"square", "hexagonal", "none"}
        "none": the spots fit no lattice, or are fewer than four.
    locations : numpy.ndarray, shape (spots, 2), float64
        Location of each spot in pitches, free of jitter and of the slide's turn. With kind "none" the centres
        themselves,
        divided by the pitch.
    off : float
        Distance of the spots from their locations, root mean square, in pitches; nan with kind "none".
    """

    kind: Literal["square", "hexagonal", "none"]
    locations: np.ndarray
    off: float


def pitch_of(centres: np.ndarray) -> float:
    """Distance between neighbouring spots: the median over spots of the distance to the nearest other spot.

    Parameters
    ----------
    centres : numpy.ndarray, shape (spots, 2)
        x, y in micrometres, or in any one unit.

    Returns
    -------
    float
        In the unit of `centres`; nan for fewer than two spots.
    """
    if len(centres) < 2:
        return float("nan")
    distance, _ = cKDTree(centres).query(centres, k=2)
    return float(np.median(distance[:, 1]))


def snap_to_lattice(centres: np.ndarray) -> SpotLattice:
    """Give every spot its place on the square or hexagonal lattice that fits.

    The directions to each spot's nearest neighbours repeat every 90 degrees on a square lattice and every 60 on a
    hexagonal one: the larger of ``|mean exp(4 i angle)|`` and ``|mean exp(6 i angle)|`` says which, its phase says how
    the lattice is turned. Whole steps are then counted from spot to spot, the lattice (origin and two vectors, so both
    pitches may differ) is fitted to them by least squares, and every spot goes to the nearest place.

    Parameters
    ----------
    centres : numpy.ndarray, shape (spots, 2)
        x, y in micrometres, or in any one unit.

    Returns
    -------
    SpotLattice
        Of kind "none" where two spots would share a location or the spots lie off their locations.
    """
    pitch = pitch_of(centres)
    without = SpotLattice("none", centres / (pitch if pitch > 0 else 1.0), float("nan"))
    if len(centres) < 4 or not pitch > 0:
        return without
    pairs = cKDTree(centres).query_pairs(_NEXT * pitch, output_type="ndarray")
    steps = centres[pairs[:, 1]] - centres[pairs[:, 0]]
    angles = np.arctan2(steps[:, 1], steps[:, 0])
    order = {kind: np.exp(1j * turn * angles).mean() for kind, turn in _TURN.items()}
    kind = max(order, key=lambda name: abs(order[name]))
    if not abs(order[kind]) > _LEAST_ORDER:
        return without
    turned = np.angle(order[kind]) / _TURN[kind]
    length = np.hypot(*steps.T).mean()
    turn = np.array([[np.cos(turned), np.sin(turned)], [-np.sin(turned), np.cos(turned)]])
    vectors = _SHAPE[kind] @ turn * length  # rows: the two lattice vectors

    # Steps are counted along chains of neighbours, so that a pitch that is slightly wrong does not add up.
    whole = np.rint(steps @ np.linalg.inv(vectors))
    counted, group = _count_steps(len(centres), pairs, whole)
    largest = group == np.bincount(group).argmax()
    for fitted in (largest, np.ones(len(centres), bool)):
        model = np.column_stack([np.ones(len(centres)), counted])
        solution, _, rank, _ = np.linalg.lstsq(model[fitted], centres[fitted], rcond=None)
        if rank < 3:  # all on one line
            return without
        origin, vectors = solution[0], solution[1:]
        counted = np.rint((centres - origin) @ np.linalg.inv(vectors))
    off = float(np.sqrt(((centres - origin - counted @ vectors) ** 2).sum(axis=1).mean()) / pitch)
    if off > _MOST_OFF or len(np.unique(counted, axis=0)) < len(centres):
        return without
    return SpotLattice(kind, (counted - counted.min(axis=0)) @ _SHAPE[kind], off)


def _count_steps(spots: int, pairs: np.ndarray, whole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lattice coordinates of each spot, from the first spot of its connected group; and the group."""
    forward = {(int(a), int(b)): step for (a, b), step in zip(pairs, whole, strict=True)}
    links = sparse.csr_matrix((np.ones(len(pairs)), tuple(pairs.T)), shape=(spots, spots))
    _, group = connected_components(links, directed=False)
    counted = np.zeros((spots, 2))
    for first in np.unique(group, return_index=True)[1]:
        order, before = breadth_first_order(links, first, directed=False)
        for spot in order[1:].tolist():
            came = int(before[spot])
            step = forward[came, spot] if (came, spot) in forward else -forward[spot, came]
            counted[spot] = counted[came] + step
    return counted, group
