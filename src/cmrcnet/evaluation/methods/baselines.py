"""Ridge regression on frozen features, on poorer features, and as in HEST-Bench."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from cmrcnet.evaluation import Sparse
from cmrcnet.evaluation.methods.frozen_features import FeatureKind
from cmrcnet.evaluation.methods.method import FoldData, Location, Prediction
from cmrcnet.genes.spatial_stats import mean_pearson
from cmrcnet.heads.pca import COMPONENTS
from cmrcnet.heads.ridge import Ridge, ridge_path, ridge_solutions

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

Candidate = TypeVar("Candidate", bound=Hashable)


def hvg_of(training: FoldData) -> np.ndarray:
    """Log-normalised expression of the training HVG at every training spot: (spots, HVG) float32."""
    column = {gene: i for i, gene in enumerate(training.genes)}
    return np.asarray(training.expression[:, [column[gene] for gene in training.sets["HVG"]]].todense())


def section_pearson(truth: np.ndarray, guess: np.ndarray, section_of: np.ndarray) -> float:
    """`mean_pearson` as a score to choose by: 0 where nothing is defined."""
    score = mean_pearson(truth, guess, section_of)
    return 0.0 if np.isnan(score) else score


def validation_scores(
    training: FoldData, guesses: Callable[[np.ndarray], Mapping[Candidate, np.ndarray]]
) -> dict[Candidate, float]:
    """Score every candidate value of an option on each training group in turn.

    Parameters
    ----------
    guesses : callable
        Takes the mask (spots,) of the rows that may be learnt from; gives, for each candidate, its prediction of the
        training HVG at the other rows.

    Returns
    -------
    dict
        Candidate to validation HVG Pearson, mean over sections, then over groups. Empty with a single training group,
        where nothing can be held out for validation.
    """
    groups = list(dict.fromkeys(training.group_of))
    if len(groups) < 2:
        return {}
    truth = hvg_of(training)
    scores: dict[Candidate, list[float]] = {}
    for group in groups:
        inside = training.group_of != group
        for candidate, guess in guesses(inside).items():
            score = section_pearson(truth[~inside], guess, training.section_of[~inside])
            scores.setdefault(candidate, []).append(score)
    return {candidate: float(np.mean(values)) for candidate, values in scores.items()}


PENALTIES = tuple(float(10.0**power) for power in np.arange(0, 6.5, 0.5))
SAME = 0.001
"""Validation scores that count as the same: Pearson does not feel shrinkage, MSE does, so the smaller penalty is
taken."""

_GENES_AT_A_TIME = 2_000


@dataclass(frozen=True)
class RidgeOnFeatures:
    """Ridge regression on one kind of feature: standardised, PCA to 256, one penalty for all genes.

    The probe of HEST-Bench (Jaume et al., NeurIPS 2024, arXiv 2406.16192: PCA to 256 components, ridge), except
    that the penalty is chosen: each training group (patient, or section where that is left out, or where there is one
    patient) is held out once for validation, and the penalty of the highest mean Pearson over the training HVG,
    averaged over groups, is taken; among equals (within 0.001) the smallest. With a single training section nothing
    can be held out; the middle of the grid is taken.
    """

    name: str
    about: str
    kind: FeatureKind

    def fit(self, training: FoldData) -> FittedRidge:
        """Choose the penalty, then fit every gene on all training spots."""
        features = features_of(training, self.kind)
        penalty, tried = choose_penalty(training, features)
        return fit_ridge(training, self.kind, features, penalty, {"penalty": penalty, "validation_pearson": tried})


RIDGE = RidgeOnFeatures(
    "ridge",
    "ridge regression on the same frozen features (mean token, standardised, PCA-256; after HEST-Bench's probe), "
    "its penalty chosen on validation groups",
    "config",
)
PATCH_RIDGE = RidgeOnFeatures(
    "patch-ridge",
    "ridge on the encoder's last layer, one patch (HEST-Bench's features), penalty chosen on validation groups",
    "last",
)
"""The features of `hest-probe` with the penalty of `ridge`."""
COLOUR_RIDGE = RidgeOnFeatures(
    "colour-ridge",
    "ridge on the patch's colour only (mean, deviation, histogram of each channel), penalty chosen on validation "
    "groups",
    "colour",
)
"""A control of ours, on 54 statistics of each patch; a network must beat it."""
UNTRAINED_ENCODER = RidgeOnFeatures(
    "untrained-encoder",
    "ridge on the same encoder with random weights, penalty chosen on validation groups",
    "untrained",
)
"""A control of ours: what the training of the encoder earned is above its score."""


class HestProbe:
    """Last layer of the encoder, one patch a spot, mean token, PCA to 256, ridge with HEST-Bench's penalty.

    Source: HEST-1k (Jaume et al., NeurIPS 2024, arXiv 2406.16192). Its benchmark reduces to 256 components and takes
    the penalty ``100 / (components * genes)``, without an intercept, for 50 genes (README of the HEST library; issue
    144 there). That is hardly any penalty.

    Differs from the original: the features are standardised before the PCA; an intercept is fitted, so that the level
    of a gene is right (Pearson does not feel it); every gene is predicted, the number of genes in the penalty staying
    that of the scored set; the folds are those of the run.
    """

    name = "hest-probe"
    about = "HEST-Bench's probe: last layer, one patch, PCA-256, ridge with its own penalty 100 / (components x genes)"

    def fit(self, training: FoldData) -> FittedRidge:
        """Fit every gene on all training spots."""
        features = features_of(training, "last")
        penalty = hest_penalty(pca_size(features), training.config.evaluation.set_size)
        return fit_ridge(training, "last", features, penalty, {"penalty": penalty})


def hest_penalty(components: int, genes: int) -> float:
    """``100 / (components * genes)``, as HEST-Bench takes it."""
    return 100 / (components * genes)


@dataclass(frozen=True, eq=False)
class FittedRidge:
    """A fitted ridge on the principal components of one kind of feature, one set of weights a gene."""

    genes: tuple[str, ...]
    kind: FeatureKind
    pca: Pipeline
    ridges: list[Any]  # scikit-learn's, each of some genes
    record: dict[str, Any]

    def predict(self, location: Location) -> Prediction:
        """Weights times features."""
        inputs = self.pca.transform(location.features.of(location.slide, location.spots, self.kind))
        chunks = [ridge.predict(inputs).reshape(len(inputs), -1) for ridge in self.ridges]
        return Prediction(self.genes, np.concatenate(chunks, axis=1).astype(np.float32))


def fit_ridge(
    training: FoldData, kind: FeatureKind, features: np.ndarray, penalty: float, record: dict[str, Any]
) -> FittedRidge:
    """Fit every gene on the features (spots, dim) of all training spots, by scikit-learn in its float32."""
    from sklearn.linear_model import Ridge as SklearnRidge  # scores of ranks depend on the last digits of predictions

    pca = standardised_pca(features, training.seed)
    inputs, expression = pca.transform(features), training.expression.tocsc()
    ridges = [  # in chunks, so that the training expression is never dense as a whole
        SklearnRidge(alpha=penalty).fit(inputs, expression[:, start : start + _GENES_AT_A_TIME].toarray())
        for start in range(0, len(training.genes), _GENES_AT_A_TIME)
    ]
    return FittedRidge(training.genes, kind, pca, ridges, record)


def sparse_ridge(inputs: np.ndarray, expression: Sparse, penalty: float, *, standardise: bool = False) -> Ridge:
    """Ridge regression ``(X'X + penalty)^-1 X'Y`` on centred inputs (spots, dim), the expression (spots, genes) sparse.

    With `standardise`, the penalty is on the weights of inputs that are divided by their standard deviation.
    """
    inputs = inputs.astype(np.float64)
    centre, level = inputs.mean(axis=0), np.asarray(expression.mean(axis=0), np.float64).ravel()
    deviation = inputs.std(axis=0) if standardise else np.ones(inputs.shape[1])
    scale = np.where(deviation > 1e-8, deviation, 1.0)
    scaled = (inputs - centre) / scale  # centred, so centring the expression would change nothing here
    (weights,) = ridge_solutions(scaled.T @ scaled, np.asarray((expression.T @ scaled).T), (penalty,))
    weights = weights / scale[:, None]
    return Ridge(weights.astype(np.float32), (level - centre @ weights).astype(np.float32))


def features_of(training: FoldData, kind: FeatureKind) -> np.ndarray:
    """One kind of feature of every training spot, rows as in `training.expression`: (spots, dim)."""
    return np.concatenate([training.features.of(each.slide, each.spots, kind) for each in training.cohort])


def pca_size(features: np.ndarray) -> int:
    """Number of components that features (spots, dim) are reduced to."""
    return min(COMPONENTS, features.shape[1], features.shape[0] - 1)


def standardised_pca(features: np.ndarray, seed: int) -> Pipeline:
    """Standardise, then PCA to at most 256 components, neither whitened nor scaled; fitted on features (spots, dim)."""
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), PCA(pca_size(features), random_state=seed)).fit(features)


def choose_penalty(training: FoldData, features: np.ndarray) -> tuple[float, dict[str, float]]:
    """Choose the penalty that predicts validation groups best; with the mean validation HVG Pearson of each tried.

    Inside each inner split the standardisation and the PCA are fitted on the other groups only.
    """
    targets = hvg_of(training)

    def guesses(inside: np.ndarray) -> dict[float, np.ndarray]:
        pca = standardised_pca(features[inside], training.seed)
        inputs, others = pca.transform(features[inside]), pca.transform(features[~inside])
        ridges = ridge_path(inputs, targets[inside], [penalty / len(inputs) for penalty in PENALTIES])
        return {penalty: ridge.predict(others) for penalty, ridge in zip(PENALTIES, ridges, strict=True)}

    means = validation_scores(training, guesses)
    if not means:
        return PENALTIES[len(PENALTIES) // 2], {}
    best = min(penalty for penalty in PENALTIES if means[penalty] >= max(means.values()) - SAME)
    return best, {f"{penalty:g}": value for penalty, value in means.items()}
