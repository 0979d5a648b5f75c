"""Arrays that lie in several files, read as one: rows of the first, then of the next."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cmrcnet.errors import ShapeMismatch


class StackedRows:
    """Several (rows, dim) arrays as one, without copying them together.

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
        """Row at which each part starts, and behind them the number of all rows."""
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
