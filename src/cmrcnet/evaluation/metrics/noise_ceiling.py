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
from cmrcnet.genes.normalise import library_sizes, scale_factors
from cmrcnet.slides.section import check_counts

REPEATS = 10


def noise_ceiling(
    counts: Sparse, target_sum: float | Literal["median"] = 10_000.0, *, seed: int, repeats: int = REPEATS
) -> np.ndarray:
    """Estimate for each gene the correlation of its measurement with its own noiseless truth.

    Every molecule falls into one of two halves with probability 1/2 (binomial thinning). For Poisson counts the
    halves are independent given the true rates (count splitting: Neufeld, Gao, Popp, Battle and Witten, "Inference
    after latent variable estimation for single-cell RNA sequencing data", Biostatistics 2024). Each half is
    normalised as the pipeline does, by its OWN library size over all genes, to the same target sum, then log1p. Their
    correlation r over spots is the reliability of half a measurement; ``2 r / (1 + r)`` is that of the whole
    (Spearman 1910, Brown 1910, both British Journal of Psychology 3), and its square root the correlation of the whole
    measurement with what would be measured without noise.

    What it rests on: all that the halves share counts as signal, also what no picture could show, such as how a spot
    was prepared. Library size is divided out, but not wholly: after the log, a gene of few counts is lower on average
    in a shallow spot, both halves share that, and so uneven depth RAISES the ceiling. (Simulated, 500 counts a spot:
    0.48 found where 0.48 is true with even depth; 0.55 for 0.46 where depth varies by half its mean. From 3,000 counts
    on within 0.03 in the mean.) A yardstick, then, not a proof.

    Parameters
    ----------
    counts : scipy.sparse.csr_matrix, shape (spots, genes)
        Raw counts of ALL the section's genes: library sizes are their sums.
    repeats : int
        Splits; r is the mean over them.

    Returns
    -------
    numpy.ndarray, shape (genes,), float64
        0 to 1; 0 where the halves do not agree (r at or below 0); NaN where r is undefined in every split.
    """
    if repeats < 1:
        raise BadOption("repeats", repeats, want="a number of splits, 1 or more")
    counts = sparse.csr_matrix(counts)
    counts.sum_duplicates()
    check_counts(counts, "the section")
    random = np.random.default_rng(seed)
    whole = counts.data.astype(np.int64)
    total, defined = np.zeros(counts.shape[1]), np.zeros(counts.shape[1], dtype=int)
    for _ in range(repeats):
        one = random.binomial(whole, 0.5)
        first, second = (_expression(counts, half, target_sum) for half in (one, whole - one))
        r = _correlation(first, second, counts)
        total += np.nan_to_num(r)
        defined += ~np.isnan(r)
    r = np.divide(total, defined, out=np.full(len(total), np.nan), where=defined > 0)
    return np.sqrt(spearman_brown(np.maximum(r, 0.0)))


def spearman_brown(r: np.ndarray | float) -> np.ndarray | float:
    """Reliability of a measurement from the correlation of its halves: ``2 r / (1 + r)``."""
    return 2 * r / (1 + r)


def _expression(counts: Sparse, half: np.ndarray, target_sum: float | Literal["median"]) -> np.ndarray:
    """Log-normalised values of one half at the locations of `counts.data`."""
    library = library_sizes(sparse.csr_matrix((half, counts.indices, counts.indptr), shape=counts.shape))
    return np.log1p(half * np.repeat(scale_factors(library, target_sum), np.diff(counts.indptr)))


def _correlation(a: np.ndarray, b: np.ndarray, counts: Sparse) -> np.ndarray:
    """Pearson of each gene over all spots, from sums over the locations that hold a count; the rest is 0 in both."""
    spots, genes = counts.shape

    def over_spots(values: np.ndarray) -> np.ndarray:
        return np.bincount(counts.indices, weights=values, minlength=genes)

    sa, sb, saa, sbb, sab = (over_spots(values) for values in (a, b, a * a, b * b, a * b))
    va, vb = saa - sa**2 / spots, sbb - sb**2 / spots
    defined = (va > 1e-9 * saa) & (vb > 1e-9 * sbb)
    return np.divide(sab - sa * sb / spots, np.sqrt(va * vb, where=defined, out=np.ones(genes)),
                     out=np.full(genes, np.nan), where=defined)  # fmt: skip
