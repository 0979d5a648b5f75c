"""Average of the neighbours' expression, and its standard deviation.

For query i with neighbours j and weights w (summing to 1 over the neighbours whose section measured the gene)::

    mean_i          = sum_j w_ij x_j
    neighbour_std_i = sqrt(sum_j w_ij x_j^2  -  mean_i^2)        weighted standard deviation (population form)

The bank is sparse and stored gene by gene (CSC). A block of genes is filled densely, small enough to stay in the
processor's cache, and the neighbours' rows of it are summed: that is several times faster than gathering whole rows,
and memory does not grow with the number of genes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadOption, ShapeMismatch
from cmrcnet.search.exact import Neighbours
from cmrcnet.search.stacked_arrays import StackedColumns, StackedRows

BLOCK_BYTES = 2**24
"""Size of a dense block of genes."""
MIN_GENES = 16
"""Least genes of a block: as many float32 fill a line of the processor's cache, which is read whole anyway."""
USED_SHARE = 0.5
"""Where fewer of the bank's spots than this share are neighbours, only these are filled."""
MIN_LOG_WEIGHT = -60.0
"""Least log weight relative to the nearest neighbour's; a smaller one would vanish in float32."""
RESOLUTION = 4e-6
"""A variance below this share of the mean square is rounding error, and counts as 0."""

RowSums = Callable[[np.ndarray], np.ndarray]
"""Sums the neighbours' weighted rows of a dense block: (bank, columns) float32 to (queries, columns) float32."""


