"""What turns expression scores into the expression of any gene that the bank measured.

Over the bank's spots, with S their scores and E the log-normalised expression of a gene (in the sections that
measured it)::

    level     = mean over sections of the section's mean
    loadings  = (S^T S)^-1 S^T E                 least squares; S is centred within sections
    deviation = root mean square of E around its section's mean

and a gene's prediction is ``level + scores @ loadings``. The level of a slide that was never measured is not known:
the mean of the bank's sections is the honest guess, and errors (MSE, pooled correlations) feel it while correlations
within a section do not. All of it follows from sums over each section (`SectionStatistics`), which are kept with the
section: a bank that lost or gained one is fitted anew without reading the others.

What turns a student's scores into the expression of every gene of a bank.

``expression = max(level + scores @ directions, 0)`` with orthonormal directions (rank x genes): an error in the scores
is then the same error in the expression, summed over the genes. Genes that vary much count for much, and those are
the genes that can be predicted and that are scored.

The directions hold what a teacher can say. A teacher on expression components says ``level + s @ loadings``, so the
directions span its loadings and nothing is lost (`basis_of_decoder`). A teacher that averages measured expression is
looked at in a sample of locations, and the principal components of what it says there are kept
(`basis_of_predictions`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits


@dataclass(frozen=True, eq=False)
class GeneDecoder:
    """One level, one deviation and one set of loadings a gene of the bank.

    Parameters
    ----------
    level, deviation : numpy.ndarray, shape (genes,), float32
    loadings : numpy.ndarray, shape (rank, genes), float32
    """

    level: np.ndarray
    deviation: np.ndarray
    loadings: np.ndarray

    def expression(
        self, scores: np.ndarray, columns: np.ndarray, *, covariance: np.ndarray, variance_rescaling: float
    ) -> np.ndarray:
        """Expression of some genes: (spots, columns) float32, never below 0.

        Parameters
        ----------
        scores : array, shape (spots, rank)
        columns : array of int
        covariance : array, shape (rank, rank)
            Of predicted scores, within sections.
        variance_rescaling : float
            0: as it is; 1: every gene's predictions are stretched around its level until they vary as its measured
            expression does; between, by that power.
        """
        guess = scores @ self.loadings[:, columns]
        if variance_rescaling > 0:
            guess *= self.stretch(columns, covariance, variance_rescaling)
        return np.maximum(guess + self.level[columns], 0).astype(np.float32)

    def stretch(self, columns: np.ndarray | slice, covariance: np.ndarray, variance_rescaling: float) -> np.ndarray:
        """By how much each gene's predictions are stretched around its level: (columns,); parameters as `expression`.

        Parameters
        ----------
        columns : array of int or slice
        covariance : array, shape (rank, rank)
        variance_rescaling : float
        """
        loadings = self.loadings[:, columns]
        power = np.sqrt(np.maximum(np.einsum("rg,rq,qg->g", loadings, covariance, loadings), 1e-12))
        return np.maximum(self.deviation[columns] / power, 1.0) ** variance_rescaling


@dataclass(frozen=True, eq=False)
class SectionStatistics:
    """What one section has to say about the levels: sums over its spots, in float64.

    Parameters
    ----------
    spots : int
    gram : numpy.ndarray, shape (rank, rank)
        S^T S.
    products : numpy.ndarray, shape (rank, genes)
        S^T E, of the section's own genes.
    sums, squares : numpy.ndarray, shape (genes,)
        Of E.
    """

    spots: int
    gram: np.ndarray
    products: np.ndarray
    sums: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, expression: sparse.csc_matrix, scores: np.ndarray) -> SectionStatistics:
        """Of one section's (spots, genes) expression and (spots, rank) scores."""
        wanted = np.asarray(scores, np.float64)
        ones = np.ones(len(wanted))
        return cls(
            spots=len(wanted),
            gram=wanted.T @ wanted,
            products=np.ascontiguousarray(np.asarray(expression.T @ wanted).T),
            sums=np.asarray(expression.T @ ones),
            squares=np.asarray(expression.astype(np.float64).power(2).T @ ones),
        )


def fit_gene_decoder(
    moments: Sequence[SectionStatistics], columns: Sequence[np.ndarray], measured: np.ndarray
) -> GeneDecoder:
    """Fit them over a bank from what each of its sections has to say; nobody's expression is read again.

    Parameters
    ----------
    moments : sequence of SectionStatistics
    columns : sequence of arrays of int
        Of each section, the bank's column of each of its own genes.
    measured : array of bool, shape (sections, genes)
        Sections that did not measure a gene have no say in it.
    """
    genes, rank = measured.shape[1], len(moments[0].gram)
    level, around, products = np.zeros(genes), np.zeros(genes), np.zeros((rank, genes))
    for each, mine in zip(moments, columns, strict=True):
        level[mine] += each.sums / each.spots
        around[mine] += each.squares - each.sums**2 / each.spots
        products[:, mine] += each.products
    size = np.array([each.spots for each in moments])
    seen = measured.sum(axis=0)
    loadings = np.zeros((rank, genes), np.float32)
    patterns, pattern_of = np.unique(measured, axis=1, return_inverse=True)
    for number, sees in enumerate(patterns.T):
        if sees.any():
            which = np.flatnonzero(pattern_of.reshape(-1) == number)
            gram = np.sum([each.gram for each, there in zip(moments, sees, strict=True) if there], axis=0)
            loadings[:, which] = np.linalg.lstsq(gram, products[:, which], rcond=None)[0]
    deviation = np.sqrt(np.maximum(around, 0) / np.maximum(size @ measured, 1))
    return GeneDecoder((level / np.maximum(seen, 1)).astype(np.float32), deviation.astype(np.float32), loadings)


