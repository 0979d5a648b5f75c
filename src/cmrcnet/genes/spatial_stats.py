"""Pearson's correlation of each gene over spots.

The regular lattice that spots were printed on, found from their centres.

Which spots are neighbours: a graph from their centres, whatever the unit.

Moran's I: how much a gene's expression resembles that of the neighbouring spots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order, connected_components
from scipy.spatial import cKDTree

from cmrcnet.errors import ShapeMismatch

_GENES_AT_A_TIME = 1024
_CONSTANT = 1e-6
"""A column whose range is below this share of its largest value is constant but for float32 rounding."""


def pearson_per_gene(truth: np.ndarray | sparse.spmatrix, guess: np.ndarray | sparse.spmatrix) -> np.ndarray:
    """Correlate each gene's truth with its prediction over spots.

    ``sum((t - mean t)(g - mean g)) / sqrt(sum((t - mean t)^2) sum((g - mean g)^2))`` in float64, a block of genes at
    a time.

    Parameters
    ----------
    truth, guess : array or sparse matrix, shape (spots, genes)

    Returns
    -------
    numpy.ndarray, shape (genes,), float64
        NaN where it is undefined: a constant truth or prediction, fewer than two spots, or a value that is not
        finite. The caller decides, and says, what becomes of those.

    Raises
    ------
    ShapeMismatch
    """
    if truth.ndim != 2 or truth.shape != guess.shape:
        raise ShapeMismatch("guess", want=truth.shape, got=guess.shape)
    truth, guess = (each.tocsc() if sparse.issparse(each) else np.asarray(each) for each in (truth, guess))
    result = np.full(truth.shape[1], np.nan)
    if truth.shape[0] < 2:
        return result
    for start in range(0, truth.shape[1], _GENES_AT_A_TIME):
        part = slice(start, start + _GENES_AT_A_TIME)
        result[part] = _correlate(_dense(truth[:, part]), _dense(guess[:, part]))
    return result


def _dense(block: np.ndarray | sparse.csc_matrix) -> np.ndarray:
    return (block.toarray() if sparse.issparse(block) else block).astype(np.float64)


def _correlate(truth: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """Correlation of two dense blocks, which are changed on the way."""
    with np.errstate(invalid="ignore", divide="ignore"):
        defined = varies(truth) & varies(guess)
        for block in (truth, guess):
            block -= block.mean(axis=0)
            block /= np.sqrt(np.einsum("ng,ng->g", block, block))
        value = np.clip(np.einsum("ng,ng->g", truth, guess), -1, 1)
    return np.where(defined, value, np.nan)


def varies(block: np.ndarray) -> np.ndarray:
    """Which columns are finite and not constant: a bool a column."""
    low, high = block.min(axis=0), block.max(axis=0)
    return np.isfinite(low) & np.isfinite(high) & (high - low > _CONSTANT * np.maximum(np.abs(low), np.abs(high)))


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


REACH_PITCHES = 1.5
"""On a square lattice the 8 spots around a spot, on a hexagonal one the 6 around it."""


def spot_graph(centres: np.ndarray, reach_pitches: float = REACH_PITCHES) -> sparse.csr_matrix:
    """Weights of each spot's neighbours, which sum to 1 (row-standardised).

    Two spots are neighbours when their locations on the lattice (`snap_to_lattice`) lie within `reach_pitches`; jitter,
    which would drop half of a square's diagonals (1.41 pitches away), plays no part. Spots that fit no lattice are
    taken as they lie. The graph does not depend on the unit of the centres, so it works for sections of unknown scale.

    Parameters
    ----------
    centres : numpy.ndarray, shape (spots, 2)
        x, y in micrometres, or in any one unit.
    reach_pitches : float

    Returns
    -------
    scipy.sparse.csr_matrix, shape (spots, spots), float64
        A spot without neighbours has an empty row.
    """
    locations, spots = snap_to_lattice(centres).locations, len(centres)
    if spots < 2:
        return sparse.csr_matrix((spots, spots))
    near = cKDTree(locations).query_pairs(reach_pitches, output_type="ndarray")
    rows, columns = np.concatenate([near, near[:, ::-1]]).T
    ones = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(spots, spots))
    neighbours = np.asarray(ones.sum(axis=1)).ravel()
    return sparse.csr_matrix(sparse.diags_array(1 / np.maximum(neighbours, 1)) @ ones)


_VALUES_AT_A_TIME = 4_000_000  # bounds the memory of a section with many spots


def morans_i(expression: np.ndarray | sparse.spmatrix, graph: sparse.csr_matrix) -> np.ndarray:
    """Moran's I of each gene.

    ``n / sum_ij w_ij * sum_ij w_ij z_i z_j / sum_i z_i^2``, with z a spot's distance from the gene's mean and w the
    weights of the graph (Moran, "Notes on continuous stochastic phenomena", Biometrika 1950; for these weights Cliff
    and Ord, "Spatial processes", 1981). About 0, exactly -1 / (n - 1) on average, where locations say nothing. With
    row-standardised weights the same as `scanpy.metrics.morans_i` of that graph.

    Parameters
    ----------
    expression : array or sparse matrix, shape (spots, genes)
    graph : scipy.sparse.csr_matrix, shape (spots, spots)
        See `spot_graph`.

    Returns
    -------
    numpy.ndarray, shape (genes,), float64
        NaN for a constant gene, a value that is not finite, or a graph without edges.

    Raises
    ------
    ShapeMismatch
    """
    spots, genes = expression.shape
    if graph.shape != (spots, spots):
        raise ShapeMismatch("The graph", want=(spots, spots), got=graph.shape)
    result = np.full(genes, np.nan)
    weight = graph.sum()
    if weight == 0:
        return result
    expression = expression.tocsc() if sparse.issparse(expression) else expression
    step = max(1, _VALUES_AT_A_TIME // spots)
    for start in range(0, genes, step):
        block = expression[:, start : start + step]
        values = (block.toarray() if sparse.issparse(block) else np.asarray(block)).astype(np.float64)
        defined = varies(values)
        with np.errstate(invalid="ignore", divide="ignore"):
            values -= values.mean(axis=0)
            alike = np.einsum("ng,ng->g", values, graph @ values)
            found = spots / weight * alike / np.einsum("ng,ng->g", values, values)
        result[start : start + step] = np.where(defined, found, np.nan)
    return result