def average(
    neighbours: Neighbours,
    expression: StackedColumns | StackedRows | sparse.spmatrix | np.ndarray,
    *,
    weighting: Literal["mean", "similarity"] = "mean",
    temperature: float = 0.1,
    columns: np.ndarray | None = None,
    section_of_spot: np.ndarray | None = None,
    measured: np.ndarray | None = None,
    with_std: bool = True,
    row_sums: Callable[[np.ndarray, np.ndarray, int], RowSums] | None = None,
    block_bytes: int | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Average the neighbours' expression.

    Parameters
    ----------
    neighbours, expression, weighting, temperature, columns, section_of_spot, measured, with_std, row_sums
        As `average_blocks`.
    block_bytes
        As `average_blocks`.

    Returns
    -------
    mean, neighbour_std : numpy.ndarray, shape (queries, columns), float32
        NaN where no neighbour's section measured the gene. A standard deviation under 0.2 % of the neighbours' root
        mean square is below the resolution of float32 sums and given as 0.

    Raises
    ------
    BadOption, ShapeMismatch
    """
    blocks = average_blocks(
        neighbours,
        expression,
        weighting=weighting,
        temperature=temperature,
        columns=columns,
        section_of_spot=section_of_spot,
        measured=measured,
        with_std=with_std,
        row_sums=row_sums,
        block_bytes=block_bytes,
    )
    width = expression.shape[1] if columns is None else len(np.asarray(columns))
    mean = np.empty((len(neighbours.ids), width), np.float32)
    neighbour_std = np.empty_like(mean) if with_std else None
    for some, some_mean, some_std in blocks:
        mean[:, some] = some_mean
        if neighbour_std is not None:
            neighbour_std[:, some] = some_std
    return mean, neighbour_std


def average_blocks(
    neighbours: Neighbours,
    expression: StackedColumns | StackedRows | sparse.spmatrix | np.ndarray,
    *,
    weighting: Literal["mean", "similarity"] = "mean",
    temperature: float = 0.1,
    columns: np.ndarray | None = None,
    section_of_spot: np.ndarray | None = None,
    measured: np.ndarray | None = None,
    with_std: bool = True,
    row_sums: Callable[[np.ndarray, np.ndarray, int], RowSums] | None = None,
    block_bytes: int | None = None,
) -> Iterator[tuple[slice, np.ndarray, np.ndarray | None]]:
    """Average the neighbours' expression, block by block of genes, for results that do not fit in memory.

    Each gene's values are read once. Only the neighbours' rows are filled, so that work follows the number of different
    neighbours, not the bank.

    Parameters
    ----------
    neighbours : Neighbours
        (queries, k) rows of the bank.
    expression : StackedColumns, StackedRows, scipy.sparse.csc_matrix or array, shape (bank, genes), float32
        May be memory-mapped. Another sparse layout is converted to CSC first, which costs its size in memory.
    weighting : {"mean", "similarity"}
        mean: equal weights (the paper); similarity: exp(cosine / temperature).
    temperature : float
        Of the similarity weights.
    columns : array of int, optional
        Genes to average, in this order; all when left out. No other column is read.
    section_of_spot : array of int, shape (bank,), optional
        Section of each bank spot, as a row of `measured`.
    measured : array of bool, shape (sections, genes), optional
        Which section measured which gene; left out: every section every gene. The weights are shared among the
        neighbours whose section measured the gene.
    with_std : bool
        Without it the work is half, and the standard deviation is None.
    row_sums : callable, optional
        Another way of summing the neighbours' rows; see `scipy_row_sums`, the default.
    block_bytes : int, optional
        Size of a dense block of genes. It changes speed and memory, never the result. When left out, `BLOCK_BYTES`, or
        `MIN_GENES` genes where that is more.

    Yields
    ------
    some : slice
        Of `columns` (of all genes without it), in order.
    mean, neighbour_std : numpy.ndarray, shape (queries, genes of the slice), float32
        As from `average`.

    Raises
    ------
    BadOption, ShapeMismatch
    """
    table = StackedColumns.of(expression)
    bank, genes = table.shape
    ids = neighbours.ids
    if ids.size and not (ids.min() >= 0 and ids.max() < bank):
        raise BadOption("neighbours", int(ids.max()), want=f"rows of the bank, 0 to {bank - 1}")
    chosen = np.arange(genes) if columns is None else np.asarray(columns)
    if chosen.ndim != 1 or (chosen.size and not (chosen.min() >= 0 and chosen.max() < genes)):
        raise BadOption("columns", columns, want=f"columns of the expression, 0 to {genes - 1}")
    weights = neighbour_weights(neighbours, weighting, temperature)
    measured_weight = _measured_weight(ids, weights, section_of_spot, measured, (bank, genes))
    used, slots = np.zeros(bank, bool), None
    used[ids] = True
    rows = int(used.sum())
    if rows > USED_SHARE * bank:
        rows = bank
    else:
        slots = np.full(bank, -1, np.int32)
        slots[used] = np.arange(rows)
        ids = slots[ids].astype(np.int64)
    sums = (row_sums or scipy_row_sums)(ids, weights, rows)
    per_gene = max(1, 4 * rows * (2 if with_std else 1))
    width = max(1, (BLOCK_BYTES if block_bytes is None else block_bytes) // per_gene)
    width = max(width, MIN_GENES) if block_bytes is None else width
    return _blocks(table, chosen.astype(np.int64), width, rows, slots, sums, measured_weight, with_std)


def _blocks(
    table: StackedColumns,
    chosen: np.ndarray,
    width: int,
    rows: int,
    slots: np.ndarray | None,
    sums: RowSums,
    measured_weight: Callable[[np.ndarray], np.ndarray] | None,
    with_std: bool,
) -> Iterator[tuple[slice, np.ndarray, np.ndarray | None]]:
    """Yield the blocks of `average_blocks`, whose arguments are checked before the first is asked for."""

    def normalised(total: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
        if weight is None:
            return total
        return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)

    for start in range(0, len(chosen), width):
        block = chosen[start : start + width]
        dense = np.zeros((rows, len(block) * (2 if with_std else 1)), np.float32)
        values = table.fill(block, dense[:, : len(block)], slots)
        if with_std:
            np.multiply(values, values, out=dense[:, len(block) :])
        weight = None if measured_weight is None else measured_weight(block)
        total = sums(dense)
        mean, neighbour_std = normalised(total[:, : len(block)], weight), None
        if with_std:
            square = normalised(total[:, len(block) :], weight)
            variance = square - mean * mean
            variance[variance < RESOLUTION * square] = 0
            neighbour_std = np.sqrt(variance)
        yield slice(start, start + len(block)), mean, neighbour_std


def neighbour_weights(neighbours: Neighbours, weighting: str, temperature: float) -> np.ndarray:
    """Compute the weights of the neighbours: (queries, k) float32, each row summing to 1.

    Parameters
    ----------
    weighting : {"mean", "similarity"}
        similarity: softmax of cosine / temperature, computed from the difference to the nearest so that no temperature
        overflows.
    temperature : float
        Above 0.

    Raises
    ------
    BadOption
    """
    if weighting == "mean":
        return np.full(neighbours.ids.shape, 1 / max(neighbours.k, 1), np.float32)
    if weighting != "similarity":
        raise BadOption("weighting", weighting, want="mean or similarity")
    if not temperature > 0:
        raise BadOption("temperature", temperature, want="a number above 0")
    similarity = neighbours.similarity.astype(np.float64)
    behind = similarity - similarity.max(axis=1, keepdims=True, initial=-np.inf)
    weights = np.exp(np.maximum(behind / temperature, MIN_LOG_WEIGHT))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def scipy_row_sums(ids: np.ndarray, weights: np.ndarray, bank: int) -> RowSums:
    """Sum rows by a sparse weight matrix times the block.

    Parameters
    ----------
    ids, weights : arrays, shape (queries, k)
        Rows of the block, and their weights.
    bank : int
        Rows of every block.
    """
    ends = np.arange(0, ids.size + 1, ids.shape[1]) if ids.size else np.zeros(len(ids) + 1, np.int64)
    matrix = sparse.csr_matrix((weights.ravel(), ids.ravel(), ends), shape=(len(ids), bank))
    return lambda block: matrix @ block


def _measured_weight(
    ids: np.ndarray,
    weights: np.ndarray,
    section_of_spot: np.ndarray | None,
    measured: np.ndarray | None,
    shape: tuple[int, int],
) -> Callable[[np.ndarray], np.ndarray] | None:
    """Function from a block of columns to the weight (queries, columns) of neighbours whose section measured them."""
    if measured is None or measured.all():
        return None
    if section_of_spot is None or section_of_spot.shape != (shape[0],):
        raise ShapeMismatch(
            "section_of_spot", want=(shape[0],), got=None if section_of_spot is None else section_of_spot.shape
        )
    if measured.ndim != 2 or measured.shape[1] != shape[1] or section_of_spot.max(initial=0) >= len(measured):
        raise ShapeMismatch("measured", want=(int(section_of_spot.max(initial=0)) + 1, shape[1]), got=measured.shape)
    sections = len(measured)
    slot = np.arange(len(ids))[:, None] * sections + section_of_spot[ids]
    weight = np.bincount(slot.ravel(), weights.ravel(), minlength=len(ids) * sections).reshape(len(ids), sections)
    return lambda block: (weight @ measured[:, block]).astype(np.float32)
