"""Pearson over all test spots of a fold at once, gathered a section at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from cmrcnet.errors import ShapeMismatch

_CONSTANT = 1e-6  # as in expression.correlation


class PooledPearson:
    """Correlation of each gene over the spots of several sections together.

    Differences between the sections' levels count here, unlike in the mean of the sections' own correlations. Only
    seven numbers a gene are kept; sections are joined by the pairwise update of Chan, Golub and LeVeque ("Updating
    formulae and a pairwise algorithm for computing sample variances", 1979).

    Parameters
    ----------
    genes : sequence of str
        Order of the results. A gene that a section did not measure takes its spots from the others.
    """

    def __init__(self, genes: Sequence[str]) -> None:
        self.genes = tuple(genes)
        self._column = {gene: place for place, gene in enumerate(self.genes)}
        zeros = np.zeros(len(self.genes))
        self._n, self._mean = zeros.copy(), np.zeros((2, len(self.genes)))
        self._square, self._cross = np.zeros((2, len(self.genes))), zeros.copy()
        self._low = np.full((2, len(self.genes)), np.inf)
        self._high = -self._low

    def add(self, truth: np.ndarray | sparse.spmatrix, guess: np.ndarray, genes: Sequence[str]) -> None:
        """Take in one section.

        Parameters
        ----------
        truth, guess : shape (spots, genes)
        genes : sequence of str
            Names of the columns, among `self.genes`.
        """
        if truth.shape != guess.shape or truth.shape[1] != len(genes):
            raise ShapeMismatch("The prediction", want=(truth.shape[0], len(genes)), got=guess.shape)
        if not truth.shape[0]:
            return
        truth = truth.tocsc() if sparse.issparse(truth) else truth
        step = max(1, 4_000_000 // truth.shape[0])
        for start in range(0, len(genes), step):
            part = slice(start, start + step)
            block = truth[:, part]
            true = np.asarray(block.toarray() if sparse.issparse(block) else block, np.float64)
            at = np.array([self._column[gene] for gene in genes[part]], dtype=np.int64)
            self._join(at, np.stack([true, np.asarray(guess[:, part], np.float64)]))

    def values(self) -> np.ndarray:
        """Correlation of each gene: (genes,) float64, NaN where truth or prediction is constant or not finite."""
        with np.errstate(invalid="ignore", divide="ignore"):
            found = np.clip(self._cross / np.sqrt(self._square.prod(axis=0)), -1, 1)
            largest = np.maximum(np.abs(self._low), np.abs(self._high))
            defined = (np.isfinite(largest) & (self._high - self._low > _CONSTANT * largest)).all(axis=0)
        return np.where(defined, found, np.nan)

    def _join(self, at: np.ndarray, both: np.ndarray) -> None:
        spots = both.shape[1]
        with np.errstate(invalid="ignore"):
            mean = both.mean(axis=1)
            gap = mean - self._mean[:, at]
            weight = self._n[at] * spots / (self._n[at] + spots)
            around = both - mean[:, None]
            self._square[:, at] += np.einsum("bng,bng->bg", around, around) + gap**2 * weight
            self._cross[at] += np.einsum("ng,ng->g", *around) + gap.prod(axis=0) * weight
            self._mean[:, at] += gap * spots / (self._n[at] + spots)
        self._n[at] += spots
        self._low[:, at] = np.minimum(self._low[:, at], both.min(axis=1))
        self._high[:, at] = np.maximum(self._high[:, at], both.max(axis=1))
