"""Controls that see no pixel: the gene mean, random spots, the position in the section, the sequencing depth."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadOption
from cmrcnet.evaluation import Sparse
from cmrcnet.evaluation.methods.baselines import hvg_of, validation_scores
from cmrcnet.evaluation.methods.method import DiagnosticLocation, FoldData, Location, Prediction, log_depth_of
from cmrcnet.slides.section import Spots
from cmrcnet.storage.hashing import fingerprint

NEIGHBOURS = (5, 10, 20, 50, 100, 200)


class GeneMean:
    """Every gene's mean over the training spots, the same everywhere: its correlation is undefined, its MSE is not."""

    name = "gene-mean"
    about = "each gene's training mean, the same at every spot; a constant, so its correlation is undefined"

    def fit(self, training: FoldData) -> Constant:
        """Average the training spots."""
        return Constant(training.genes, np.asarray(training.expression.mean(axis=0), np.float32).ravel())


@dataclass(frozen=True, eq=False)
class Constant:
    """One level a gene."""

    genes: tuple[str, ...]
    level: np.ndarray
    record: dict[str, Any] = field(default_factory=dict)

    def predict(self, location: Location) -> Prediction:
        """The level, at every spot."""
        return Prediction(self.genes, np.tile(self.level, (len(location.spots), 1)))


class RandomSpots:
    """The mean of k training spots drawn at random for each spot: retrieval that looks at nothing."""

    name = "random-k"
    about = "mean of k training spots drawn at random for each spot: retrieval without looking"

    def fit(self, training: FoldData) -> RandomMean:
        """Keep the training expression."""
        k = min(training.config.head.k, training.expression.shape[0])
        return RandomMean(training.genes, training.expression, k, training.seed, {"k": k})


@dataclass(frozen=True, eq=False)
class RandomMean:
    """Means of `k` random rows of the training expression."""

    genes: tuple[str, ...]
    expression: Sparse
    k: int
    seed: int
    record: dict[str, Any]

    def predict(self, location: Location) -> Prediction:
        """Average k random rows a spot; the same rows for the same section and seed."""
        rng = np.random.default_rng([self.seed, int(fingerprint(location.section)[:8], 16)])
        bank = self.expression.shape[0]
        ids = np.stack([rng.choice(bank, self.k, replace=False) for _ in range(len(location.spots))])
        return Prediction(self.genes, np.asarray((even_weights(ids, bank) @ self.expression).todense(), np.float32))


class CoordinatesKNN:
    """Mean of the k training spots that are nearest in a frame which all sections share.

    Each section's coordinates are centred on their mean and divided by their root mean square distance from it; k is
    chosen on validation groups. It sees no pixel. Source: none; a diagnostic of ours. Where it scores well, sections
    look alike from above (serial sections, an organ cut in the same plane), and part of every score may be position.
    """

    name = "coordinates-knn"
    about = "diagnostic: mean of the training spots nearest by position in the section (centred and scaled), no pixels"

    def fit(self, training: FoldData) -> NearestMean:
        """Choose k, and keep the training spots' locations."""
        frame = np.concatenate([in_frame(section.spots) for section in training.cohort])
        targets = hvg_of(training)

        def guesses(inside: np.ndarray) -> dict[int, np.ndarray]:
            possible = [k for k in NEIGHBOURS if k <= inside.sum()] or [int(inside.sum())]
            return {k: nearest(frame[inside], frame[~inside], k) @ targets[inside] for k in possible}

        tried = validation_scores(training, guesses)
        k = max(tried, key=lambda each: tried[each]) if tried else min(NEIGHBOURS[2], len(frame))
        record = {"k": k, "validation_pearson": {str(each): value for each, value in tried.items()}}
        return NearestMean(training.genes, training.expression, frame, k, record)


@dataclass(frozen=True, eq=False)
class NearestMean:
    """Means of the `k` training spots that are nearest in the shared frame (spots, 2)."""

    genes: tuple[str, ...]
    expression: Sparse
    frame: np.ndarray
    k: int
    record: dict[str, Any]

    def predict(self, location: Location) -> Prediction:
        """Average the k nearest."""
        weights = nearest(self.frame, in_frame(location.spots), self.k)
        return Prediction(self.genes, np.asarray((weights @ self.expression).todense(), np.float32))


def in_frame(spots: Spots) -> np.ndarray:
    """Coordinates minus their mean, over their root mean square distance from it: (spots, 2) float64."""
    centred = spots.centre_px - spots.centre_px.mean(axis=0)
    reach = np.sqrt((centred**2).sum(axis=1).mean())
    return centred / (reach if reach > 0 else 1.0)


def nearest(bank: np.ndarray, queries: np.ndarray, k: int) -> Sparse:
    """Weights (queries, bank) of the k nearest, 1/k each."""
    from scipy.spatial import KDTree

    return even_weights(KDTree(bank).query(queries, k=k)[1].reshape(len(queries), k), len(bank))


def even_weights(ids: np.ndarray, bank: int) -> Sparse:
    """Sparse weights (rows, bank) that average the rows `ids` (rows, k) of a bank."""
    rows, k = ids.shape
    weights = np.full(ids.size, 1 / k, np.float32)
    return sparse.csr_matrix((weights, ids.ravel(), np.arange(0, ids.size + 1, k)), (rows, bank))


class DepthNull:
    """A straight line from a spot's log depth to each gene, fitted by least squares on the training spots.

    It is told the depth of the TEST spots (`DiagnosticLocation`), which no slide shows: no method, but a measure of how
    far log-normalised targets hang on depth and cell density. Source: none; a diagnostic of ours.
    """

    name = "depth-null"
    about = "diagnostic null: each gene from the spot's own sequencing depth, which no method may know"
    diagnostic = True

    def fit(self, training: FoldData) -> DepthLine:
        """Slope ``cov(depth, gene) / var(depth)``, and the level at the mean depth."""
        depth = np.concatenate([log_depth_of(section) for section in training.cohort])
        centred = depth - depth.mean()
        variance = float((centred**2).mean())
        slope = (training.expression.T @ centred) / len(depth) / variance if variance > 0 else 0 * depth[:1]
        level = np.asarray(training.expression.mean(axis=0), np.float64).ravel()
        slope, middle = np.broadcast_to(slope, level.shape), float(depth.mean())
        return DepthLine(training.genes, middle, slope, level, {"mean_log_depth": middle})


@dataclass(frozen=True, eq=False)
class DepthLine:
    """One line a gene: `level` (genes,) at the log depth `middle`, and `slope` (genes,)."""

    genes: tuple[str, ...]
    middle: float
    slope: np.ndarray
    level: np.ndarray
    record: dict[str, Any]

    def predict(self, location: Location) -> Prediction:
        """Level plus slope times depth."""
        if not isinstance(location, DiagnosticLocation):
            raise BadOption("depth-null", "a location without depth", "a measured section: this null predicts no slide")
        mean = self.level + (location.log_depth[:, None] - self.middle) * self.slope
        return Prediction(self.genes, mean.astype(np.float32))
