"""Inverted file (IVF): the bank's vectors in lists by nearest centroid; a query scans only the nearest lists.

Centroids are kept as sums and counts, so that a section's vectors can be subtracted again: what remains are the
centroids of the others' vectors alone (but for rounding in the 16th digit), and nothing of those that were erased.
Plain lists hold the vectors themselves. Compressed lists hold one byte per number, on one fixed scale for every bank,
so that nothing of a section enters the codes of another; the best candidates by code are then ranked again by exact
cosine with the memory-mapped vectors. FAISS does the work (docs/concepts/search.md says why).
The file is one thing: the lists, and the search in them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

import numpy as np

from cmrcnet.errors import MissingExtra
from cmrcnet.search.exact import Neighbours, ranked, require_query, unit_rows
from cmrcnet.search.stacked_arrays import StackedRows

ROWS_AT_ONCE = 65_536
SAMPLED_PER_LIST = 32
"""Vectors per list that k-means is fitted on."""
MAX_LISTS = 4096
CODE_SPAN = 8.0
"""Codes cover values of a unit vector up to this many times their root mean square, 1/sqrt(dim); others are clipped."""

CANDIDATES, MORE_CANDIDATES = 1.2, 16
"""Compressed lists: this many times k, or this many more than k, are ranked again by exact cosine."""

QUERIES_AT_ONCE = 2048
_VALUES_AT_ONCE = 2**22


def load_faiss() -> ModuleType:
    """Import FAISS.

    Raises
    ------
    MissingExtra
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingExtra("faiss", "An approximate search index", "'cmrcnet[ann]'") from error
    return faiss


@dataclass(frozen=True)
class SearchParameters:
    """Number of lists to scan (nprobe) for some k, chosen so that the requested recall is reached.

    Parameters
    ----------
    steps : tuple of (k, nprobe)
        As measured, rising in k.
    """

    steps: tuple[tuple[int, int], ...]

    def nprobe(self, k: int) -> int:
        """Return nprobe of the first step that reaches k; beyond the last, in proportion to k.

        Parameters
        ----------
        k : int
            Neighbours per query.
        """
        for reach, value in self.steps:
            if k <= reach:
                return value
        reach, value = self.steps[-1]
        return math.ceil(value * k / reach)


