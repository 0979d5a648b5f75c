"""Ridge regression on frozen features, on poorer features, and as in HEST-Bench."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from cmrcnet.evaluation.methods.frozen_features import PooledFeatures
from cmrcnet.evaluation.methods.method import FoldData, Location, Prediction
from cmrcnet.genes.spatial_stats import mean_pearson
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import Slide

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

Candidate = TypeVar("Candidate", bound=Hashable)


def hvg_of(training: FoldData) -> np.ndarray:
    """Log-normalised expression of the training HVG at every training spot: (spots, HVG) float32."""
    column = {gene: i for i, gene in enumerate(training.genes)}
    return np.asarray(training.expression[:, [column[gene] for gene in training.sets["HVG"]]].todense())


def section_pearson(truth: np.ndarray, guess: np.ndarray, section_of: np.ndarray) -> float:
    """`mean_pearson` as a score to choose by: 0 where nothing is defined.

    Parameters
    ----------
    truth, guess : array, shape (spots, genes)
    section_of : array, shape (spots,)
        Section name of each row.

    Returns
    -------
    float
    """
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


COMPONENTS = 256
PENALTIES = tuple(float(10.0**power) for power in np.arange(0, 6.5, 0.5))
SAME = 0.001
"""Validation scores that count as the same: Pearson does not feel shrinkage, MSE does, so the smaller penalty is
taken."""
_GENES_AT_A_TIME = 2_000

FeatureKind = Callable[[PooledFeatures, Slide, Spots], np.ndarray]
"""Takes one kind of feature at some locations: (spots, dim)."""


class RidgeOnFeatures:
    """Ridge regression on the same frozen features: standardised, PCA to 256, one penalty for all genes.

    The probe of HEST-Bench (Jaume et al., NeurIPS 2024, arXiv 2406.16192: PCA to 256 components, ridge), except
    that the penalty is chosen: each training group (patient, or section where that is left out, or where there is one
    patient) is held out once for validation, and the penalty of the highest mean Pearson over the training HVG,
    averaged over groups,
    is taken; among equals (within 0.001) the smallest. With a single training section there is nothing to hold in; the
    middle of the grid is taken.
    """

    name = "ridge"
    about = (
        "ridge regression on the same frozen features (mean token, standardised, PCA-256; after HEST-Bench's probe), "
        "its penalty chosen on validation groups"
    )

    def fit(self, training: FoldData) -> Linear:
        """Choose the penalty, then fit every gene on all training spots."""
        penalty, tried = choose_penalty(training)
        record = {"penalty": penalty, "validation_pearson": tried}
        return Linear(training, penalty, record)


class Linear:
    """A fitted ridge, one set of weights a gene; on the frozen features, or on another look at the same locations."""

    def __init__(
        self, training: FoldData, penalty: float, record: dict[str, Any], look: FeatureKind | None = None
    ) -> None:
        from sklearn.linear_model import Ridge

        self.record = record
        self._genes, self._look = training.genes, look
        seen = features_of(training, look)
        self._reduce = reduction(seen, training.seed)
        inputs = self._reduce.transform(seen)
        expression = training.expression.tocsc()
        self._parts = [  # in blocks, so that the training expression is never dense as a whole
            Ridge(alpha=penalty).fit(inputs, np.asarray(expression[:, start : start + _GENES_AT_A_TIME].todense()))
            for start in range(0, len(self._genes), _GENES_AT_A_TIME)
        ]

    def predict(self, location: Location) -> Prediction:
        """Weights times features."""
        seen = (
            location.pooled() if self._look is None else self._look(location.features, location.slide, location.spots)
        )
        inputs = self._reduce.transform(seen)
        blocks = [part.predict(inputs).reshape(len(inputs), -1) for part in self._parts]
        return Prediction(self._genes, np.concatenate(blocks, axis=1).astype(np.float32))


def features_of(training: FoldData, look: FeatureKind | None = None) -> np.ndarray:
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


def choose_penalty(training: FoldData, look: FeatureKind | None = None) -> tuple[float, dict[str, float]]:
    """The penalty that predicts validation groups best, and the mean validation HVG Pearson of each tried.

    Inside each inner split the standardisation and the PCA are fitted on the other groups only.
    """
    from sklearn.linear_model import Ridge

    features, targets = features_of(training, look), hvg_of(training)

    def guesses(inside: np.ndarray) -> dict[float, np.ndarray]:
        reduce = reduction(features[inside], training.seed)
        seen, unseen = reduce.transform(features[inside]), reduce.transform(features[~inside])
        return {penalty: Ridge(alpha=penalty).fit(seen, targets[inside]).predict(unseen) for penalty in PENALTIES}

    means = validation_scores(training, guesses)
    if not means:
        return PENALTIES[len(PENALTIES) // 2], {}
    best = min(penalty for penalty in PENALTIES if means[penalty] >= max(means.values()) - SAME)
    return best, {f"{penalty:g}": value for penalty, value in means.items()}


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

    def fit(self, training: FoldData) -> Linear:
        """Fit every gene on all training spots."""
        shape = training.expression.shape[0], last_layer_width(training)
        penalty = hest_penalty(min(COMPONENTS, shape[1], shape[0] - 1), training.config.evaluation.set_size)
        return Linear(training, penalty, {"penalty": penalty}, last_layer)


def hest_penalty(components: int, genes: int) -> float:
    """``100 / (components * genes)``, as HEST-Bench takes it."""
    return 100 / (components * genes)


def last_layer(features: PooledFeatures, slide: Slide, spots: Spots) -> np.ndarray:
    """Mean token of the encoder's last output, one patch a spot: (spots, dim) float32."""
    return features.last_layer(slide, spots)


