"""Check the arrays of a compressed sparse matrix before compiled code uses them.

SciPy trusts the indices of a matrix: one that points outside makes it read or write foreign memory.
"""

from __future__ import annotations

import numpy as np

LARGEST = np.iinfo(np.int32).max
"""Most rows or columns."""


def sparse_fault(data, indices, indptr, shape: tuple[int, ...], *, by_row: bool) -> str | None:
    """Why three arrays make no compressed sparse matrix, or None.

    Parameters
    ----------
    data, indices, indptr : array
        NumPy arrays or memory maps, or HDF5 datasets, which are read in blocks.
    shape : tuple of int
        Rows, columns.
    by_row : bool
        Rows are compressed (CSR), not columns (CSC).

    Examples
    --------
    >>> sparse_fault(np.ones(2), np.array([0, 7]), np.array([0, 1, 2]), (2, 3), by_row=True)
    'an index is 7, outside 0 to 2'
    """
    if len(shape) != 2 or not all(0 <= n <= LARGEST for n in shape):
        return f"its shape is {tuple(shape)}; wanted two numbers from 0 to {LARGEST:,}"
    major, minor = shape if by_row else shape[::-1]
    for name, array, kinds in (("data", data, "biuf"), ("indices", indices, "iu"), ("indptr", indptr, "iu")):
        if len(array.shape) != 1 or array.dtype.kind not in kinds:
            return f"{name} has shape {array.shape} and type {array.dtype}; wanted a list of numbers"
    if indptr.shape[0] != major + 1:
        return f"indptr has {indptr.shape[0]} entries; wanted {major + 1}"
    if data.shape != indices.shape:
        return f"there are {data.shape[0]} values and {indices.shape[0]} indices"
    ends = np.asarray(indptr[:])
    if int(ends[0]) != 0 or int(ends[-1]) != indices.shape[0]:
        return f"indptr runs from {ends[0]} to {ends[-1]}; wanted 0 to {indices.shape[0]}"
    if (ends[1:] < ends[:-1]).any():
        return "indptr does not ascend"
    first, step = 0, 1 << 22
    while first < major:  # some rows (columns) at a time, `step` entries or one row
        last = max(first + 1, int(np.searchsorted(ends, ends[first] + step, side="right")) - 1)
        block = np.asarray(indices[int(ends[first]) : int(ends[last])])
        for extreme in (int(block.min()), int(block.max())) if len(block) else ():
            if not 0 <= extreme < minor:
                return f"an index is {extreme}, outside 0 to {minor - 1}"
        row = np.repeat(np.arange(last - first), np.diff(ends[first : last + 1]).astype(np.int64))
        place = row * minor + block.astype(np.int64)
        if (place[1:] <= place[:-1]).any():
            place.sort()
            if repeats := int((place[1:] == place[:-1]).sum()):
                return f"{repeats:,} entries repeat a row and column"
        first = last
    return None
