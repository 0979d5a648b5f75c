"""Gene decoders: linear maps from scores to the expression of every gene of a bank.

`GeneDecoder` decodes expression components. Over the bank's spots, with S their scores and E the log-normalised
expression of a gene (in the sections that measured it)::

    level     = mean over sections of the section's mean
    loadings  = (S^T S)^-1 S^T E                 least squares; S is centred within sections
    deviation = root mean square of E around its section's mean

and the prediction of a gene is ``level + scores @ loadings``. The level of a new slide is unknown, so it is the mean of
the bank's sections: errors (MSE, pooled correlations) depend on it, correlations within a section do not. All of it
follows from sums over each section (`SectionStatistics`), which are stored with the section, so that adding or removing
a section does not read the others.

`GeneBasis` decodes the scores of a student: ``expression = clip(level + scores @ directions, limits)`` with orthonormal
directions, so that an error in the scores is the same error in the expression, summed over the genes. The directions
span the teacher's predictions: its loadings if it predicts expression components (`basis_of_decoder`), else the
principal components of its predictions at a sample of locations (`basis_of_predictions`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits

RANK = 64
"""Components of a teacher that averages expression, at most."""
_NOTHING = 1e-6
"""Directions with less than this share of the variance of the first are rounding errors."""

GeneChunks = Callable[[], Iterator[tuple[slice, np.ndarray]]]
"""Iterates over chunks of genes, from the first one at every call: the genes, and (locations, genes) predictions; NaN
where there is none."""


@dataclass(frozen=True, eq=False)
class GeneDecoder:
    """Level and deviation (genes,) and loadings (rank, genes) of each gene of a bank, float32."""

    level: np.ndarray
    deviation: np.ndarray
    loadings: np.ndarray

    def expression(
        self,
        scores: np.ndarray,
        columns: np.ndarray,
        *,
        covariance: np.ndarray,
        variance_rescaling: float,
        limits: tuple[float, float] = (0.0, np.inf),
    ) -> np.ndarray:
        """Decode the genes `columns` from predicted scores (spots, rank): (spots, columns) float32, cut to `limits`.

        `covariance` (rank, rank) is that of predicted scores, within sections. A `variance_rescaling` of 0 leaves the
        variance of predictions, 1 rescales each gene's to that of its measured expression; values between are the power
        of that factor.
        """
        guess = scores @ self.loadings[:, columns]
        if variance_rescaling > 0:
            guess *= self.stretch(columns, covariance, variance_rescaling)
        return np.clip(guess + self.level[columns], *limits).astype(np.float32)

    def directions(self, columns: np.ndarray, *, covariance: np.ndarray, variance_rescaling: float) -> np.ndarray:
        """Rescaled loadings (rank, columns) float32: expression is ``level + scores @ directions``, cut."""
        loadings = self.loadings[:, columns]
        if variance_rescaling > 0:
            loadings = loadings * self.stretch(columns, covariance, variance_rescaling)
        return loadings.astype(np.float32, copy=False)

    def stretch(self, columns: np.ndarray | slice, covariance: np.ndarray, variance_rescaling: float) -> np.ndarray:
        """Factor that rescales each gene's predictions around its level: (columns,); parameters as `expression`."""
        loadings = self.loadings[:, columns]
        power = np.sqrt(np.maximum(np.einsum("rg,rq,qg->g", loadings, covariance, loadings), 1e-12))
        return np.maximum(self.deviation[columns] / power, 1.0) ** variance_rescaling