def list_count(spots: int) -> int:
    """Number of lists for a bank: twice the square root of its spots, at most one for every eight.

    Parameters
    ----------
    spots : int
        Size of the bank.
    """
    return max(1, min(MAX_LISTS, round(2 * math.sqrt(spots)), spots // 8))


@dataclass(frozen=True, eq=False)
class IVFLists:
    """Sums and counts of the vectors in each list.

    Parameters
    ----------
    sums : numpy.ndarray, shape (lists, dim), float64
        Of unit vectors.
    counts : numpy.ndarray, shape (lists,), int64
    """

    sums: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    @cached_property
    def centroids(self) -> np.ndarray:
        """Direction of each list's mean, (lists, dim) float32; zeros for an empty list."""
        length = np.linalg.norm(self.sums, axis=1, keepdims=True)
        held = (self.counts > 0)[:, None] & (length > 0)
        return np.divide(self.sums, length, out=np.zeros_like(self.sums), where=held).astype(np.float32)

    @classmethod
    def fit(
        cls, vectors: np.ndarray | StackedRows, lists: int, seed: int, leave_out: np.ndarray | None = None
    ) -> tuple[IVFLists, np.ndarray]:
        """Fit spherical k-means on a sample, then assign every vector to its nearest centroid.

        Parameters
        ----------
        vectors : array or StackedRows, shape (spots, dim)
        lists : int
            Number of lists.
        seed : int
            Of the sample and of k-means.
        leave_out : array of int, optional
            Rows that k-means is not fitted on; they are assigned like all others.

        Returns
        -------
        IVFLists
        list_of_spot : numpy.ndarray, shape (spots,), int32
        """
        faiss = load_faiss()
        rng = np.random.default_rng(seed)
        known = np.delete(np.arange(len(vectors)), [] if leave_out is None else leave_out)
        known = known if len(known) >= lists else np.arange(len(vectors))
        some = np.sort(rng.choice(known, min(len(known), SAMPLED_PER_LIST * lists), replace=False))
        means = faiss.Kmeans(
            vectors.shape[1], lists, niter=8, spherical=True, seed=seed + 1,
            min_points_per_centroid=1, max_points_per_centroid=SAMPLED_PER_LIST,
        )  # fmt: skip
        means.train(unit_rows(vectors[some], "vectors"))
        start = cls(means.centroids.astype(np.float64), np.ones(lists, np.int64))
        list_of_spot = start.assign(vectors)
        empty = cls(np.zeros_like(start.sums), np.zeros_like(start.counts))
        return empty.plus(vectors, list_of_spot), list_of_spot

    def assign(self, vectors: np.ndarray | StackedRows) -> np.ndarray:
        """Find the nearest list of each vector: (rows,) int32.

        Parameters
        ----------
        vectors : array or StackedRows, shape (rows, dim)
        """
        quantizer = self.quantizer()
        found = [quantizer.search(unit, 1)[1].ravel() for _, unit in _unit_blocks(vectors)]
        return np.concatenate(found).astype(np.int32) if found else np.zeros(0, np.int32)

    def plus(self, vectors: np.ndarray | StackedRows, list_of_spot: np.ndarray, sign: int = 1) -> IVFLists:
        """Add vectors to the sums and counts; with sign -1, subtract them.

        Parameters
        ----------
        vectors : array or StackedRows, shape (rows, dim)
        list_of_spot : array of int, shape (rows,)
        sign : {1, -1}
        """
        sums, counts = self.sums.copy(), self.counts.copy()
        for start, unit in _unit_blocks(vectors):
            number = list_of_spot[start : start + len(unit)]
            order = np.argsort(number, kind="stable")
            held, first = np.unique(number[order], return_index=True)
            sums[held] += sign * np.add.reduceat(unit[order].astype(np.float64), first, axis=0)
        counts += sign * np.bincount(list_of_spot, minlength=len(counts))
        sums[counts == 0] = 0
        return IVFLists(sums, counts)

    def quantizer(self):
        """Make FAISS's exact search among the centroids."""
        quantizer = load_faiss().IndexFlatIP(self.centroids.shape[1])
        quantizer.add(np.ascontiguousarray(self.centroids))
        return quantizer


def _unit_blocks(
    vectors: np.ndarray | StackedRows, lengths: np.ndarray | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """First row and unit vectors of one block after another; `lengths` receives the original lengths, 1 for zeros."""
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        rows = np.asarray(vectors[start : start + ROWS_AT_ONCE], np.float32)
        if lengths is not None:
            each = np.sqrt(np.einsum("ij,ij->i", rows, rows))
            lengths[start : start + len(rows)] = np.where(each > 0, each, 1)
        yield start, unit_rows(rows, "vectors")


class IVFSearch:
    """Approximate search in an inverted file.

    Parameters
    ----------
    vectors : array or StackedRows, shape (bank, dim), float32
        May be memory-mapped.
    list_of_spot : array of int32, shape (bank,)
    compressed : bool
        Keep one byte per number in memory instead of four.

    Raises
    ------
    MissingExtra
    BadOption
        A vector is not finite.
    """

    def __init__(
        self,
        vectors: np.ndarray | StackedRows,
        lists: IVFLists,
        list_of_spot: np.ndarray,
        parameters: SearchParameters,
        *,
        compressed: bool,
    ) -> None:
        self.vectors, self.lists, self.list_of_spot = vectors, lists, list_of_spot
        self.parameters, self.compressed = parameters, compressed
        self._faiss = load_faiss()
        self._build_index()

    def __len__(self) -> int:
        return len(self.vectors)

    def nearest(self, queries: np.ndarray, k: int) -> Neighbours:
        """Find the k nearest bank spots of each query in the lists that are scanned.

        Where these hold fewer than k spots, more lists are scanned.

        Parameters
        ----------
        queries : array, shape (queries, dim), float32
        k : int
            Neighbours per query, at most the bank's length.

        Returns
        -------
        Neighbours
            With exact cosines, most similar first; among equals the lower row of the bank first.

        Raises
        ------
        ShapeMismatch, BadOption
        """
        queries = unit_rows(require_query(queries, k, self.vectors.shape), "queries")
        found = []
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            some = queries[start : start + QUERIES_AT_ONCE]
            more = max(int(k * CANDIDATES), k + MORE_CANDIDATES)
            wanted = min(len(self), more) if self.compressed else k
            similarity, ids = self._scan(some, wanted, self.parameters.nprobe(k), at_least=k)
            if self.compressed:
                known = ids >= 0
                exact = self._exact_cosines(some, np.where(known, ids, 0))
                similarity = np.where(known, exact, -np.inf).astype(np.float32)
            found.append(ranked(ids, similarity, k))
        if not found:
            return Neighbours(np.empty((0, k), np.int64), np.empty((0, k), np.float32))
        return Neighbours(np.concatenate([f.ids for f in found]), np.concatenate([f.similarity for f in found]))

    def move_to(self, lists: IVFLists) -> None:
        """Replace the centroids; every spot stays in its list.

        Parameters
        ----------
        lists : IVFLists
            As many as before.
        """
        self.lists = lists
        self._quantizer.reset()
        self._quantizer.add(np.ascontiguousarray(lists.centroids))

    def _scan(self, queries: np.ndarray, wanted: int, nprobe: int, at_least: int) -> tuple[np.ndarray, np.ndarray]:
        """The best `wanted` by the lists, -1 where they hold fewer; at least `at_least` of them are there."""
        nprobe = min(nprobe, len(self.lists))
        options = self._faiss.SearchParametersIVF(nprobe=nprobe)
        similarity, ids = self._index.search(queries, wanted, params=options)
        short = np.flatnonzero(ids[:, at_least - 1] < 0)
        if len(short) and nprobe < len(self.lists):
            similarity[short], ids[short] = self._scan(queries[short], wanted, 2 * nprobe, at_least)
        return similarity, ids

    def _exact_cosines(self, queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Cosine of every unit query with each of its candidates, whose vectors alone are read: float32."""
        found = np.empty(candidates.shape, np.float32)
        step = max(1, _VALUES_AT_ONCE // max(1, candidates.shape[1] * queries.shape[1]))
        for start in range(0, len(queries), step):
            some = candidates[start : start + step]
            near = np.asarray(self.vectors[some.ravel()], np.float32).reshape(*some.shape, -1)
            found[start : start + step] = np.matmul(near, queries[start : start + step, :, None])[:, :, 0]
        return found / self._lengths[candidates]

    def _build_index(self) -> None:
        """Fill FAISS's index, every spot into the list that it is assigned to."""
        faiss, dim = self._faiss, self.vectors.shape[1]
        self._quantizer = self.lists.quantizer()  # FAISS keeps a bare pointer to it
        if self.compressed:
            self._index = faiss.IndexIVFScalarQuantizer(
                self._quantizer, dim, len(self.lists), faiss.ScalarQuantizer.QT_8bit_uniform,
                faiss.METRIC_INNER_PRODUCT, False,
            )  # fmt: skip
            span = min(1.0, CODE_SPAN / np.sqrt(dim))
            faiss.copy_array_to_vector(np.array([-span, 2 * span], np.float32), self._index.sq.trained)
        else:
            self._index = faiss.IndexIVFFlat(self._quantizer, dim, len(self.lists), faiss.METRIC_INNER_PRODUCT)
        self._index.is_trained = True
        self._lengths = np.ones(len(self.vectors), np.float32)
        for start, unit in _unit_blocks(self.vectors, self._lengths):
            ids = np.arange(start, start + len(unit), dtype=np.int64)
            number = np.ascontiguousarray(self.list_of_spot[start : start + len(unit)], np.int64)
            self._index.add_core(len(unit), faiss.swig_ptr(unit), faiss.swig_ptr(ids), faiss.swig_ptr(number))
