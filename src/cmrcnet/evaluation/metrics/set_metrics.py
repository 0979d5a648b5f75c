"""Scores that a set of genes has as a whole, gene-gene correlation, and null sets of genes with similar means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from cmrcnet.errors import ShapeMismatch, TooFew, UnknownName
from cmrcnet.evaluation import Sparse
from cmrcnet.genes.spatial_stats import varies


def recall_of_highest(truth: np.ndarray, guess: np.ndarray, size: int = 50) -> tuple[float, int]:
    """Share of the `size` genes that are highest in truth which are also highest in prediction.

    With Moran's I per gene: the share of the most spatially variable genes that a prediction would find (SVG recall).
    A gene that is NaN is never among the highest. Also the number of genes undefined in either; the share is nan when
    no gene is defined in truth, or none in prediction.
    """

    def highest(values: np.ndarray) -> np.ndarray:
        order = np.argsort(-values.round(9), kind="stable")  # ties in their order, NaN last
        return order[: min(size, int((~np.isnan(values)).sum()))]

    undefined = int((np.isnan(truth) | np.isnan(guess)).sum())
    best, found = highest(truth), highest(guess)
    if len(best) == 0 or len(found) == 0:
        return float("nan"), undefined
    return len(np.intersect1d(best, found)) / len(best), undefined


def gene_gene_correlation(truth: np.ndarray, guess: np.ndarray) -> tuple[float, float, int]:
    """How well the correlations between genes are kept, from (spots, genes), over those that vary in both.

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
    if len(truth) < 3:
        return float("nan"), float("nan"), truth.shape[1]
    truth, guess = np.asarray(truth, np.float64), np.asarray(guess, np.float64)
    kept = np.flatnonzero(varies(truth) & varies(guess))
    left_out = truth.shape[1] - len(kept)
    if len(kept) < 2:
        return float("nan"), float("nan"), left_out
    found = gene_correlation([(truth[:, kept], guess[:, kept])], [str(gene) for gene in kept])
    return found.rms, found.agreement, left_out


def share_of_ceiling(scores: np.ndarray, ceiling: np.ndarray) -> tuple[float, int]:
    """Mean Pearson of genes divided by their mean `noise_ceiling`, and the number of genes left out.

    Left out are genes without a ceiling above 0 or without a score; nan when no gene is left.
    """
    kept = (np.nan_to_num(ceiling) > 0) & ~np.isnan(scores)
    share = scores[kept].mean() / ceiling[kept].mean() if kept.any() else float("nan")
    return float(share), int((~kept).sum())


Expression = np.ndarray | Sparse


@dataclass(frozen=True, eq=False)
class GeneCorrelation:
    """Pearson's correlation over spots of every pair of genes; NaN in the row and column of a constant gene."""

    genes: tuple[str, ...]
    truth: np.ndarray  # (genes, genes) float64: measured
    prediction: np.ndarray  # (genes, genes) float64: predicted

    @property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Correlations of the pairs that are defined in both: measured, predicted; each pair once."""
        upper = np.triu_indices(len(self.genes), 1)
        truth, prediction = self.truth[upper], self.prediction[upper]
        defined = np.isfinite(truth) & np.isfinite(prediction)
        return truth[defined], prediction[defined]

    @property
    def rms(self) -> float:
        """Root mean square difference of a pair's correlation: the error that does not grow with the genes."""
        truth, prediction = self.pairs
        return float(np.sqrt(((truth - prediction) ** 2).mean())) if len(truth) else float("nan")

    @property
    def agreement(self) -> float:
        """Correlation of correlations: Pearson over pairs; 1 when the same pairs go together. NaN if undefined."""
        truth, prediction = self.pairs
        if len(truth) < 2 or np.ptp(truth) < 1e-12 or np.ptp(prediction) < 1e-12:
            return float("nan")
        return float(np.corrcoef(truth, prediction)[0, 1])


def gene_correlation(pairs: Iterable[tuple[Expression, Expression]], genes: Sequence[str]) -> GeneCorrelation:
    """Correlate every pair of two or more genes over the spots of one or more sections.

    `pairs` are truth and prediction of each section, both (spots, genes) log-normalised expression with columns in the
    order of `genes`. One section is in memory at a time when this is a generator.
    """
    size, spots = len(genes), 0
    if size < 2:
        raise TooFew("genes", size, 2, "take a larger gene set")
    scatter = np.zeros((2, size, size))
    largest = np.zeros((2, size))
    for truth, prediction in pairs:
        if truth.shape != prediction.shape or truth.shape[1] != size:
            raise ShapeMismatch("The prediction", want=(truth.shape[0], size), got=prediction.shape)
        spots += truth.shape[0]
        both: tuple[Any, Any] = truth, prediction
        for i, values in enumerate(both):
            dense = np.asarray(values.todense() if sparse.issparse(values) else values, dtype=np.float64)
            largest[i] = np.maximum(largest[i], np.abs(dense).max(axis=0, initial=0.0))
            centred = dense - dense.mean(axis=0)
            scatter[i] += centred.T @ centred
    if spots < 3:
        raise TooFew("spots", spots, 3, "give sections with more spots")
    # From covariance to correlation; NaN for a gene whose deviation is nothing but rounding.
    spread = np.sqrt(np.diagonal(scatter, axis1=1, axis2=2))
    spread = np.where(spread <= 1e-6 * np.sqrt(spots) * largest, np.nan, spread)
    return GeneCorrelation(tuple(genes), *np.clip(scatter / spread[:, :, None] / spread[:, None, :], -1, 1))


NEAREST = 10
"""Free genes of nearest mean from which each partner is drawn."""


def matched_sets(
    sets: Mapping[str, Sequence[str]], means: Mapping[str, float], seed: int
) -> dict[str, tuple[str, ...]]:
    """For each gene of each set, a gene of similar mean from outside the set.

    Highly variable genes are also highly expressed ones, and those are measured with less noise: part of their score
    is their level. The set's score minus that of its match is the part that is not.

    Genes take their turn in a seeded random order; each draws from the ten free genes of nearest mean. `means` is the
    mean expression of every gene over the TRAINING spots; its genes are the candidates.

    Returns
    -------
    dict
        "matched NAME" for each set NAME, as long as the set and in its order, every gene once and none of the set.

    Raises
    ------
    UnknownName
        A gene of a set has no mean.
    TooFew
        Fewer genes are outside a set than inside, as in a set of all genes.
    """
    genes = list(means)
    mean = np.array([means[gene] for gene in genes], np.float64)
    column = {gene: i for i, gene in enumerate(genes)}
    matched: dict[str, tuple[str, ...]] = {}
    for number, (name, members) in enumerate(sets.items()):
        missing = [gene for gene in members if gene not in column]
        if missing:
            raise UnknownName("mean of gene", missing[0], genes)
        free = np.ones(len(genes), bool)
        free[[column[gene] for gene in members]] = False
        if free.sum() < len(members):
            hint = "match a smaller set, or give the means of more genes"
            raise TooFew(f"genes outside the set {name}", int(free.sum()), len(members), hint)
        rng = np.random.default_rng([seed, number])
        partner: dict[str, str] = {}
        for turn in rng.permutation(len(members)):
            gene = members[int(turn)]
            candidates = np.flatnonzero(free)
            apart = np.abs(mean[candidates] - mean[column[gene]])
            near = candidates[np.argsort(apart, kind="stable")[:NEAREST]]
            drawn = int(near[rng.integers(len(near))])
            free[drawn] = False
            partner[gene] = genes[drawn]
        matched[f"matched {name}"] = tuple(partner[gene] for gene in members)
    return matched