@dataclass(frozen=True, eq=False)
class SectionStatistics:
    """Sufficient statistics of one section for a `GeneDecoder`: sums over its spots, in float64.

    `gram` (rank, rank) is S^T S, `products` (rank, genes) S^T E of the section's own genes; `sums` and `squares`
    (genes,) are those of E.
    """

    spots: int
    gram: np.ndarray
    products: np.ndarray
    sums: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, expression: sparse.csc_matrix, scores: np.ndarray) -> SectionStatistics:
        """Sum over one section's (spots, genes) expression and (spots, rank) scores."""
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
    statistics: Sequence[SectionStatistics], columns: Sequence[np.ndarray], measured: np.ndarray
) -> GeneDecoder:
    """Fit a decoder to a bank from the statistics of its sections.

    `columns` gives for each section the bank's column of each of its own genes; `measured` (sections, genes) tells
    which genes of the bank each section measured.
    """
    genes, rank = measured.shape[1], len(statistics[0].gram)
    level, around, products = np.zeros(genes), np.zeros(genes), np.zeros((rank, genes))
    for each, mine in zip(statistics, columns, strict=True):
        level[mine] += each.sums / each.spots
        around[mine] += each.squares - each.sums**2 / each.spots
        products[:, mine] += each.products
    size = np.array([each.spots for each in statistics])
    seen = measured.sum(axis=0)
    loadings = np.zeros((rank, genes), np.float32)
    patterns, pattern_of = np.unique(measured, axis=1, return_inverse=True)
    for number, sees in enumerate(patterns.T):
        if sees.any():
            which = np.flatnonzero(pattern_of.reshape(-1) == number)
            gram = np.sum([each.gram for each, there in zip(statistics, sees, strict=True) if there], axis=0)
            loadings[:, which] = np.linalg.lstsq(gram, products[:, which], rcond=None)[0]
    deviation = np.sqrt(np.maximum(around, 0) / np.maximum(size @ measured, 1))
    return GeneDecoder((level / np.maximum(seen, 1)).astype(np.float32), deviation.astype(np.float32), loadings)


@dataclass(frozen=True, eq=False)
class GeneBasis:
    """Level (genes,) and orthonormal directions (rank, genes), float32; the level of a gene never predicted is NaN."""

    level: np.ndarray
    directions: np.ndarray

    def expression(
        self, scores: np.ndarray, columns: np.ndarray, limits: tuple[float, float] = (0.0, np.inf)
    ) -> np.ndarray:
        """Decode the genes `columns` from a student's scores (locations, rank): (locations, columns) float32, cut to
        `limits`.
        """
        guess = scores @ self.directions[:, columns]
        return np.clip(guess + self.level[columns], *limits).astype(np.float32, copy=False)

    def scores(self, chunks: Iterator[tuple[slice, np.ndarray]], locations: int) -> np.ndarray:
        """Project expression that comes in chunks of genes: (locations, rank) float32; NaN counts as the level."""
        found = np.zeros((locations, len(self.directions)))
        for genes, values in chunks:
            found += _around(values, self.level[genes]) @ self.directions[:, genes].T.astype(np.float64)
        return found.astype(np.float32)


@threadpool_limits.wrap(limits=1, user_api="blas")  # several threads may differ in the last bit, and so may two runs
def basis_of_decoder(
    decoder: GeneDecoder, covariance: np.ndarray, variance_rescaling: float
) -> tuple[GeneBasis, np.ndarray]:
    """Basis of a teacher that predicts expression components; parameters as `GeneDecoder.expression`.

    Returns the basis and a matrix (components, rank), float64: ``component scores @ matrix`` are the scores in this
    basis.
    """
    loadings = (decoder.loadings * decoder.stretch(slice(None), covariance, variance_rescaling)).astype(np.float64)
    directions, rotation = np.linalg.qr(loadings.T)
    return GeneBasis(decoder.level, directions.T.astype(np.float32)), rotation.T


@threadpool_limits.wrap(limits=1, user_api="blas")
def basis_of_predictions(chunks: GeneChunks, locations: int, genes: int, rank: int = RANK) -> GeneBasis:
    """Basis from the principal components, at most `rank`, of a teacher's predictions at some locations.

    They come from the eigenvectors of the (locations, locations) Gram matrix, so that memory holds one chunk of genes,
    that matrix and the (rank, genes) result: `chunks` is called once for the Gram matrix and once for the directions.
    """
    level, products = np.full(genes, np.nan, np.float32), np.zeros((locations, locations))
    for which, values in chunks():
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
    for which, predicted in chunks():
        directions[:, which] = onto.T @ _around(predicted, level[which])
    return GeneBasis(level, directions)


def _around(values: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Difference from the level, float64; 0 where there is no prediction."""
    return np.nan_to_num(values.astype(np.float64) - level, nan=0.0)
