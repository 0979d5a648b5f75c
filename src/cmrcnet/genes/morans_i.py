"""Moran's I: how much a gene's expression resembles that of the neighbouring spots."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from cmrcnet.errors import ShapeMismatch
from cmrcnet.genes.correlation import varies

_VALUES_AT_A_TIME = 4_000_000  # bounds the memory of a section with many spots


def morans_i(expression: np.ndarray | sparse.spmatrix, graph: sparse.csr_matrix) -> np.ndarray:
    """Moran's I of each gene.

    ``n / sum_ij w_ij * sum_ij w_ij z_i z_j / sum_i z_i^2``, with z a spot's distance from the gene's mean and w the
    weights of the graph (Moran, "Notes on continuous stochastic phenomena", Biometrika 1950; for these weights Cliff
    and Ord, "Spatial processes", 1981). About 0, exactly -1 / (n - 1) on average, where locations say nothing. With
    row-standardised weights the same as `scanpy.metrics.morans_i` of that graph.

    Parameters
    ----------
    expression : array or sparse matrix, shape (spots, genes)
    graph : scipy.sparse.csr_matrix, shape (spots, spots)
        See `spot_graph`.

    Returns
    -------
    numpy.ndarray, shape (genes,), float64
        NaN for a constant gene, a value that is not finite, or a graph without edges.

    Raises
    ------
    ShapeMismatch
    """
    spots, genes = expression.shape
    if graph.shape != (spots, spots):
        raise ShapeMismatch("The graph", want=(spots, spots), got=graph.shape)
    result = np.full(genes, np.nan)
    weight = graph.sum()
    if weight == 0:
        return result
    expression = expression.tocsc() if sparse.issparse(expression) else expression
    step = max(1, _VALUES_AT_A_TIME // spots)
    for start in range(0, genes, step):
        block = expression[:, start : start + step]
        values = (block.toarray() if sparse.issparse(block) else np.asarray(block)).astype(np.float64)
        defined = varies(values)
        with np.errstate(invalid="ignore", divide="ignore"):
            values -= values.mean(axis=0)
            alike = np.einsum("ng,ng->g", values, graph @ values)
            found = spots / weight * alike / np.einsum("ng,ng->g", values, values)
        result[start : start + step] = np.where(defined, found, np.nan)
    return result
