"""The leading components of expression: what the spots of the training sections have in common, without the noise.

Counts of one spot are few, so most of a single gene's variance is counting noise; what many genes do together is not.
With E_s the log-normalised expression of a section's spots, centred gene by gene within the section, and all
sections stacked::

    E = U S V^T                       singular value decomposition over the panel's genes
    scores = E V_r / s1               the r leading components, scaled by the first one's deviation s1

Every section is centred by itself, so that what differs between sections as a whole (depth, chemistry, batch)
makes no component. Any gene is predicted from scores by the `loadings` that fit it best over the bank's spots.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits

from cmrcnet.errors import ShapeMismatch, TooFew


@dataclass(frozen=True, eq=False)
class ExpressionComponents:
    """Directions in the panel's genes.

    Parameters
    ----------
    directions : numpy.ndarray, shape (genes of the panel, rank), float32
        ``V_r / s1``.
    """

    directions: np.ndarray

    @property
    def rank(self) -> int:
        """Number of components."""
        return self.directions.shape[1]

    def scores(self, expression: sparse.spmatrix | np.ndarray) -> np.ndarray:
        """Scores of the spots of ONE section, centred within it.

        Parameters
        ----------
        expression : sparse matrix or array, shape (spots, genes of the panel)
            Log-normalised: what `GenePanel.select` gives of a whole section.

        Returns
        -------
        numpy.ndarray, shape (spots, rank), float32

        Raises
        ------
        ShapeMismatch
        """
        if expression.ndim != 2 or expression.shape[1] != len(self.directions):
            raise ShapeMismatch("expression", want=("spots", len(self.directions)), got=expression.shape)
        raw = np.asarray(expression @ self.directions.astype(np.float64))
        return (raw - raw.mean(axis=0)).astype(np.float32) if len(raw) else raw.astype(np.float32)


@threadpool_limits.wrap(limits=1, user_api="blas")  # several threads may differ in the last bit, and so may two runs
def find_components(sections: Iterable[sparse.csr_matrix], rank: int) -> ExpressionComponents:
    """Find the leading components of some sections.

    Only the (genes, genes) scatter is held, so memory does not grow with the number of spots.

    Parameters
    ----------
    sections : iterable of scipy.sparse.csr_matrix, shape (spots, genes)
        Log-normalised expression of the panel's genes, a section each.
    rank : int
        Components wanted; as many as the spots allow, where that is less.

    Returns
    -------
    ExpressionComponents
        The sign of each is such that its largest direction is positive.

    Raises
    ------
    TooFew
        No spread at all in the expression.
    """
    scatter, spots, count = None, 0, 0
    for expression in sections:
        mean = np.asarray(expression.mean(axis=0), np.float64).ravel()
        part = np.asarray((expression.T @ expression).todense(), np.float64)
        part -= expression.shape[0] * np.outer(mean, mean)
        scatter = part if scatter is None else scatter + part
        spots, count = spots + expression.shape[0], count + 1
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
def loadings_of(scores: np.ndarray, expression: sparse.spmatrix | np.ndarray) -> np.ndarray:
    """What each gene's expression gains with each score: ``(S^T S)^-1 S^T E``, least squares over the spots.

    Scores are centred within their sections, so that the level of a section falls out of ``S^T E``.

    Parameters
    ----------
    scores : array, shape (spots, rank)
    expression : sparse matrix or array, shape (spots, genes)
        Log-normalised.

    Returns
    -------
    numpy.ndarray, shape (rank, genes), float32
    """
    wanted = np.asarray(scores, np.float64)
    right = np.asarray((expression.T @ wanted).T)
    return np.linalg.lstsq(wanted.T @ wanted, right, rcond=None)[0].astype(np.float32)
