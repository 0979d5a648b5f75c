"""Sequencing depth as the only feature: how much of a score is depth."""

from __future__ import annotations

import numpy as np

from cmrcnet.errors import BadOption
from cmrcnet.evaluation.methods.method import DiagnosticLocation, Location, Prediction, TrainingData, log_depth_of


class DepthNull:
    """A straight line from a spot's log depth to each gene, fitted by least squares on the training spots.

    It is told the depth of the TEST spots (`DiagnosticLocation`), which no slide shows: no method, but a measure of how
    far log-normalised targets hang on depth and cell density. Source: none; a diagnostic of ours.
    """

    name = "depth-null"
    about = "diagnostic null: each gene from the spot's own sequencing depth, which no method may know"
    diagnostic = True

    def fit(self, training: TrainingData) -> Line:
        """Slope ``cov(depth, gene) / var(depth)``, and the level at the mean depth."""
        depth = np.concatenate([log_depth_of(section) for section in training.cohort])
        centred = depth - depth.mean()
        variance = float((centred**2).mean())
        slope = (training.expression.T @ centred) / len(depth) / variance if variance > 0 else 0 * depth[:1]
        level = np.asarray(training.expression.mean(axis=0), np.float64).ravel()
        return Line(training.genes, float(depth.mean()), np.broadcast_to(slope, level.shape), level)


class Line:
    """One line a gene."""

    def __init__(self, genes: tuple[str, ...], middle: float, slope: np.ndarray, level: np.ndarray) -> None:
        self._genes, self._middle, self._slope, self._level = genes, middle, slope, level
        self.record = {"mean_log_depth": middle}

    def predict(self, place: Location) -> Prediction:
        """Level plus slope times depth."""
        if not isinstance(place, DiagnosticLocation):
            raise BadOption("depth-null", "a location without depth", "a measured section: this null predicts no slide")
        mean = self._level + (place.log_depth[:, None] - self._middle) * self._slope
        return Prediction(self._genes, mean.astype(np.float32))
