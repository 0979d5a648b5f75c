"""Arrays of several sections read as one, without copying: dense rows, and sparse expression gene by gene.

Values are taken from every section's own memory-mapped file. So a section can come and go without another's file being
changed, and 50 genes cost the bytes of 50 genes. Mapped pages are released from time to time, so that reading a large
bank does not fill the memory.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import sparse

from cmrcnet.errors import ShapeMismatch

_LONG_COLUMN = 1024
"""Values per column above which columns are filled one by one; shorter ones many at once."""

HELD_BYTES = 2**29
"""Bytes of mapped files that are read before their pages are released."""

_FAULT = 2**16
"""Bytes that Linux maps around the first one touched, where they are in its cache."""

Check = Callable[[int, int], None]
"""Raises an error for damage in a part's columns `first` to `last` (exclusive), before they are used."""


class StackedRows:
    """Several (rows, dim) arrays as one, without copying: rows of the first, then of the next.

    Parameters
    ----------
    parts : sequence of arrays, shape (rows, dim)
        At least one, of one dim and dtype; may be memory-mapped.

    Raises
    ------
    ShapeMismatch
    """

    ndim = 2

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = tuple(parts)
        widths = {part.shape[1:] for part in self.parts}
        if len(widths) != 1 or self.parts[0].ndim != 2:
            raise ShapeMismatch("parts", want="(rows, dim), one dim for all", got=[part.shape for part in self.parts])
        self.ends = np.cumsum([0, *map(len, self.parts)])
        """Row at which each part starts, followed by the number of all rows."""
        self.shape, self.dtype = (int(self.ends[-1]), self.parts[0].shape[1]), self.parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        whole = np.concatenate(self.parts)
        return whole if dtype is None else whole.astype(dtype, copy=False)

    @property
    def T(self) -> np.ndarray:
        """Everything, transposed: for small banks."""
        return np.asarray(self).T

    def __getitem__(self, rows: slice | np.ndarray | int) -> np.ndarray:
        """Some rows as an array: a slice, row numbers of any shape, or one row."""
        if not isinstance(rows, slice):
            return self._take(np.asarray(rows))
        start, stop, step = rows.indices(len(self))
        if step != 1:
            return self._take(np.arange(start, stop, step))
        if stop <= start:
            return np.empty((0, self.shape[1]), self.dtype)
        first = int(np.searchsorted(self.ends, start, side="right")) - 1
        last = max(first + 1, int(np.searchsorted(self.ends, stop, side="left")))
        pieces = [
            part[max(start - end, 0) : max(stop - end, 0)]
            for part, end in zip(self.parts[first:last], self.ends[first:last], strict=True)
        ]
        return np.concatenate(pieces) if len(pieces) != 1 else pieces[0]

    def _take(self, rows: np.ndarray) -> np.ndarray:
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        flat = rows.ravel()
        if flat.size and not (flat.min() >= -len(self) and flat.max() < len(self)):
            raise IndexError(f"rows {flat.min()} to {flat.max()} of {len(self)}")
        flat = np.where(flat < 0, flat + len(self), flat)
        found = np.empty((len(flat), self.shape[1]), self.dtype)
        order = np.argsort(flat, kind="stable")
        borders = np.searchsorted(flat, self.ends, sorter=order)
        for part, end, first, last in zip(self.parts, self.ends, borders, borders[1:], strict=False):
            if last > first:
                found[order[first:last]] = part[flat[order[first:last]] - end]
        return found.reshape(*rows.shape, self.shape[1])


