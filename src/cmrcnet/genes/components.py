"""Expression components: the leading principal components of the training sections' expression.

Most of a single gene's variance is counting noise; variation shared by many genes is not.
With E_s the log-normalised expression of a section's spots, centred gene by gene within the section, and all sections
stacked::

    E = U S V^T                       singular value decomposition over the panel's genes
    scores = E V_r / s1               the r leading components, scaled by the first one's deviation s1

Every section is centred by itself, so that differences between sections as a whole (depth, chemistry, batch) make no
component. Genes are predicted from scores by least squares over the bank's spots (`heads.gene_decoder`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits

from cmrcnet.errors import ShapeMismatch, TooFew


@dataclass(frozen=True, eq=False)
class ExpressionComponents:
    """Projection of the panel's genes onto expression components.

    `directions` (genes of the panel, rank) is ``V_r / s1``, float32.
    """

    directions: np.ndarray

    @property
    def rank(self) -> int:
        """Number of components."""
        return self.directions.shape[1]

    def scores(self, expression: sparse.csr_matrix | np.ndarray) -> np.ndarray:
        """Scores (spots, rank) float32 of the spots of one section, centred within it.

        `expression` (spots, genes of the panel) is that of the whole section, from `GenePanel.select`; an array of
        another width is a `ShapeMismatch`.
        """
        shape = cast(Any, expression).shape
        if len(shape) != 2 or shape[1] != len(self.directions):
            raise ShapeMismatch("expression", want=("spots", len(self.directions)), got=shape)
        raw = np.asarray(expression @ self.directions.astype(np.float64))
        return (raw - raw.mean(axis=0)).astype(np.float32) if len(raw) else raw.astype(np.float32)


@threadpool_limits.wrap(limits=1, user_api="blas")  # several threads may differ in the last bit, and so may two runs
def find_components(sections: Iterable[sparse.csr_matrix], rank: int) -> ExpressionComponents:
    """Compute the leading components of training sections from their summed (genes, genes) scatter.

    Each of `sections` is log-normalised expression (spots, genes of the panel); `rank` is limited by the number of
    spots. The largest entry of each direction is positive. Expression that does not vary raises `TooFew`.
    """
    scatter, spots, count = None, 0, 0
    for expression in sections:
        mean = np.asarray(expression.mean(axis=0), np.float64).ravel()
        part = np.asarray((expression.T @ expression).todense(), np.float64)
        rows = cast(Any, expression).shape[0]
        part -= rows * np.outer(mean, mean)
        scatter = part if scatter is None else scatter + part
        spots, count = spots + rows, count + 1
    if scatter is None or not np.trace(scatter) > 0:
        raise TooFew("spots that differ in expression", 0, 2, "give training sections with counted spots")
    from scipy.linalg import eigh

    rank = max(1, min(rank, len(scatter), spots - count))
    values, vectors = eigh(scatter, subset_by_index=(len(scatter) - rank, len(scatter) - 1))
    vectors = vectors[:, ::-1]
    largest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.sign(vectors[largest, np.arange(rank)])
    return ExpressionComponents((vectors / np.sqrt(values[-1] / spots)).astype(np.float32))


@threadpool_limits.wrap(limits=1, user_api="blas")  # several threads may differ in the last bit, and so may two runs
def loadings_of(scores: np.ndarray, expression: sparse.csr_matrix | np.ndarray) -> np.ndarray:
    """Least-squares loadings (rank, genes) float32 of each gene on the scores: ``(S^T S)^-1 S^T E``.

    `scores` (spots, rank) are centred within sections, so that the level of a section drops out of ``S^T E``;
    `expression` (spots, genes) is log-normalised.
    """
    wanted = np.asarray(scores, np.float64)
    right = np.asarray((expression.T @ wanted).T)
    return np.linalg.lstsq(wanted.T @ wanted, right, rcond=None)[0].astype(np.float32)
