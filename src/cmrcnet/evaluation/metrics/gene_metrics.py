"""Scores of each gene: correlation, error, ranks, detection, structural similarity; and pooled over sections.

A correlation is undefined where the truth or the prediction is constant over the section. Such genes are counted
beside every mean, and either left out of it ("skip") or taken as 0 ("zero").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from scipy import sparse
from scipy.spatial import KDTree
from scipy.stats import rankdata

from cmrcnet.errors import ShapeMismatch
from cmrcnet.evaluation import Frame, Sparse
from cmrcnet.genes.gene_sets import EVERYTHING
from cmrcnet.genes.spatial_stats import SpotLattice, pearson_per_gene, varies

Undefined = Literal["skip", "zero"]
METRICS = (
    "pearson", "mse", "mae", "r2", "variance_ratio", "detection_auc", "moran_error", "spearman", "ssim",
)  # fmt: skip
"""Metrics that each gene of a section has, in the order of the tables."""
NAMED_SETS_ONLY = ("spearman", "ssim")
"""Costly metrics: worked out for genes of named sets, NaN for the others, and not given for the set of all genes."""
ZERO_WITHOUT_SKILL = ("pearson", "spearman")
"""Where undefined may count as 0. Of an error, 0 would say that an undefined gene was predicted perfectly."""
_GENES_AT_A_TIME = 2_000  # bounds the memory of a section with many spots


def score_genes(truth: Sparse | np.ndarray, guess: np.ndarray, genes: Sequence[str]) -> Frame:
    """Score each gene of one section: log-normalised expression, measured and predicted, both (spots, genes).

    Returns
    -------
    pandas.DataFrame
        One row a gene: `gene`, `pearson` (nan where undefined), `mse`, and of the truth its `mean`, `variance` and
        `detected` (share of spots where it is above 0). Then `mae`; `r2`, which is ``1 - squared error / squared
        distance from the gene's mean in this section``, so the unknown mean counts too; `variance_ratio`, predicted by
        true variance over spots, below 1 for a prediction that is too smooth; `detection_auc` (see the function).
        `r2` and `variance_ratio` are nan where the truth is constant.
    """
    import pandas as pd

    if truth.shape != guess.shape or truth.shape[1] != len(genes):
        raise ShapeMismatch("The prediction", want=(truth.shape[0], len(genes)), got=guess.shape)
    truth = sparse.csc_matrix(truth) if sparse.issparse(truth) else truth
    chunks: list[dict[str, np.ndarray]] = []
    for start in range(0, max(1, len(genes)), _GENES_AT_A_TIME):
        chunk = slice(start, start + _GENES_AT_A_TIME)
        true: Any = truth[:, chunk]
        true = np.asarray(true.todense() if sparse.issparse(true) else true, dtype=np.float64)
        chunks.append(_score_chunk(true, np.asarray(guess[:, chunk], dtype=np.float64)))
    return pd.DataFrame({"gene": list(genes)} | {name: np.concatenate([b[name] for b in chunks]) for name in chunks[0]})


def _score_chunk(true: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    error, varying = predicted - true, varies(true)
    mse, variance = (error**2).mean(axis=0), true.var(axis=0)
    out = np.full(len(mse), np.nan)
    return {
        "pearson": pearson_per_gene(true, predicted),
        "mse": mse,
        "mean": true.mean(axis=0),
        "variance": variance,
        "detected": (true > 0).mean(axis=0),
        "mae": np.abs(error).mean(axis=0),
        "r2": 1 - np.divide(mse, variance, out=out.copy(), where=varying),
        "variance_ratio": np.divide(predicted.var(axis=0), variance, out=out.copy(), where=varying),
        "detection_auc": detection_auc(true > 0, predicted),
    }


def over_genes(values: np.ndarray, undefined: Undefined = "skip") -> tuple[float, int, int]:
    """Mean over genes (nan without a defined one under "skip"), number of genes, and how many were undefined."""
    values = np.asarray(values, dtype=np.float64)
    missing = np.isnan(values)
    if undefined == "zero":
        values = np.where(missing, 0.0, values)
    kept = values[~np.isnan(values)]
    return (float(kept.mean()) if len(kept) else float("nan")), len(values), int(missing.sum())


def score_sets(table: Frame, sets: Mapping[str, Sequence[str]], undefined: Undefined = "skip") -> list[dict[str, Any]]:
    """Average one section's gene table over gene sets.

    Genes of a set that the section did not measure are not in `table` and are not counted in `n_genes`. Metrics that
    `table` lacks are left out. `undefined` is about correlations; elsewhere undefined genes are always skipped.
    """
    by_gene = table.set_index("gene")
    rows: list[dict[str, Any]] = []
    for name, members in sets.items():
        chosen = by_gene.loc[[gene for gene in members if gene in by_gene.index]]
        for metric in METRICS:
            if metric not in chosen or (name == EVERYTHING and metric in NAMED_SETS_ONLY):
                continue
            as_what = undefined if metric in ZERO_WITHOUT_SKILL else "skip"
            rows.append(set_row(name, metric, *over_genes(chosen[metric].to_numpy(), as_what)))
    return rows


def set_row(name: str, metric: str, value: float, n_genes: int, n_undefined: int) -> dict[str, Any]:
    """One score of a gene set."""
    return {"gene_set": name, "metric": metric, "value": value, "n_genes": n_genes, "n_undefined": n_undefined}


def spearman_per_gene(truth: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of each gene over spots: Pearson's of the ranks, ties sharing their mean rank.

    From (spots, genes) to (genes,) float64; NaN where truth or prediction is constant or not finite.
    """
    if truth.shape != guess.shape:
        raise ShapeMismatch("guess", want=truth.shape, got=guess.shape)
    return pearson_per_gene(_ranks(truth), _ranks(guess))


