"""Inverted file: only the cells nearest to a query are looked into.

Plain, its lists hold the vectors themselves. Compressed, they hold one byte a number: a fixed scale for every bank, so
that nothing of any section goes into the code of another; the best candidates by these codes are then compared again,
exactly, on the memory-mapped vectors.
"""

from __future__ import annotations

import numpy as np

from cmrcnet.search.cells import Cells, quantizer_of, unit_blocks
from cmrcnet.search.effort import Effort
from cmrcnet.search.faiss_library import load_faiss
from cmrcnet.search.neighbours import Neighbours
from cmrcnet.search.rank import exact_cosines, ranked
from cmrcnet.search.stacked_rows import StackedRows
from cmrcnet.search.unit import require_query, unit_rows

CODE_SPAN = 8.0
"""Numbers of a unit vector up to this many times their root mean square, 1/sqrt(dim), have a code; others the last."""

CANDIDATES, MORE_CANDIDATES = 1.2, 16
"""Times k, or this many more than k: so many are compared again, exactly, where lists are compressed."""

QUERIES_AT_ONCE = 2048


class InvertedFile:
    """Approximate search by cells.

    Parameters
    ----------
    vectors : array or StackedRows, shape (bank, dim), float32
        May be memory-mapped.
    cells : Cells
    cell_of_spot : array of int32, shape (bank,)
    effort : Effort
        Cells looked into.
    compressed : bool

    Raises
    ------
    MissingExtra
    BadOption
        A vector is not finite.
    """

    def __init__(
        self,
        vectors: np.ndarray | StackedRows,
        cells: Cells,
        cell_of_spot: np.ndarray,
        effort: Effort,
        *,
        compressed: bool,
    ) -> None:
        self.vectors, self.cells, self.cell_of_spot = vectors, cells, cell_of_spot
        self.effort, self.compressed = effort, compressed
        self._faiss = load_faiss()
        self._lists = self._filled_lists()

    def __len__(self) -> int:
        return len(self.vectors)

    def nearest(self, queries: np.ndarray, k: int) -> Neighbours:
        """Find the k nearest bank spots of each query among those of the cells that are looked into.

        Where these hold fewer than k spots, more cells are looked into.

        Parameters
        ----------
        queries : array, shape (queries, dim), float32
        k : int

        Returns
        -------
        Neighbours
            With exact cosines, most similar first; among equals the lower row of the bank first.

        Raises
        ------
        ShapeMismatch, BadOption
        """
        queries = unit_rows(require_query(queries, k, self.vectors.shape), "queries")
        found = [
            self._nearest(queries[start : start + QUERIES_AT_ONCE], k)
            for start in range(0, len(queries), QUERIES_AT_ONCE)
        ]
        if not found:
            return Neighbours(np.empty((0, k), np.int64), np.empty((0, k), np.float32))
        return Neighbours(np.concatenate([f.ids for f in found]), np.concatenate([f.similarity for f in found]))

    def move_to(self, cells: Cells) -> None:
        """Take these centres; every spot stays in its cell.

        Parameters
        ----------
        cells : Cells
            As many as there are.
        """
        self.cells = cells
        self._quantizer.reset()
        self._quantizer.add(np.ascontiguousarray(cells.centres))

    def _nearest(self, queries: np.ndarray, k: int) -> Neighbours:
        more = max(int(k * CANDIDATES), k + MORE_CANDIDATES)
        wanted = min(len(self), more) if self.compressed else k
        similarity, ids = self._look(queries, wanted, self.effort.at(k), at_least=k)
        if self.compressed:
            known = ids >= 0
            exact = exact_cosines(queries, np.where(known, ids, 0), self.vectors, self._lengths)
            similarity = np.where(known, exact, -np.inf).astype(np.float32)
        return ranked(ids, similarity, k)

    def _look(self, queries: np.ndarray, wanted: int, probes: int, at_least: int) -> tuple[np.ndarray, np.ndarray]:
        """The best `wanted` by the lists, -1 where the cells hold fewer; at least `at_least` of them are there."""
        probes = min(probes, len(self.cells))
        options = self._faiss.SearchParametersIVF(nprobe=probes)
        similarity, ids = self._lists.search(queries, wanted, params=options)
        short = np.flatnonzero(ids[:, at_least - 1] < 0)
        if len(short) and probes < len(self.cells):
            similarity[short], ids[short] = self._look(queries[short], wanted, 2 * probes, at_least)
        return similarity, ids

    def _filled_lists(self):
        faiss, dim = self._faiss, self.vectors.shape[1]
        self._quantizer = quantizer_of(self.cells.centres)  # FAISS keeps a bare pointer to it
        if self.compressed:
            lists = faiss.IndexIVFScalarQuantizer(
                self._quantizer, dim, len(self.cells), faiss.ScalarQuantizer.QT_8bit_uniform,
                faiss.METRIC_INNER_PRODUCT, False,
            )  # fmt: skip
            span = min(1.0, CODE_SPAN / np.sqrt(dim))
            faiss.copy_array_to_vector(np.float32([-span, 2 * span]), lists.sq.trained)
        else:
            lists = faiss.IndexIVFFlat(self._quantizer, dim, len(self.cells), faiss.METRIC_INNER_PRODUCT)
        lists.is_trained = True
        self._lengths = np.ones(len(self.vectors), np.float32)
        for start, unit in unit_blocks(self.vectors, self._lengths):
            ids = np.arange(start, start + len(unit), dtype=np.int64)
            cell = np.ascontiguousarray(self.cell_of_spot[start : start + len(unit)], np.int64)
            lists.add_core(len(unit), faiss.swig_ptr(unit), faiss.swig_ptr(ids), faiss.swig_ptr(cell))
        return lists
