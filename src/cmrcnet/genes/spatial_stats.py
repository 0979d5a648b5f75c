"""Statistics of genes over the spots of a section: Pearson correlation, Moran's I, and the spot lattice and graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order, connected_components
from scipy.spatial import KDTree

from cmrcnet.errors import ShapeMismatch

_GENES_AT_A_TIME = 1024
_VALUES_AT_A_TIME = 4_000_000  # bounds the memory of a section with many spots
_CONSTANT = 1e-6
"""A column whose range is below this share of its largest value is constant up to float32 rounding."""

_NEXT = 1.25
"""Reach of lattice neighbours in pitches: beyond jitter, short of a square's diagonal (1.41)."""
_LEAST_ORDER = 0.4
"""Order parameter of neighbour directions: 1 on a lattice, about 0 for scattered spots."""
_MOST_OFF = 0.3
"""Largest root mean square distance, in pitches, of spots from the fitted lattice."""
_TURN: dict[Literal["square", "hexagonal"], int] = {"square": 4, "hexagonal": 6}
_SHAPE = {"square": np.eye(2), "hexagonal": np.array([[1.0, 0.0], [0.5, np.sqrt(0.75)]])}

REACH_PITCHES = 1.5
"""Includes the 8 spots around a spot on a square lattice, and the 6 on a hexagonal one."""


def pearson_per_gene(truth: np.ndarray | sparse.csr_matrix, guess: np.ndarray | sparse.csr_matrix) -> np.ndarray:
    """Pearson correlation of each gene's truth and prediction (spots, genes) over spots: (genes,) float64.

    NaN where it is undefined: a constant truth or prediction, fewer than two spots, or a value that is not finite.

    Examples
    --------
    >>> truth = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    >>> pearson_per_gene(truth, np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]]))
    array([0.5, nan])
    """
    shape = cast(Any, truth).shape
    if len(shape) != 2 or shape != cast(Any, guess).shape:
        raise ShapeMismatch("guess", want=shape, got=cast(Any, guess).shape)
    all_measured, all_predicted = (
        each if isinstance(each, np.ndarray) else sparse.csc_matrix(each) for each in (truth, guess)
    )
    result = np.full(shape[1], np.nan)
    if shape[0] < 2:
        return result
    for start in range(0, shape[1], _GENES_AT_A_TIME):
        part = slice(start, start + _GENES_AT_A_TIME)
        measured, predicted = _dense(all_measured[:, part]), _dense(all_predicted[:, part])
        with np.errstate(invalid="ignore", divide="ignore"):
            defined = varies(measured) & varies(predicted)
            for block in (measured, predicted):
                block -= block.mean(axis=0)
                block /= np.sqrt(np.einsum("ng,ng->g", block, block))
            value = np.clip(np.einsum("ng,ng->g", measured, predicted), -1, 1)
        result[part] = np.where(defined, value, np.nan)
    return result


def mean_pearson(
    truth: np.ndarray, guess: np.ndarray, section_of: np.ndarray, undefined: Literal["skip", "zero"] = "skip"
) -> float:
    """Within-section Pearson correlation, mean over genes, then over sections: the validation score.

    `truth` and `guess` are (spots, genes), `section_of` (spots,). Genes with an undefined correlation are left out of
    the mean (`undefined="skip"`) or count as 0 ("zero"); NaN when no correlation is defined.

    Examples
    --------
    >>> truth = np.array([[0.0], [1.0], [2.0], [5.0], [6.0]])
    >>> guess = np.array([[1.0], [0.0], [2.0], [7.0], [8.0]])
    >>> round(mean_pearson(truth, guess, np.array(["A", "A", "A", "B", "B"])), 3)
    0.75
    """
    means = []
    for section in dict.fromkeys(section_of.tolist()):
        rows = section_of == section
        values = pearson_per_gene(truth[rows], guess[rows])
        if undefined == "zero":
            values = np.nan_to_num(values)
        if np.isfinite(values).any():
            means.append(float(np.nanmean(values)))
    return float(np.mean(means)) if means else float("nan")


def _dense(block: Any) -> np.ndarray:
    return (block.toarray() if sparse.issparse(block) else np.asarray(block)).astype(np.float64)


def varies(block: np.ndarray) -> np.ndarray:
    """Whether each column is finite and not constant: (columns,) bool."""
    low, high = block.min(axis=0), block.max(axis=0)
    return np.isfinite(low) & np.isfinite(high) & (high - low > _CONSTANT * np.maximum(np.abs(low), np.abs(high)))


@dataclass(frozen=True, eq=False)
class SpotLattice:
    """Spots on a "square" or "hexagonal" lattice; kind "none" when they fit none, or are fewer than four.

    `locations` (spots, 2) float64 are in pitches, without jitter and rotation; with kind "none" the centres divided by
    the pitch. `off` is the root mean square distance of the spots from them, in pitches; nan with kind "none".
    """

    kind: Literal["square", "hexagonal", "none"]
    locations: np.ndarray
    off: float


def pitch_of(centres: np.ndarray) -> float:
    """Median over spots of the distance to the nearest other spot; nan for fewer than two spots.

    `centres` (spots, 2) are in micrometres, or in any one unit, which is that of the result.

    Examples
    --------
    >>> pitch_of(np.array([[0.0, 0.0], [100.0, 0.0], [100.0, 100.0]]))
    100.0
    """
    if len(centres) < 2:
        return float("nan")
    distance, _ = KDTree(centres).query(centres, k=2)
    return float(np.median(distance[:, 1]))