def detection_auc(detected: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """Chance that a spot where the gene was counted is predicted higher than one where it was not, ties half.

    The area under the ROC curve of "count above 0" by the predicted value, from ranks:
    ``(sum of the detected spots' ranks - n1 (n1 + 1) / 2) / (n1 n0)`` (Mann and Whitney 1947; Hanley and McNeil,
    "The meaning and use of the area under a ROC curve", Radiology 1982).

    From (spots, genes) to (genes,) float64: 0.5 for a constant prediction; NaN where the gene was counted in every spot
    or in none, or the prediction is not finite.
    """
    if detected.shape != guess.shape:
        raise ShapeMismatch("guess", want=detected.shape, got=guess.shape)
    spots = len(detected)
    positive = detected.sum(axis=0).astype(np.float64)
    result = np.full(detected.shape[1], np.nan)
    mixed = np.flatnonzero((positive > 0) & (positive < spots))
    if len(mixed) == 0:
        return result
    ranks, n1 = _ranks(guess[:, mixed]), positive[mixed]
    above = np.einsum("ng,ng->g", ranks, detected[:, mixed].astype(np.float64)) - n1 * (n1 + 1) / 2
    result[mixed] = above / (n1 * (spots - n1))
    return result


def _ranks(block: np.ndarray) -> np.ndarray:
    """Ranks down each column from 1; NaN throughout a column that holds a value that is not finite."""
    ranks = rankdata(block, axis=0).astype(np.float64) if len(block) else np.zeros(block.shape)
    ranks[:, ~np.isfinite(block).all(axis=0)] = np.nan
    return ranks


_SIGMA = 1.5
_REACH = 5  # 3.5 standard deviations, rounded: an 11 x 11 window
_K1, _K2 = 0.01, 0.03
_VALUES_AT_A_TIME = 1_000_000


def ssim_windows(lattice: SpotLattice) -> Sparse:
    """Weights (spots, spots) of the spots in the window around each spot, which sum to 1.

    A Gaussian of standard deviation 1.5 pitches, cut to 11 x 11 pitches. Locations of the window that hold no spot (off
    the tissue, beyond the edge) are left out and the others weigh accordingly more.
    """
    locations, spots = lattice.locations, len(lattice.locations)
    near = KDTree(locations).query_pairs(_REACH + 1e-6, p=np.inf, output_type="ndarray")
    weight = np.exp(-((locations[near[:, 0]] - locations[near[:, 1]]) ** 2).sum(axis=1) / (2 * _SIGMA**2))
    one_way = sparse.csr_matrix((weight, tuple(near.T)), shape=(spots, spots))
    windows = one_way + one_way.T + sparse.eye_array(spots)
    return sparse.csr_matrix(sparse.diags_array(1 / np.asarray(windows.sum(axis=1)).ravel()) @ windows)


def ssim_per_gene(truth: np.ndarray, guess: np.ndarray, windows: Sparse) -> np.ndarray:
    """Mean structural similarity of each gene's two maps.

    ``(2 mx my + C1)(2 sxy + C2) / ((mx^2 + my^2 + C1)(sxx + syy + C2))`` at each spot, from the means, variances and
    covariance of its window, then the mean over spots; ``C1 = (0.01 L)^2, C2 = (0.03 L)^2`` (Wang et al., "Image
    quality assessment: from error visibility to structural similarity", IEEE Transactions on Image Processing 2004).
    L, the range of values, is that of the gene's truth in this section. On a full square lattice, away from its edges,
    this equals `skimage.metrics.structural_similarity` with ``gaussian_weights=True, use_sample_covariance=False``.

    From (spots, genes) and `ssim_windows` to (genes,) float64: NaN where the truth is constant or a value is not
    finite; a constant prediction has a value.
    """
    if truth.shape != guess.shape:
        raise ShapeMismatch("guess", want=truth.shape, got=guess.shape)
    result = np.full(truth.shape[1], np.nan)
    step = max(1, _VALUES_AT_A_TIME // max(1, len(truth)))
    for start in range(0, truth.shape[1], step):
        part = slice(start, start + step)
        result[part] = _block(np.asarray(truth[:, part], np.float64), np.asarray(guess[:, part], np.float64), windows)
    return result


def _block(x: np.ndarray, y: np.ndarray, windows: Sparse) -> np.ndarray:
    defined = varies(x) & np.isfinite(y).all(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        c1, c2 = ((k * np.ptp(x, axis=0)) ** 2 for k in (_K1, _K2))
        mx, my = windows @ x, windows @ y
        sxx, syy, sxy = windows @ (x * x) - mx**2, windows @ (y * y) - my**2, windows @ (x * y) - mx * my
        maps = (2 * mx * my + c1) * (2 * sxy + c2) / ((mx**2 + my**2 + c1) * (sxx + syy + c2))
        return np.where(defined, maps.mean(axis=0), np.nan)


_CONSTANT = 1e-6  # as in genes.spatial_stats


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
        self._column = {gene: i for i, gene in enumerate(self.genes)}
        zeros = np.zeros(len(self.genes))
        self._n, self._mean = zeros.copy(), np.zeros((2, len(self.genes)))
        self._square, self._cross = np.zeros((2, len(self.genes))), zeros.copy()
        self._low = np.full((2, len(self.genes)), np.inf)
        self._high = -self._low

    def add(self, truth: np.ndarray | Sparse, guess: np.ndarray, genes: Sequence[str]) -> None:
        """Take in one section: truth and prediction (spots, genes), columns named by `genes`, among `self.genes`."""
        if truth.shape != guess.shape or truth.shape[1] != len(genes):
            raise ShapeMismatch("The prediction", want=(truth.shape[0], len(genes)), got=guess.shape)
        if not truth.shape[0]:
            return
        values: Any = truth
        values = values.tocsc() if sparse.issparse(values) else values
        step = max(1, 4_000_000 // truth.shape[0])
        for start in range(0, len(genes), step):
            part = slice(start, start + step)
            block = values[:, part]
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
