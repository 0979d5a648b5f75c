"""What CMRCNet has to beat, on the same folds, genes and frozen features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from cmrcnet.evaluation.methods.frozen_features import PooledFeatures
from cmrcnet.evaluation.methods.method import Location, Prediction, TrainingData
from cmrcnet.evaluation.methods.validation_choice import hvg_of, validation_scores
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import Slide
from cmrcnet.storage.hashing import fingerprint

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

COMPONENTS = 256
PENALTIES = tuple(float(10.0**power) for power in np.arange(0, 6.5, 0.5))
SAME = 0.001
"""Validation scores that count as the same: Pearson does not feel shrinkage, MSE does, so the smaller penalty is
taken."""
_GENES_AT_A_TIME = 2_000

Look = Callable[[PooledFeatures, Slide, Spots], np.ndarray]
"""Takes one kind of feature at some locations: (spots, dim)."""


class GeneMean:
    """Every gene's mean over the training spots, the same everywhere: its correlation is undefined, its MSE is not."""

    name = "gene-mean"
    about = "each gene's training mean, the same at every spot; a constant, so its correlation is undefined"

    def fit(self, training: TrainingData) -> Constant:
        """Average the training spots."""
        return Constant(training.genes, np.asarray(training.expression.mean(axis=0), np.float32).ravel())


@dataclass(frozen=True, eq=False)
class Constant:
    """One level a gene."""

    genes: tuple[str, ...]
    level: np.ndarray
    record: dict[str, Any] = field(default_factory=dict)

    def predict(self, place: Location) -> Prediction:
        """The level, at every spot."""
        return Prediction(self.genes, np.tile(self.level, (len(place.spots), 1)))


class RandomSpots:
    """The mean of k training spots drawn at random for each spot: retrieval that looks at nothing."""

    name = "random-k"
    about = "mean of k training spots drawn at random for each spot: retrieval without looking"

    def fit(self, training: TrainingData) -> Draw:
        """Keep the training expression."""
        return Draw(training)


class Draw:
    """Draws training spots."""

    def __init__(self, training: TrainingData) -> None:
        self._expression, self._genes, self._seed = training.expression, training.genes, training.seed
        self._k = min(training.config.head.k, self._expression.shape[0])
        self.record: dict[str, Any] = {"k": self._k}

    def predict(self, place: Location) -> Prediction:
        """Average k random rows a spot; the same rows for the same section and seed."""
        from scipy import sparse

        rng = np.random.default_rng([self._seed, int(fingerprint(place.section)[:8], 16)])
        n, bank = len(place.spots), self._expression.shape[0]
        ids = np.stack([rng.choice(bank, self._k, replace=False) for _ in range(n)])
        weights = sparse.csr_matrix(
            (np.full(ids.size, 1 / self._k, np.float32), ids.ravel(), np.arange(0, ids.size + 1, self._k)), (n, bank)
        )
        return Prediction(self._genes, np.asarray((weights @ self._expression).todense(), np.float32))


class RidgeOnFeatures:
    """Ridge regression on the same frozen features: standardised, PCA to 256, one penalty for all genes.

    The probe of HEST-Bench (Jaume et al., NeurIPS 2024, arXiv 2406.16192: PCA to 256 components, ridge), except
    that the penalty is chosen: each training unit (patient, or section where that is left out, or where there is one
    patient) is held in once, and the penalty of the highest mean Pearson over the training HVG, averaged over units,
    is taken; among equals (within 0.001) the smallest. With a single training section there is nothing to hold in; the
    middle of the grid is taken.
    """

    name = "ridge"
    about = (
        "ridge regression on the same frozen features (mean token, standardised, PCA-256; after HEST-Bench's probe), "
        "its penalty chosen on validation training units"
    )

    def fit(self, training: TrainingData) -> Linear:
        """Choose the penalty, then fit every gene on all training spots."""
        penalty, tried = choose_penalty(training)
        record = {"penalty": penalty, "validation_pearson": tried}
        return Linear(training, penalty, record)


class Linear:
    """A fitted ridge, one set of weights a gene; on the frozen features, or on another look at the same locations."""

    def __init__(
        self, training: TrainingData, penalty: float, record: dict[str, Any], look: Look | None = None
    ) -> None:
        from sklearn.linear_model import Ridge

        self.record = record
        self._genes, self._look = training.genes, look
        seen = looked_at(training, look)
        self._reduce = reduction(seen, training.seed)
        inputs = self._reduce.transform(seen)
        expression = training.expression.tocsc()
        self._parts = [  # in blocks, so that the training expression is never dense as a whole
            Ridge(alpha=penalty).fit(inputs, np.asarray(expression[:, start : start + _GENES_AT_A_TIME].todense()))
            for start in range(0, len(self._genes), _GENES_AT_A_TIME)
        ]

    def predict(self, place: Location) -> Prediction:
        """Weights times features."""
        seen = place.pooled() if self._look is None else self._look(place.features, place.slide, place.spots)
        inputs = self._reduce.transform(seen)
        blocks = [part.predict(inputs).reshape(len(inputs), -1) for part in self._parts]
        return Prediction(self._genes, np.concatenate(blocks, axis=1).astype(np.float32))


def looked_at(training: TrainingData, look: Look | None = None) -> np.ndarray:
    """One kind of feature of every training spot, rows as in `training.expression`; the frozen features by default."""
    if look is None:
        return training.pooled
    return np.concatenate([look(training.features, section.slide, section.spots) for section in training.cohort])


def reduction(features: np.ndarray, seed: int) -> Pipeline:
    """Standardise, then PCA to at most 256 components; fitted on `features` (spots, dim)."""
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    components = min(COMPONENTS, features.shape[1], features.shape[0] - 1)
    return make_pipeline(StandardScaler(), PCA(components, random_state=seed)).fit(features)


def choose_penalty(training: TrainingData, look: Look | None = None) -> tuple[float, dict[str, float]]:
    """The penalty that predicts validation training units best, and the mean validation HVG Pearson of each tried.

    Inside each inner split the standardisation and the PCA are fitted on the other units only.
    """
    from sklearn.linear_model import Ridge

    features, targets = looked_at(training, look), hvg_of(training)

    def guesses(inside: np.ndarray) -> dict[float, np.ndarray]:
        reduce = reduction(features[inside], training.seed)
        seen, unseen = reduce.transform(features[inside]), reduce.transform(features[~inside])
        return {penalty: Ridge(alpha=penalty).fit(seen, targets[inside]).predict(unseen) for penalty in PENALTIES}

    means = validation_scores(training, guesses)
    if not means:
        return PENALTIES[len(PENALTIES) // 2], {}
    best = min(penalty for penalty in PENALTIES if means[penalty] >= max(means.values()) - SAME)
    return best, {f"{penalty:g}": value for penalty, value in means.items()}
