"""Which spots are neighbours: a graph from their centres, whatever the unit."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from cmrcnet.genes.spot_lattice import snap_to_lattice

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