class StackedColumns:
    """Several (spots, own genes) tables as one (all spots, all genes).

    Parameters
    ----------
    parts : sequence of scipy.sparse.csc_matrix or array
        May be memory-mapped.
    own : sequence of (array of int, shape (genes,)) or None
        Of each part, its column of every gene; -1 where it has none (it counts as 0). None: the genes are its columns.
    checks : sequence of callable, optional
        Of each part, what to call before columns are read.

    Raises
    ------
    ShapeMismatch
    """

    def __init__(
        self,
        parts: Sequence[Any],
        own: Sequence[np.ndarray | None] | None = None,
        checks: Sequence[Check | None] | None = None,
    ) -> None:
        self.parts = tuple(parts)
        self._own = tuple(own) if own is not None else (None,) * len(self.parts)
        self._checks = tuple(checks) if checks is not None else (None,) * len(self.parts)
        widths = {part.shape[1] if o is None else len(o) for part, o in zip(self.parts, self._own, strict=True)}
        if len(widths) != 1:
            raise ShapeMismatch("parts", want="one number of genes for all", got=sorted(widths))
        self.ends = np.cumsum([0, *(part.shape[0] for part in self.parts)])
        self.shape, self.dtype = (int(self.ends[-1]), widths.pop()), np.dtype(np.float32)
        self._held = 0

    @classmethod
    def of(cls, expression: Any) -> StackedColumns:
        """Wrap any table that `average` accepts."""
        if isinstance(expression, cls):
            return expression
        if sparse.issparse(expression):
            return cls([expression if expression.format == "csc" else expression.tocsc()])
        return cls(getattr(expression, "parts", [expression]))

    @property
    def nnz(self) -> int:
        """Stored values."""
        return sum(part.nnz if sparse.issparse(part) else part.size for part in self.parts)

    def dense(self, columns: np.ndarray | None = None, rows: np.ndarray | None = None) -> np.ndarray:
        """Return some genes of some spots: (rows, columns) float32.

        Parameters
        ----------
        columns : array of int, optional
            In this order; all when left out.
        rows : array of int, optional
            Spots, in any order, also more than once; all when left out.
        """
        columns = np.arange(self.shape[1]) if columns is None else np.asarray(columns)
        if rows is None:
            return self.fill(columns, np.zeros((self.shape[0], len(columns)), np.float32))
        wanted, place = np.unique(np.asarray(rows), return_inverse=True)
        slots = np.full(self.shape[0], -1, np.int32)
        slots[wanted] = np.arange(len(wanted))
        return self.fill(columns, np.zeros((len(wanted), len(columns)), np.float32), slots)[place.reshape(-1)]

    def toarray(self) -> np.ndarray:
        """Everything, (spots, genes) float32: for small tables."""
        return self.dense()

    def fill(self, columns: np.ndarray, into: np.ndarray, slots: np.ndarray | None = None) -> np.ndarray:
        """Fill some columns into an array of zeros.

        Parameters
        ----------
        into : array, shape (rows, columns), float32
            Zeros; values other than 0 are written.
        slots : array of int32, shape (spots,), optional
            Row of `into` that each spot takes, -1 for none; without it every spot its own.

        Returns
        -------
        numpy.ndarray
            `into`.
        """
        for part, own, check, start, stop in zip(
            self.parts, self._own, self._checks, self.ends, self.ends[1:], strict=False
        ):
            mine = columns if own is None else own[columns]
            locations = np.flatnonzero(mine >= 0)
            slot = None if slots is None else slots[start:stop]
            if len(locations) == 0 or (slot is not None and not (slot >= 0).any()):
                continue
            target = into[start:stop] if slot is None else into
            if sparse.issparse(part):
                self._held += _fill_sparse(part, mine[locations], locations, check, target, slot)
            elif slot is None:
                target[:, locations] = part[:, mine[locations]]
            else:
                used = np.flatnonzero(slot >= 0)
                target[slot[used][:, None], locations] = part[used[:, None], mine[locations]]
        if self._held > HELD_BYTES:
            self.release()
        return into

    def release(self) -> None:
        """Release the pages of mapped files; the system keeps them cached while memory is free."""
        self._held = 0
        for part in self.parts:
            for array in (part.data, part.indices) if sparse.issparse(part) else ():
                if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                    array.base.madvise(mmap.MADV_DONTNEED)


def _fill_sparse(
    part: Any,
    mine: np.ndarray,
    locations: np.ndarray,
    check: Check | None,
    into: np.ndarray,
    slot: np.ndarray | None,
) -> int:
    """Fill the columns `mine` of one part at `locations`, adjacent columns in one read; returns the bytes touched."""
    touched = 0
    borders = np.concatenate([[0], np.flatnonzero(np.diff(mine) != 1) + 1, [len(mine)]])
    if part.nnz > _LONG_COLUMN * part.shape[1]:
        borders = np.arange(len(mine) + 1)
    # Slices of the three arrays, not scipy's own indexing: that would copy all indices of a bank beyond 2^31 entries.
    for first, last in pairwise(borders):
        low, high = int(mine[first]), int(mine[last - 1]) + 1
        if check is not None:
            check(low, high)
        ends = part.indptr[low : high + 1]
        entries = slice(int(ends[0]), int(ends[-1]))
        rows, values = part.indices[entries], part.data[entries]
        touched += max(2 * _FAULT, rows.nbytes + values.nbytes)
        place = locations[first] if last == first + 1 else np.repeat(locations[first:last], np.diff(ends))
        if slot is not None:
            rows = slot[rows]
            keep = rows >= 0
            rows, values = rows[keep], values[keep]
            place = place if np.ndim(place) == 0 else place[keep]
        into[rows, place] = values
    return touched


def csc_of(data: np.ndarray, rows: np.ndarray, ends: np.ndarray, shape: tuple[int, int]) -> sparse.csc_matrix:
    """Make a CSC matrix of these arrays without copying, memory-mapped ones included.

    scipy's own constructor would copy the rows of a matrix with more than 2^31 values.

    Parameters
    ----------
    rows : numpy.ndarray, int32
        Row of each value, rising within a column.
    ends : numpy.ndarray, shape (columns + 1,)
        Where each column starts and ends in `data`.
    shape : tuple of int
    """
    matrix = sparse.csc_matrix(shape, dtype=np.float32)
    small = ends[-1] <= np.iinfo(np.int32).max
    matrix.data, matrix.indices, matrix.indptr = data, rows, ends.astype(np.int32 if small else np.int64)
    matrix.has_sorted_indices = matrix.has_canonical_format = True
    return matrix
