"""Cells of imaging platforms that write text tables (CosMx, MERSCOPE): joined with their places, and summed in bins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadInput, SectionError
from cmrcnet.readers.affine import Affine
from cmrcnet.readers.square_bins import FURTHEST, turn_of
from cmrcnet.slides.section import repeated

CELL_UM = 10.0
"""Diameter of a cell where the tables state no area."""
MOST_UNLISTED = 0.02
"""Largest share of the counted cells that may be absent from the table of cells."""


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
    place = np.floor(centre_um @ turn.T / bin_um)
    if np.abs(place).max(initial=0) >= FURTHEST:
        raise SectionError(f"A cell lies {np.abs(centre_um).max():.3g} um from the origin; check the table of cells.")
    places, bins = np.unique(place.astype(np.int64), axis=0, return_inverse=True)
    shape = (len(places), len(place))
    members = sparse.csr_matrix((np.ones(len(place)), (bins.ravel(), np.arange(len(place)))), shape=shape)
    return places, (places + 0.5) * bin_um @ turn, sparse.csr_matrix(members @ counts)
