"""What turns expression scores into the expression of any gene that the bank measured.

Over the bank's spots, with S their scores and E the log-normalised expression of a gene (in the sections that
measured it)::

    level     = mean over sections of the section's mean
    loadings  = (S^T S)^-1 S^T E                 least squares; S is centred within sections
    deviation = root mean square of E around its section's mean

and a gene's prediction is ``level + scores @ loadings``. The level of a slide that was never measured is not known:
the mean of the bank's sections is the honest guess, and errors (MSE, pooled correlations) feel it while correlations
within a section do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

_VALUES_AT_A_TIME = 2**24


@dataclass(frozen=True, eq=False)
class GeneLevels:
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
        self, scores: np.ndarray, columns: np.ndarray, *, covariance: np.ndarray, amplitude: float
    ) -> np.ndarray:
        """Expression of some genes: (spots, columns) float32, never below 0.

        Parameters
        ----------
        scores : array, shape (spots, rank)
        columns : array of int
        covariance : array, shape (rank, rank)
            Of predicted scores, within sections.
        amplitude : float
            0: as it is; 1: every gene's predictions are stretched around its level until they vary as its measured
            expression does; between, by that power.
        """
        loadings = self.loadings[:, columns]
        guess = scores @ loadings
        if amplitude > 0:
            power = np.sqrt(np.maximum(np.einsum("rg,rq,qg->g", loadings, covariance, loadings), 1e-12))
            guess *= np.maximum(self.deviation[columns] / power, 1.0) ** amplitude
        return np.maximum(guess + self.level[columns], 0).astype(np.float32)


def gene_levels(
    expression: sparse.csc_matrix, scores: np.ndarray, section_of_spot: np.ndarray, measured: np.ndarray
) -> GeneLevels:
    """Fit them over a bank, a block of genes at a time.

    Parameters
    ----------
    expression : scipy.sparse.csc_matrix, shape (spots, genes)
        May be memory-mapped.
    scores : array, shape (spots, rank)
    section_of_spot : array of int, shape (spots,)
    measured : array of bool, shape (sections, genes)
        Sections that did not measure a gene have no say in it.
    """
    spots, genes = expression.shape
    sections, rank = len(measured), scores.shape[1]
    wanted = np.asarray(scores, np.float64)
    member = sparse.csr_matrix((np.ones(spots), (np.arange(spots), section_of_spot)), shape=(spots, sections))
    size = np.asarray(member.sum(axis=0)).ravel()
    grams = np.stack([wanted[section_of_spot == s].T @ wanted[section_of_spot == s] for s in range(sections)])
    level, deviation = np.zeros(genes, np.float32), np.zeros(genes, np.float32)
    loadings = np.zeros((rank, genes), np.float32)
    patterns, pattern_of = np.unique(measured.T, axis=0, return_inverse=True)
    pattern_of = pattern_of.reshape(-1)
    ends = np.asarray(expression.indptr, np.int64)
    first = 0
    while first < genes:
        last = max(first + 1, int(np.searchsorted(ends, ends[first] + _VALUES_AT_A_TIME, side="right")) - 1)
        values = slice(int(ends[first]), int(ends[last]))
        parts = (np.asarray(expression.data[values]), np.asarray(expression.indices[values]))
        block = sparse.csc_matrix((*parts, ends[first : last + 1] - ends[first]), shape=(spots, last - first))
        right = np.asarray(block.T @ wanted)
        sums = np.asarray((block.T @ member).todense())
        squares = np.asarray((block.power(2).T @ member).todense())
        around = squares - sums**2 / size
        of_block = pattern_of[first:last]
        for number in np.unique(of_block):
            sees, which = patterns[number], np.flatnonzero(of_block == number)
            if not sees.any():
                continue
            level[first + which] = (sums[which][:, sees] / size[sees]).mean(axis=1)
            deviation[first + which] = np.sqrt(np.maximum(around[which][:, sees].sum(axis=1), 0) / size[sees].sum())
            fit = np.linalg.lstsq(grams[sees].sum(axis=0), right[which].T, rcond=None)[0]
            loadings[:, first + which] = fit
        first = last
    return GeneLevels(level, deviation, loadings)
