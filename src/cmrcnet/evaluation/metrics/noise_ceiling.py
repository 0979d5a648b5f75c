"""The noise ceiling: the best Pearson that any model could reach on the counts of one section.

A gene that was counted 0 to 3 times a spot is mostly counting noise, which no picture tells. How much of a measured
gene is not noise can be estimated from the counts alone: split them at random into two halves, correlate the halves,
and work out from that the reliability of the whole.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadOption
from cmrcnet.evaluation import Sparse
from cmrcnet.genes.scaling import library_sizes, scale_factors
from cmrcnet.slides.table_kinds import check_counts

REPEATS = 10
_DEPTHS = 256
"""Depths at which the mean of the log is computed, evenly in the log; a spot takes the nearest."""
_FEW = 200.0
"""Counts up to which that mean is a sum over the Poisson distribution; above, its second-order expansion."""


def noise_ceiling(
    counts: Sparse,
    target_sum: float | Literal["median"] = 10_000.0,
    *,
    seed: int,
    repeats: int = REPEATS,
    overdispersion: float = 0.0,
) -> np.ndarray:
    """Estimate for each gene the correlation of its measurement with its own noiseless truth.

    Every molecule falls into one of two halves with probability 1/2 (binomial thinning). For Poisson counts the
    halves are independent given the true rates (count splitting: Neufeld, Gao, Popp, Battle and Witten, "Inference
    after latent variable estimation for single-cell RNA sequencing data", Biostatistics 2024). Counts of variance
    ``mean + overdispersion * mean^2`` (negative binomial of size r = 1 / overdispersion) are split with a probability
    drawn for each count from Beta(r / 2, r / 2), which makes their halves independent (Neufeld, Dharamshi, Gao and
    Witten, "Data thinning for convolution-closed distributions", Journal of Machine Learning Research 25, 2024).

    Each half is normalised as the pipeline does, by its OWN library size over all genes, to the same target sum, then
    log1p. The log of a small count is lower on average in a shallow spot, which both halves share and no picture
    shows. So from each half the mean that its depth alone gives is subtracted::

        f_ig = E log(1 + T K / d_i),  K ~ Poisson(p_g d_i)      d_i: depth of spot i, p_g: share of gene g, T: target

    With r the correlation of the two remainders over spots, ``2 r / (1 + r)`` is the reliability of the whole
    (Spearman 1910, Brown 1910, both British Journal of Psychology 3), its square root the correlation of the whole,
    less its own f, with the truth; and that times the standard deviation of the whole less f by that of the whole is
    the ceiling. Simulated with 500 counts a spot and a depth that varies by half its mean: .42 found where .40 is
    true (.52 without f); with 3,000 counts .67 for .67.

    What it rests on: all other noise counts as signal. With the default, counts that vary more than Poisson's give a
    ceiling that is too high (simulated with r = 5 and 3,000 counts: .83 where .55 is true; with
    ``overdispersion=0.2`` .53). An upper bound, then.

    Parameters
    ----------
    counts : scipy.sparse.csr_matrix, shape (spots, genes)
        Raw counts of ALL the section's genes: library sizes are their sums.
    repeats : int
        Splits; r is the mean over them.
    overdispersion : float
        Of the counts, given a spot's true rate; 0 is Poisson's.

    Returns
    -------
    numpy.ndarray, shape (genes,), float64
        0 to 1; 0 where the halves do not agree (r at or below 0); NaN where r is undefined in every split.

    Raises
    ------
    BadOption
    """
    if repeats < 1:
        raise BadOption("repeats", repeats, want="a number of splits, 1 or more")
    if not 0 <= overdispersion < np.inf:
        raise BadOption("overdispersion", overdispersion, want="0 or more; 0 is Poisson noise")
    counts = sparse.csr_matrix(counts)
    counts.sum_duplicates()
    check_counts(counts, "the section")
    library = library_sizes(counts)
    target = float((scale_factors(library, target_sum) * library).max(initial=1.0))
    random = np.random.default_rng(seed)
    whole = counts.data.astype(np.int64)
    expected = _ExpectedLogs(counts, library / 2, target)
    total, defined = np.zeros(counts.shape[1]), np.zeros(counts.shape[1], dtype=int)
    for _ in range(repeats):
        share = 0.5
        if overdispersion > 0:
            share = random.beta(0.5 / overdispersion, 0.5 / overdispersion, len(whole))
        one = random.binomial(whole, share)
        r = expected.correlation(*(_expression(counts, half, target) for half in (one, whole - one)))
        total += np.nan_to_num(r)
        defined += ~np.isnan(r)
    r = np.divide(total, defined, out=np.full(len(total), np.nan), where=defined > 0)
    kept, all_of_it = _ExpectedLogs(counts, library, target).variances(_expression(counts, whole, target))
    of_whole = np.sqrt(np.divide(kept, all_of_it, out=np.ones_like(kept), where=all_of_it > 0))
    return np.minimum(np.sqrt(spearman_brown(np.maximum(r, 0.0))) * of_whole, 1.0)


def spearman_brown(r: np.ndarray | float) -> np.ndarray | float:
    """Reliability of a measurement from the correlation of its halves: ``2 r / (1 + r)``."""
    return 2 * r / (1 + r)


def _expression(counts: Sparse, values: np.ndarray, target: float) -> np.ndarray:
    """Log-normalised values, at the places of `counts.data`, of counts that stand there."""
    library = library_sizes(sparse.csr_matrix((values, counts.indices, counts.indptr), shape=counts.shape))
    return np.log1p(values * np.repeat(scale_factors(library, target), np.diff(counts.indptr)))


class _ExpectedLogs:
    """The ``f_ig`` of `noise_ceiling`, and moments of values less it, from sums over the stored counts alone."""

    def __init__(self, counts: Sparse, depth: np.ndarray, target: float) -> None:
        self._gene, (self._spots, self._genes) = counts.indices, counts.shape
        share = np.asarray(counts.sum(axis=0), np.float64).ravel()
        share /= max(share.sum(), 1.0)
        filled = depth > 0
        logs = np.log(np.where(filled, depth, 1.0))
        low, high = (logs[filled].min(), logs[filled].max()) if filled.any() else (0.0, 0.0)
        levels = np.exp(np.linspace(low, high, _DEPTHS if high > low else 1))
        level = np.rint((logs - low) / max(high - low, 1e-12) * (len(levels) - 1)).astype(np.int64).clip(0)
        table = _mean_logs(np.outer(levels, share), target / levels)
        spots = np.bincount(level[filled], minlength=len(levels)).astype(np.float64)
        self._sum, self._squares = spots @ table, spots @ table**2
        rows = np.repeat(level, np.diff(counts.indptr))
        self._stored = table[rows, self._gene]

    def correlation(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Pearson of a - f and b - f over spots, by gene; a and b stand at the stored counts and are 0 elsewhere."""
        (sa, saa), (sb, sbb) = self._moments(a), self._moments(b)
        sab = self._over_spots(a * b - (a + b) * self._stored) + self._squares
        va, vb = saa - sa**2 / self._spots, sbb - sb**2 / self._spots
        defined = self._varies(a) & self._varies(b)
        return np.divide(
            sab - sa * sb / self._spots,
            np.sqrt(np.maximum(va * vb, 0), where=defined, out=np.ones(self._genes)),
            out=np.full(self._genes, np.nan),
            where=defined,
        )

    def variances(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sums of squares around the mean over spots: of values less f, and of the values."""
        less, squares = self._moments(values)
        plain = self._over_spots(values**2) - self._over_spots(values) ** 2 / self._spots
        return np.maximum(squares - less**2 / self._spots, 0.0), plain

    def _moments(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sums over spots of values less f and of its square."""
        squares = self._over_spots(values * (values - 2 * self._stored)) + self._squares
        return self._over_spots(values) - self._sum, squares

    def _varies(self, values: np.ndarray) -> np.ndarray:
        squares = self._over_spots(values**2)
        return squares - self._over_spots(values) ** 2 / self._spots > 1e-9 * squares

    def _over_spots(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self._gene, weights=values, minlength=self._genes)


def _mean_logs(means: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """E log(1 + factor K) of K ~ Poisson(mean) for means (levels, genes) and factors (levels,), to about 0.1 %."""
    from scipy.special import gammaln

    grid, k = np.geomspace(1e-6, _FEW, 256)[:, None], np.arange(2 * _FEW)
    sums = np.exp(k * np.log(grid) - grid - gammaln(k + 1)) @ np.log1p(k[:, None] * factors)  # (256, levels)
    found = np.empty_like(means)
    for level, (mean, factor) in enumerate(zip(means, factors, strict=True)):
        few = mean * np.interp(np.log(np.maximum(mean, 1e-9)), np.log(grid[:, 0]), sums[:, level] / grid[:, 0])
        scaled = factor * mean
        many = np.log1p(scaled) - 0.5 * factor * scaled / (1 + scaled) ** 2
        found[level] = np.where(mean < _FEW, few, many)
    return found