RANK = 64
"""Components of a teacher that averages expression, at most."""
_NOTHING = 1e-6
"""Directions that carry less than this share of the variance of the first are rounding."""

Blocks = Callable[[], Iterator[tuple[slice, np.ndarray]]]
"""Gives predictions some genes at a time, every time from the start: which genes, and (locations, genes) with NaN where
the teacher has no prediction."""


@dataclass(frozen=True, eq=False)
class GeneBasis:
    """Levels and directions.

    Parameters
    ----------
    level : numpy.ndarray, shape (genes,), float32
        NaN for a gene that is never predicted.
    directions : numpy.ndarray, shape (rank, genes), float32
        Orthonormal rows.
    """

    level: np.ndarray
    directions: np.ndarray

    def expression(self, scores: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Expression of some genes: (locations, columns) float32, never below 0.

        Parameters
        ----------
        scores : array, shape (locations, rank)
        columns : array of int
        """
        guess = scores @ self.directions[:, columns]
        return np.maximum(guess + self.level[columns], 0).astype(np.float32, copy=False)

    def scores(self, blocks: Iterator[tuple[slice, np.ndarray]], locations: int) -> np.ndarray:
        """Scores of expression that comes some genes at a time: (locations, rank) float32.

        Parameters
        ----------
        blocks : iterator of slice and array, shape (locations, genes of the slice)
            Where it is NaN, nothing is said of the gene, and it counts as its level.
        locations : int
        """
        found = np.zeros((locations, len(self.directions)))
        for genes, values in blocks:
            found += _around(values, self.level[genes]) @ self.directions[:, genes].T.astype(np.float64)
        return found.astype(np.float32)


@threadpool_limits.wrap(limits=1, user_api="blas")  # several threads may differ in the last bit, and so may two runs
def basis_of_decoder(
    levels: GeneDecoder, covariance: np.ndarray, variance_rescaling: float
) -> tuple[GeneBasis, np.ndarray]:
    """The basis of a teacher on expression components.

    Parameters
    ----------
    levels : GeneDecoder
        Of its bank.
    covariance : array, shape (components, components)
        Of predicted component scores, within sections; see `GeneDecoder.expression`.
    variance_rescaling : float

    Returns
    -------
    basis : GeneBasis
    turn : numpy.ndarray, shape (components, rank), float64
        ``component scores @ turn`` are the scores in this basis.
    """
    loadings = (levels.loadings * levels.stretch(slice(None), covariance, variance_rescaling)).astype(np.float64)
    directions, turn = np.linalg.qr(loadings.T)
    return GeneBasis(levels.level, directions.T.astype(np.float32)), turn.T


@threadpool_limits.wrap(limits=1, user_api="blas")
def basis_of_predictions(blocks: Blocks, locations: int, genes: int, rank: int = RANK) -> GeneBasis:
    """The principal components of what a teacher predicts at some locations, by the products of locations with
    locations.

    Never more than a block of genes is laid out, and (locations, locations) and (rank, genes) numbers beside it.

    Parameters
    ----------
    blocks : callable
        Gives all genes, once for the products and once for the directions.
    locations : int
    genes : int
    rank : int
        Components at most; fewer where the predictions do not vary in so many ways.
    """
    level, products = np.full(genes, np.nan, np.float32), np.zeros((locations, locations))
    for which, values in blocks():
        known = ~np.isnan(values)
        count = known.sum(axis=0)
        total = np.where(known, values, 0).sum(axis=0, dtype=np.float64)
        level[which] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        around = _around(values, level[which])
        products += around @ around.T
    values, vectors = np.linalg.eigh(products)
    order = np.argsort(-values, kind="stable")[:rank]
    order = order[values[order] > _NOTHING * max(values.max(), 1e-12)]
    onto = vectors[:, order] / np.sqrt(values[order])
    directions = np.zeros((len(order), genes), np.float32)
    for which, predicted in blocks():
        directions[:, which] = onto.T @ _around(predicted, level[which])
    return GeneBasis(level, directions)


def _around(values: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Distance from the level, float64; 0 where nothing is said."""
    return np.nan_to_num(values.astype(np.float64) - level, nan=0.0)