def last_layer_width(training: FoldData) -> int:
    """Length of the last layer's mean token."""
    section = training.cohort.read(training.cohort.sections[0])
    return last_layer(training.features, section.slide, section.spots).shape[1]


class PatchRidge:
    """The features of `hest-probe` (last layer, one patch), with the penalty chosen on validation groups, as for
    `ridge`.

    Source: HEST-1k (Jaume et al., NeurIPS 2024, arXiv 2406.16192). Differs from its probe in the penalty, and in what
    `HestProbe` differs in.
    """

    name = "patch-ridge"
    about = "ridge on the encoder's last layer, one patch (HEST-Bench's features), penalty chosen on validation groups"

    def fit(self, training: FoldData) -> Linear:
        """Choose the penalty, then fit every gene."""
        penalty, tried = choose_penalty(training, last_layer)
        return Linear(training, penalty, {"penalty": penalty, "validation_pearson": tried}, last_layer)


class ColourRidge:
    """Ridge on 54 colour statistics of each patch (`colour.colour_statistics`); a network must beat it.

    Source: none; a control of ours. The penalty is chosen on validation groups, as for `ridge`.
    """

    name = "colour-ridge"
    about = (
        "ridge on the patch's colour only (mean, deviation, histogram of each channel), penalty "
        "chosen on validation groups"
    )

    def fit(self, training: FoldData) -> Linear:
        """Choose the penalty, then fit every gene."""
        penalty, tried = choose_penalty(training, colour)
        return Linear(training, penalty, {"penalty": penalty, "validation_pearson": tried}, colour)


def colour(features: PooledFeatures, slide: Slide, spots: Spots) -> np.ndarray:
    """Colour statistics of each spot's patch: (spots, 54) float32."""
    return features.colour(slide, spots)


class UntrainedEncoder:
    """Ridge on the config's encoder and blocks with random weights (seeded); what training the encoder earned is above.

    Source: none; a control of ours. The penalty is chosen on validation groups, as for `ridge`.
    """

    name = "untrained-encoder"
    about = "ridge on the same encoder with random weights, penalty chosen on validation groups"

    def fit(self, training: FoldData) -> Linear:
        """Choose the penalty, then fit every gene."""
        penalty, tried = choose_penalty(training, untrained)
        return Linear(training, penalty, {"penalty": penalty, "validation_pearson": tried}, untrained)


def untrained(features: PooledFeatures, slide: Slide, spots: Spots) -> np.ndarray:
    """Features of the untrained encoder: (spots, dim) float32."""
    return features.untrained(slide, spots)
