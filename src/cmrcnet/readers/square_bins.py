"""Cells and molecules of imaging platforms: cells joined with their positions; both summed in square bins.

Molecules are added batch by batch, in memory that grows with the result only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadInput, SectionError
from cmrcnet.readers.affine import Affine
from cmrcnet.slides.section import repeated

FURTHEST = 1 << 19
"""Bins from the origin on each axis, of which the keys below leave room for twice as many."""
MOST_GENES = 1 << 20
MERGE_KEYS = 4 << 20
"""Counted (bin, gene) pairs that wait before they are summed."""
TISSUE_UM = 20.0
"""Distance from the centre of a bin to the nearest cell, beyond which (and beyond the bin) there is no tissue."""
CELL_UM = 10.0
"""Diameter of a cell where the tables state no area."""
MOST_UNLISTED = 0.02
"""Largest share of the counted cells that may be absent from the table of cells."""


class SquareBins:
    """Counts of genes in the squares of a grid.

    Examples
    --------
    >>> bins = SquareBins()
    >>> bins.add(np.array([[0.5, 0], [0, 0.1], [3, 1]]), np.array([1, 1, 0]), np.array([2, 5, 1]))
    >>> places, counts = bins.result(genes=2)
    >>> places.tolist(), counts.toarray().tolist()
    ([[0, 0], [3, 1]], [[0, 7], [1, 0]])
    """

    def __init__(self) -> None:
        self._keys = [np.empty(0, np.int64)]
        self._sums: list[np.ndarray] = []
        self._waiting = 0

    def add(self, xy: np.ndarray, genes: np.ndarray, counts: np.ndarray) -> None:
        """Add molecules.

        Parameters
        ----------
        xy : numpy.ndarray, shape (n, 2)
            In bins.
        genes : numpy.ndarray, shape (n,), int64
            Number of the gene, 0 to `MOST_GENES`.
        counts : numpy.ndarray, shape (n,)
            All calls have one dtype, which must hold the sums.

        Raises
        ------
        SectionError
            There are too many genes, or a molecule lies too far from the origin.
        """
        if genes.max(initial=0) >= MOST_GENES:
            raise SectionError(f"The molecules name more than {MOST_GENES:,} genes; check the column of genes.")
        x, y = squares_of(xy).T + FURTHEST
        if not self._sums:
            self._sums.append(np.empty(0, counts.dtype))
        self._keys.append((x << 40) | (y << 20) | genes)
        self._sums.append(counts)
        self._waiting += len(counts)
        if self._waiting > max(MERGE_KEYS, len(self._keys[0])):
            self._merge()

    def result(self, genes: int) -> tuple[np.ndarray, sparse.csr_matrix]:
        """Places (bins, 2) of the bins that hold a molecule, int64, and their counts (bins, genes)."""
        if self._sums:
            self._merge()
        keys = self._keys[0]
        sums = self._sums[0] if self._sums else np.empty(0, np.int32)
        starts = np.flatnonzero(np.diff(keys >> 20, prepend=-1))  # the keys rise, bin by bin and gene by gene
        bins = keys[starts] >> 20
        columns = (keys & (MOST_GENES - 1)).astype(np.int32)
        counts = sparse.csr_matrix((sums, columns, np.append(starts, len(keys))), shape=(len(bins), genes))
        return np.column_stack([bins >> 20, bins & ((1 << 20) - 1)]) - FURTHEST, counts

    def _merge(self) -> None:
        """Keep each key once, rising, with the sum of its counts."""
        joined, numbers = np.concatenate(self._keys), np.concatenate(self._sums)
        self._keys.clear()
        self._sums.clear()
        order = np.argsort(joined)
        joined, numbers = joined[order], numbers[order]
        first = np.flatnonzero(np.diff(joined, prepend=-1))
        self._keys.append(joined[first])
        self._sums.append(np.add.reduceat(numbers, first) if len(first) else numbers)
        self._waiting = 0


def squares_of(xy: np.ndarray) -> np.ndarray:
    """Squares (n, 2), int64, of coordinates in bins; `SectionError` where one lies `FURTHEST` from the origin."""
    squares = np.floor(xy)
    if np.abs(squares).max(initial=0) >= FURTHEST:
        raise SectionError(
            f"A position lies {np.abs(xy).max():.3g} bins from the origin; check the table of positions."
        )
    return squares.astype(np.int64)


def turn_of(affine: Affine) -> np.ndarray:
    """Rotation (2, 2) by which x, y of the assay run along the edges of the image of an affine."""
    angle = np.arctan2(affine.d, affine.a)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def bin_names(places: np.ndarray, bin_um: float) -> list[str]:
    """Names of bins as Space Ranger writes them, ``s_056um_00003_00012``, counted from the first row and column."""
    rows, columns = (places[:, ::-1] - places[:, ::-1].min(axis=0, initial=FURTHEST)).T
    return [f"s_{bin_um:03g}um_{row:05d}_{column:05d}" for row, column in zip(rows, columns, strict=True)]


def bins_near_cells(
    places: np.ndarray, bin_um: float, turn: np.ndarray, cell_um: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Bins that have a cell in them or within `TISSUE_UM` of their centre: elsewhere there is no tissue.

    Parameters
    ----------
    places : numpy.ndarray, shape (bins, 2), int64
        x and y in bins, turned.
    bin_um : float
        Side of a bin.
    turn : numpy.ndarray, shape (2, 2)
        Of `turn_of`.
    cell_um : numpy.ndarray, shape (cells, 2)
        Centres of the cells.

    Returns
    -------
    kept : numpy.ndarray, shape (bins near cells,), int64
        Their rows in `places`.
    centre_um : numpy.ndarray, shape (bins near cells, 2), float64
        Their centres, turned back.
    notes : list of str
        How many were dropped.
    """
    from scipy.spatial import KDTree

    centre_um = (places + 0.5) * bin_um @ turn
    near = np.asarray(KDTree(cell_um).query(centre_um)[0]) <= max(TISSUE_UM, bin_um * np.sqrt(0.5))
    dropped = f"{int((~near).sum())} of {len(near)} bins lie beside the cells (no tissue): dropped."
    return np.flatnonzero(near), centre_um[near], [] if near.all() else [dropped]