def snap_to_lattice(centres: np.ndarray) -> SpotLattice:
    """Fit a square or hexagonal lattice to centres (spots, 2) and assign every spot to its nearest lattice location.

    The directions to each spot's nearest neighbours repeat every 90 degrees on a square lattice and every 60 on a
    hexagonal one: the larger of ``|mean exp(4 i angle)|`` and ``|mean exp(6 i angle)|`` gives the kind, its phase the
    rotation. Whole steps are then counted from spot to spot, and the lattice (origin and two vectors, so both pitches
    may differ) is fitted to them by least squares. The kind is "none" when two spots would share a location or the
    spots lie too far from the lattice.
    """
    pitch = pitch_of(centres)
    without = SpotLattice("none", centres / (pitch if pitch > 0 else 1.0), float("nan"))
    if len(centres) < 4 or not pitch > 0:
        return without
    pairs = KDTree(centres).query_pairs(_NEXT * pitch, output_type="ndarray")
    steps = centres[pairs[:, 1]] - centres[pairs[:, 0]]
    angles = np.arctan2(steps[:, 1], steps[:, 0])
    order: dict[Literal["square", "hexagonal"], complex] = {
        kind: np.exp(1j * turn * angles).mean() for kind, turn in _TURN.items()
    }
    kind = max(order, key=lambda name: abs(order[name]))
    if not abs(order[kind]) > _LEAST_ORDER:
        return without
    turned = np.angle(order[kind]) / _TURN[kind]
    length = np.hypot(*steps.T).mean()
    turn = np.array([[np.cos(turned), np.sin(turned)], [-np.sin(turned), np.cos(turned)]])
    vectors = _SHAPE[kind] @ turn * length  # rows: the two lattice vectors

    # Counting steps along chains of neighbours keeps a small error of the pitch from adding up.
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
    """Lattice coordinates of each spot relative to the first spot of its connected group; and the group."""
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


def spot_graph(centres: np.ndarray, reach_pitches: float = REACH_PITCHES) -> sparse.csr_matrix:
    """Row-standardised adjacency matrix (spots, spots) float64 of the spots; a spot without neighbours has an empty
    row.

    Two spots are neighbours when their lattice locations (`snap_to_lattice`) are within `reach_pitches`, so that jitter
    does not drop a square's diagonals (1.41 pitches). Without a lattice the centres (spots, 2) are used. The graph does
    not depend on the unit of the centres, so it works for sections of unknown scale.

    Examples
    --------
    >>> spot_graph(np.array([[0.0, 0.0], [100.0, 0.0], [200.0, 0.0]])).toarray()
    array([[0. , 1. , 0. ],
           [0.5, 0. , 0.5],
           [0. , 1. , 0. ]])
    """
    locations, spots = snap_to_lattice(centres).locations, len(centres)
    if spots < 2:
        return sparse.csr_matrix((spots, spots))
    near = KDTree(locations).query_pairs(reach_pitches, output_type="ndarray")
    rows, columns = np.concatenate([near, near[:, ::-1]]).T
    ones = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(spots, spots))
    neighbours = np.asarray(ones.sum(axis=1)).ravel()
    return sparse.csr_matrix(sparse.diags_array(1 / np.maximum(neighbours, 1)) @ ones)


def morans_i(expression: np.ndarray | sparse.csr_matrix | sparse.csc_matrix, graph: sparse.csr_matrix) -> np.ndarray:
    """Moran's I of each gene of log-normalised expression (spots, genes) on a `spot_graph`: (genes,) float64.

    ``n / sum_ij w_ij * sum_ij w_ij z_i z_j / sum_i z_i^2``, with z a spot's distance from the gene's mean and w the
    weights of the graph (Moran, "Notes on continuous stochastic phenomena", Biometrika 1950; for these weights Cliff
    and Ord, "Spatial processes", 1981). Its expectation without spatial pattern is -1 / (n - 1). With row-standardised
    weights it equals `scanpy.metrics.morans_i` of that graph. NaN for a constant gene, a value that is not finite, or a
    graph without edges.

    Examples
    --------
    >>> graph = spot_graph(np.array([[0.0, 0.0], [100.0, 0.0], [200.0, 0.0], [300.0, 0.0]]))
    >>> morans_i(np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), graph)
    array([ 0.5, -1. ])
    """
    spots, genes = cast(Any, expression).shape
    if graph.shape != (spots, spots):
        raise ShapeMismatch("The graph", want=(spots, spots), got=graph.shape)
    result = np.full(genes, np.nan)
    weight = graph.sum()
    if weight == 0:
        return result
    columns = expression if isinstance(expression, np.ndarray) else sparse.csc_matrix(expression)
    step = max(1, _VALUES_AT_A_TIME // spots)
    for start in range(0, genes, step):
        values = _dense(columns[:, start : start + step])
        defined = varies(values)
        with np.errstate(invalid="ignore", divide="ignore"):
            values -= values.mean(axis=0)
            alike = np.einsum("ng,ng->g", values, graph @ values)
            found = spots / weight * alike / np.einsum("ng,ng->g", values, values)
        result[start : start + step] = np.where(defined, found, np.nan)
    return result
