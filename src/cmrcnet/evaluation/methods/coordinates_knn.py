"""Nearest training spots by place alone: how far the position in the section explains a score."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from cmrcnet.evaluation.methods.method import Location, Prediction, TrainingData
from cmrcnet.evaluation.methods.validation_choice import hvg_of, validation_scores
from cmrcnet.slides.section import Spots

NEIGHBOURS = (5, 10, 20, 50, 100, 200)


class CoordinatesKNN:
    """Mean of the k training spots that are nearest in a frame which all sections share.

    Each section's coordinates are centred on their mean and divided by their root mean square distance from it; k is
    chosen on validation units. It sees no pixel. Source: none; a diagnostic of ours. Where it scores well, sections
    look
    alike from above (serial sections, an organ cut in the same plane), and part of every score may be position.
    """

    name = "coordinates-knn"
    about = "diagnostic: mean of the training spots nearest by position in the section (centred and scaled), no pixels"

    def fit(self, training: TrainingData) -> Nearby:
        """Choose k, and keep the training spots' locations."""
        frame = np.concatenate([in_frame(section.spots) for section in training.cohort])
        targets = hvg_of(training)

        def guesses(inside: np.ndarray) -> dict[int, np.ndarray]:
            possible = [k for k in NEIGHBOURS if k <= inside.sum()] or [int(inside.sum())]
            return {k: nearest(frame[inside], frame[~inside], k) @ targets[inside] for k in possible}

        tried = validation_scores(training, guesses)
        k = max(tried, key=lambda each: tried[each]) if tried else min(NEIGHBOURS[2], len(frame))
        record = {"k": k, "validation_pearson": {str(each): value for each, value in tried.items()}}
        return Nearby(training, frame, k, record)


class Nearby:
    """Training spots in the shared frame."""

    def __init__(self, training: TrainingData, frame: np.ndarray, k: int, record: dict[str, Any]) -> None:
        self.record = record
        self._genes, self._expression, self._frame, self._k = training.genes, training.expression, frame, k

    def predict(self, place: Location) -> Prediction:
        """Average the k nearest."""
        weights = nearest(self._frame, in_frame(place.spots), self._k)
        return Prediction(self._genes, np.asarray((weights @ self._expression).todense(), np.float32))


def in_frame(spots: Spots) -> np.ndarray:
    """Coordinates minus their mean, over their root mean square distance from it: (spots, 2) float64."""
    centred = spots.centre_px - spots.centre_px.mean(axis=0)
    reach = np.sqrt((centred**2).sum(axis=1).mean())
    return centred / (reach if reach > 0 else 1.0)


def nearest(bank: np.ndarray, queries: np.ndarray, k: int) -> sparse.csr_matrix:
    """Weights (queries, bank) of the k nearest, 1/k each."""
    from scipy.spatial import cKDTree

    ids = cKDTree(bank).query(queries, k=k)[1].reshape(len(queries), k)
    ends = np.arange(0, ids.size + 1, k)
    return sparse.csr_matrix((np.full(ids.size, 1 / k, np.float32), ids.ravel(), ends), (len(queries), len(bank)))
