"""Whether a prediction keeps which genes go together: gene-gene correlation, measured against predicted.

Correlations are of spots within sections: each gene's mean over its section is taken off first, so that a difference
between sections (batch, depth) makes no pair of genes correlate.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from cmrcnet.errors import ShapeMismatch, TooFew

Expression = np.ndarray | sparse.spmatrix

_MOST_LABELS = 60
"""Genes up to which the figure names them."""


@dataclass(frozen=True, eq=False)
class GeneCorrelation:
    """Correlation of every pair of genes, measured and predicted.

    Parameters
    ----------
    genes : tuple of str
    truth, prediction : numpy.ndarray, shape (genes, genes), float64
        Pearson's correlation over spots; NaN in the row and column of a gene that is constant.
    """

    genes: tuple[str, ...]
    truth: np.ndarray
    prediction: np.ndarray

    @property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Correlations of the pairs that are defined in both: measured, predicted; each pair once."""
        upper = np.triu_indices(len(self.genes), 1)
        truth, prediction = self.truth[upper], self.prediction[upper]
        defined = np.isfinite(truth) & np.isfinite(prediction)
        return truth[defined], prediction[defined]

    @property
    def n_undefined(self) -> int:
        """Pairs that are not defined in both, because a gene is constant."""
        return len(self.genes) * (len(self.genes) - 1) // 2 - len(self.pairs[0])

    @property
    def frobenius(self) -> float:
        """Frobenius norm of the difference of the two matrices, over the pairs that are defined in both.

        ``sqrt(2 * sum over pairs (t - p)^2)``; it grows with the number of genes. NaN without a pair.
        """
        truth, prediction = self.pairs
        return float(np.sqrt(2 * ((truth - prediction) ** 2).sum())) if len(truth) else float("nan")

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
    """Correlate every pair of genes over the spots of one or more sections.

    Parameters
    ----------
    pairs : iterable of (truth, prediction)
        Of each section, both (spots, genes) log-normalised expression with columns in the order of `genes`. One section
        is in memory at a time when this is a generator.
    genes : sequence of str
        A gene set of two or more; the matrices have its length squared.

    Returns
    -------
    GeneCorrelation

    Raises
    ------
    ShapeMismatch, TooFew
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
        for i, values in enumerate((truth, prediction)):
            dense = np.asarray(values.todense() if sparse.issparse(values) else values, dtype=np.float64)
            largest[i] = np.maximum(largest[i], np.abs(dense).max(axis=0, initial=0.0))
            centred = dense - dense.mean(axis=0)
            scatter[i] += centred.T @ centred
    if spots < 3:
        raise TooFew("spots", spots, 3, "give sections with more spots")
    return GeneCorrelation(
        tuple(genes), *(_scaled(each, most, spots) for each, most in zip(scatter, largest, strict=True))
    )


def cluster_order(correlation: np.ndarray) -> np.ndarray:
    """An order of the genes in which those that go together stand together.

    Average linkage on the distance ``1 - correlation`` with the leaves in optimal order (scipy); undefined pairs count
    as uncorrelated.

    Parameters
    ----------
    correlation : numpy.ndarray, shape (genes, genes)

    Returns
    -------
    numpy.ndarray of int, shape (genes,)
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(correlation) < 3:
        return np.arange(len(correlation))
    distance = 1 - np.nan_to_num(correlation, nan=0.0)
    distance = np.clip((distance + distance.T) / 2, 0, 2)
    np.fill_diagonal(distance, 0.0)
    return leaves_list(linkage(squareform(distance, checks=False), "average", optimal_ordering=True))


def gene_correlation_png(found: GeneCorrelation, *, title: str = "") -> bytes:
    """Two heat-maps side by side, both in the order into which the MEASURED correlations cluster.

    Parameters
    ----------
    found : GeneCorrelation
    title : str
        Above the picture; such as the gene set and the method.

    Returns
    -------
    bytes
        A PNG. Undefined pairs are grey; the colours run from -1 to 1 in both.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    order = cluster_order(found.truth)
    colours = mpl.colormaps["RdBu_r"].with_extremes(bad="#b8b8b8")
    drawing = Figure(figsize=(9.2, 4.6), dpi=120, layout="constrained")
    FigureCanvasAgg(drawing)
    panels = drawing.subplots(1, 2)
    names = [found.genes[i] for i in order]
    shown = f"predicted\ncorrelation of correlations {found.agreement:.2f}, RMS error {found.rms:.2f}"
    for axes, values, name in zip(panels, (found.truth, found.prediction), ("measured\n", shown), strict=True):
        image = axes.imshow(values[np.ix_(order, order)], cmap=colours, vmin=-1, vmax=1, interpolation="nearest")
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_xticks([])
        labelled = range(len(names)) if len(names) <= _MOST_LABELS else []
        axes.set_yticks(list(labelled), [names[i] for i in labelled], fontsize=max(3.5, min(8, 240 / len(names))))
        axes.tick_params(length=0)
    drawing.colorbar(image, ax=panels, label="Pearson over spots", shrink=0.8)
    if title:
        drawing.suptitle(title, fontsize=11, x=0.01, ha="left")
    out = io.BytesIO()
    drawing.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _scaled(scatter: np.ndarray, largest: np.ndarray, spots: int) -> np.ndarray:
    """Covariance to correlation; NaN for a gene whose deviation is nothing but rounding."""
    spread = np.sqrt(np.diagonal(scatter).copy())
    spread[spread <= 1e-6 * np.sqrt(spots) * largest] = np.nan
    correlation = np.clip(scatter / spread[:, None] / spread[None, :], -1, 1)
    return correlation
