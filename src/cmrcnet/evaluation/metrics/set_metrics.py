"""Scores of a whole set of genes in one section, which no gene has by itself."""

from __future__ import annotations

import numpy as np

from cmrcnet.errors import ShapeMismatch
from cmrcnet.genes.spatial_stats import varies


def recall_of_highest(truth: np.ndarray, guess: np.ndarray, size: int = 50) -> tuple[float, int]:
    """Share of the genes that are highest in truth which are also highest in prediction.

    With Moran's I per gene: the share of the most spatially variable genes that a prediction would find (SVG recall).

    Parameters
    ----------
    truth, guess : numpy.ndarray, shape (genes,)
        NaN where undefined: such a gene is never among the highest.
    size : int
        Genes that count as highest; all defined ones of the truth where they are fewer.

    Returns
    -------
    recall : float
        nan when no gene is defined in truth, or none in prediction.
    n_undefined : int
        Genes undefined in either.
    """
    undefined = np.isnan(truth) | np.isnan(guess)
    best, said = _highest(truth, size), _highest(guess, size)
    if len(best) == 0 or len(said) == 0:
        return float("nan"), int(undefined.sum())
    return len(np.intersect1d(best, said)) / len(best), int(undefined.sum())


def gene_gene_correlation(truth: np.ndarray, guess: np.ndarray) -> tuple[float, float, int]:
    """How well the correlations between genes are kept, over the genes that vary in truth and in prediction.

    Parameters
    ----------
    truth, guess : numpy.ndarray, shape (spots, genes)

    Returns
    -------
    error : float
        Frobenius norm of the difference of the two gene-by-gene correlation matrices, divided by the square root of
        the number of ordered pairs of different genes: the root mean square error of one correlation, which does not
        grow with the set. nan for fewer than two genes.
    agreement : float
        Pearson correlation of the two matrices' entries above the diagonal. nan for fewer than three genes.
    n_undefined : int
        Genes left out because truth or prediction is constant.
    """
    if truth.shape != guess.shape:
        raise ShapeMismatch("guess", want=truth.shape, got=guess.shape)
    if len(truth) < 2:
        return float("nan"), float("nan"), truth.shape[1]
    truth, guess = np.asarray(truth, np.float64), np.asarray(guess, np.float64)
    kept = varies(truth) & varies(guess)
    genes, left_out = int(kept.sum()), int((~kept).sum())
    if genes < 2:
        return float("nan"), float("nan"), left_out
    above = np.triu_indices(genes, 1)
    true, said = (np.corrcoef(block[:, kept], rowvar=False)[above] for block in (truth, guess))
    error = float(np.sqrt(((true - said) ** 2).mean()))
    defined = genes > 2 and np.ptp(true) > 1e-12 and np.ptp(said) > 1e-12
    return error, float(np.corrcoef(true, said)[0, 1]) if defined else float("nan"), left_out


def share_of_ceiling(scores: np.ndarray, ceiling: np.ndarray) -> tuple[float, int]:
    """Mean score divided by the mean of the best possible scores, over the same genes.

    Parameters
    ----------
    scores : numpy.ndarray, shape (genes,)
        Pearson, NaN where undefined.
    ceiling : numpy.ndarray, shape (genes,)
        See `ceiling.noise_ceiling`.

    Returns
    -------
    share : float
        nan when no gene is left.
    n_left_out : int
        Genes without a ceiling above 0, or without a score.
    """
    kept = (np.nan_to_num(ceiling) > 0) & ~np.isnan(scores)
    share = scores[kept].mean() / ceiling[kept].mean() if kept.any() else float("nan")
    return float(share), int((~kept).sum())


def _highest(values: np.ndarray, size: int) -> np.ndarray:
    """Locations of the highest defined values, ties in their order."""
    order = np.argsort(-values.round(9), kind="stable")  # NaN goes last
    return order[: min(size, int((~np.isnan(values)).sum()))]
