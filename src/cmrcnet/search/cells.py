"""A division of the bank's vectors into cells, each named by the direction of the mean of its vectors.

Kept as sums and counts, so that a section's vectors can be taken out again: what is left is the division of the
others' vectors alone (but for rounding in the 16th digit), and nothing that could be traced to those taken out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cmrcnet.search.faiss_library import load_faiss
from cmrcnet.search.stacked_rows import StackedRows
from cmrcnet.search.unit import unit_rows

ROWS_AT_ONCE = 65_536
SAMPLED_A_CELL = 32
"""Vectors a cell that the division is learnt from."""
ROUNDS = 8
"""Of k-means."""
MOST_CELLS = 4096
WALK_FROM = 2048
"""Cells from which on a spot's cell is found by walking a graph of centres: in a thousand, one or two go next door."""


def cells_for(spots: int) -> int:
    """Cells that suit a bank: twice the square root of its spots.

    Parameters
    ----------
    spots : int
    """
    return max(1, min(MOST_CELLS, round(2 * math.sqrt(spots)), spots // 8))


@dataclass(frozen=True, eq=False)
class Cells:
    """Sums and counts of the vectors in each cell.

    Parameters
    ----------
    sums : numpy.ndarray, shape (cells, dim), float64
        Of unit vectors.
    counts : numpy.ndarray, shape (cells,), int64
    """

    sums: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    @cached_property
    def centres(self) -> np.ndarray:
        """Direction of each cell, (cells, dim) float32; zeros for an empty cell."""
        length = np.linalg.norm(self.sums, axis=1, keepdims=True)
        held = (self.counts > 0)[:, None] & (length > 0)
        return np.divide(self.sums, length, out=np.zeros_like(self.sums), where=held).astype(np.float32)

    @classmethod
    def learn(
        cls, vectors: np.ndarray | StackedRows, cells: int, seed: int, leave_out: np.ndarray | None = None
    ) -> tuple[Cells, np.ndarray]:
        """Divide: spherical k-means on a sample, then every vector goes to its nearest cell.

        Parameters
        ----------
        vectors : array or StackedRows, shape (spots, dim)
        cells : int
        seed : int
            Of the sample and of k-means.
        leave_out : array of int, optional
            Rows that have no part in where the cells lie before everyone's cell is found.

        Returns
        -------
        Cells
        cell_of_spot : numpy.ndarray, shape (spots,), int32
        """
        faiss = load_faiss()
        rng = np.random.default_rng(seed)
        known = np.delete(np.arange(len(vectors)), [] if leave_out is None else leave_out)
        known = known if len(known) >= cells else np.arange(len(vectors))
        some = np.sort(rng.choice(known, min(len(known), SAMPLED_A_CELL * cells), replace=False))
        means = faiss.Kmeans(
            vectors.shape[1], cells, niter=ROUNDS, spherical=True, seed=seed + 1,
            min_points_per_centroid=1, max_points_per_centroid=SAMPLED_A_CELL,
        )  # fmt: skip
        means.train(unit_rows(vectors[some], "vectors"))
        start = cls(means.centroids.astype(np.float64), np.ones(cells, np.int64))
        cell_of_spot = start.assign(vectors)
        empty = cls(np.zeros_like(start.sums), np.zeros_like(start.counts))
        return empty.plus(vectors, cell_of_spot), cell_of_spot

    def assign(self, vectors: np.ndarray | StackedRows) -> np.ndarray:
        """The nearest cell of each vector, (rows,) int32.

        Parameters
        ----------
        vectors : array or StackedRows, shape (rows, dim)
        """
        quantizer = quantizer_of(self.centres) if len(self) < WALK_FROM else _graph_of(self.centres)
        found = [quantizer.search(unit, 1)[1].ravel() for _, unit in unit_blocks(vectors)]
        return np.concatenate(found).astype(np.int32) if found else np.zeros(0, np.int32)

    def plus(self, vectors: np.ndarray | StackedRows, cell_of_spot: np.ndarray, sign: int = 1) -> Cells:
        """The cells with these vectors too; with sign -1, without them.

        Parameters
        ----------
        vectors : array or StackedRows, shape (rows, dim)
        cell_of_spot : array of int, shape (rows,)
        sign : {1, -1}
        """
        sums, counts = self.sums.copy(), self.counts.copy()
        for start, unit in unit_blocks(vectors):
            cell = cell_of_spot[start : start + len(unit)]
            order = np.argsort(cell, kind="stable")
            held, first = np.unique(cell[order], return_index=True)
            sums[held] += sign * np.add.reduceat(unit[order].astype(np.float64), first, axis=0)
        counts += sign * np.bincount(cell_of_spot, minlength=len(counts))
        sums[counts == 0] = 0
        return Cells(sums, counts)


def quantizer_of(centres: np.ndarray):
    """FAISS's exact search among the cells' centres.

    Parameters
    ----------
    centres : array, shape (cells, dim), float32
    """
    quantizer = load_faiss().IndexFlatIP(centres.shape[1])
    quantizer.add(np.ascontiguousarray(centres))
    return quantizer


def _graph_of(centres: np.ndarray):
    faiss = load_faiss()
    graph = faiss.IndexHNSWFlat(centres.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction, graph.hnsw.efSearch = 100, 32
    graph.add(np.ascontiguousarray(centres))
    return graph


def unit_blocks(
    vectors: np.ndarray | StackedRows, lengths: np.ndarray | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """First row and unit vectors of one block after another.

    Parameters
    ----------
    vectors : array or StackedRows, shape (rows, dim)
    lengths : array, shape (rows,), float32, optional
        Where the vectors' lengths are put; 1 for a vector of zeros.
    """
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        rows = np.asarray(vectors[start : start + ROWS_AT_ONCE], np.float32)
        if lengths is not None:
            each = np.sqrt(np.einsum("ij,ij->i", rows, rows))
            lengths[start : start + len(rows)] = np.where(each > 0, each, 1)
        yield start, unit_rows(rows, "vectors")