def listed_cells(
    counted: Sequence[str], listed: Sequence[str], path: Path, what: str, table: str = "the table of cells"
) -> tuple[np.ndarray, list[str]]:
    """Row of each counted cell in the table of cells, -1 for one that is not there, and a note on how many these are.

    Parameters
    ----------
    counted, listed : sequence of str
        Names in the counts and in the table of cells.
    path, what : pathlib.Path, str
        Of the counts, for the errors.
    table : str
        What the table of cells is called, for the errors.

    Raises
    ------
    SectionError, BadInput
    """
    for names, where in ((counted, path.name), (listed, table)):
        if twice := repeated(names):
            raise SectionError.repeated_barcodes(twice, where)
    line_of = dict(zip(listed, range(len(listed)), strict=True))
    rows = np.array([line_of.get(name, -1) for name in counted], dtype=np.int64)
    unlisted = int((rows < 0).sum())
    if unlisted > MOST_UNLISTED * len(rows):
        why = f"{unlisted} of its {len(rows)} cells are not in {table}; check that they are of one run"
        raise BadInput(path, what, why)
    return rows, [f"{unlisted} of {len(rows)} cells have no position: dropped."] if unlisted else []


def summed_cells(
    centre_um: np.ndarray, counts: sparse.csr_matrix, affine: Affine, bin_um: float
) -> tuple[np.ndarray, np.ndarray, sparse.csr_matrix]:
    """Add up the cells whose centre lies in one square, for squares parallel to the edges of the H&E.

    Parameters
    ----------
    centre_um : numpy.ndarray, shape (cells, 2)
    counts : scipy.sparse.csr_matrix, shape (cells, genes)
    affine : Affine
        From the assay to the H&E; its rotation is used.
    bin_um : float
        Side of a square.

    Returns
    -------
    places : numpy.ndarray, shape (bins, 2), int64
        x and y of each square that holds a cell, in squares.
    centre_um : numpy.ndarray, shape (bins, 2), float64
        Centres of the squares, turned back.
    counts : scipy.sparse.csr_matrix, shape (bins, genes)

    Raises
    ------
    SectionError
        A cell lies too far from the origin.
    """
    turn = turn_of(affine)
    places, bins = np.unique(squares_of(centre_um @ turn.T / bin_um), axis=0, return_inverse=True)
    cells = np.arange(len(centre_um))
    members = sparse.csr_matrix((np.ones(len(cells)), (bins.ravel(), cells)), shape=(len(places), len(cells)))
    return places, (places + 0.5) * bin_um @ turn, sparse.csr_matrix(members @ counts)
