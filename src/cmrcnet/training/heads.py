"""Fit the heads of a config that works on expression components; every choice is made on validation groups."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from cmrcnet.config import Config
from cmrcnet.genes.components import loadings_of
from cmrcnet.heads.ensemble import Ensemble, choose, component_weights_of, fit_ensemble
from cmrcnet.heads.head import KERNEL, RETRIEVAL, RIDGE, Head
from cmrcnet.heads.pca import fit_pca
from cmrcnet.heads.ridge import PENALTIES, SETTINGS, kernel_path, ridge_path
from cmrcnet.training.data import TrainingData
from cmrcnet.training.loop import CrossSearch

log = logging.getLogger("cmrcnet")

_SHUFFLE = 0x5AFE
"""Separates the shuffling of pairs from other draws of the same seed."""


@dataclass(frozen=True, eq=False)
class ValidationPredictions:
    """Predictions of every spot by heads that were fitted without the spot's group."""

    parts: dict[str, np.ndarray]
    """(spots, rank) each: scores predicted by each part of the ensemble, with the settings that were chosen."""
    permuted: np.ndarray
    """(spots, rank), a null: scores predicted by a ridge regression on pairs that are shuffled within sections."""
    search: CrossSearch


@threadpool_limits.wrap(limits=1, user_api="blas")  # several threads may differ in the last bit, and so may two runs
def fit_head(
    data: TrainingData, config: Config, search: CrossSearch | None
) -> tuple[Head, ValidationPredictions | None]:
    """Choose penalties, widths, ranks and weights on validation groups, then fit on all spots.

    The PCA is fitted on the features of all training spots, and the components on their expression. Neither sees both
    sides, so that the link between the two is still predicted for each group from the others alone. `search` is None
    where nothing could be left out: middle settings and an even ensemble are taken.
    """
    assert data.scores is not None and data.scored is not None
    seed, scores = config.train.seed, data.scores
    tokens = data.inputs_of(np.arange(len(data)))
    pca = fit_pca(tokens, seed)
    features = pca.apply(tokens)
    component_weights = component_weights_of(config.target.ranks, scores.shape[1])
    if search is None or search.retrieved is None:
        parts, middle = (RETRIEVAL, RIDGE, KERNEL), len(PENALTIES) // 2 + 1
        return Head(
            pca,
            ridge_path(features, scores, PENALTIES[middle : middle + 1], data.weights)[0],
            next(kernel_path(features, scores, seed, data.weights, [SETTINGS[len(SETTINGS) // 2]])),
            Ensemble(
                dict.fromkeys(parts, 1 / len(parts)),
                dict.fromkeys(parts, 1.0),
                component_weights,
                1.0,
                np.eye(scores.shape[1], dtype=np.float32),
            ),
            {"validation": "nothing: one training section"},
        ), None

    truth = np.asarray(data.scored.todense())
    loadings = loadings_of(scores, data.scored)
    section_of = np.array(data.sections)[data.section_of]
    ridges = np.empty((len(PENALTIES), *scores.shape), np.float32)
    kernels = np.empty((len(SETTINGS), *scores.shape), np.float32)
    for split in search.splits:
        rest, out = split.rest, features[split.ids]
        for number, fitted in enumerate(ridge_path(features[rest], scores[rest], weights=data.weights[rest])):
            ridges[number, split.ids] = fitted.predict(out)
        for number, fitted in enumerate(kernel_path(features[rest], scores[rest], seed, data.weights[rest])):
            kernels[number, split.ids] = fitted.predict(out)

    validation: dict[str, float] = {}
    chosen: dict[str, int] = {}
    predicted: dict[str, np.ndarray] = {}
    for name, tried in ((RETRIEVAL, search.retrieved[None]), (RIDGE, ridges), (KERNEL, kernels)):
        chosen[name], validation[name] = choose(tried, component_weights, truth, loadings, section_of)
        predicted[name] = tried[chosen[name]]
    ensemble, validation["ensemble"] = fit_ensemble(predicted, component_weights, scores, truth, loadings, section_of)
    penalty, (width, kernel_penalty) = PENALTIES[chosen[RIDGE]], SETTINGS[chosen[KERNEL]]
    record = {
        "validation_pearson": validation,
        "weights": dict(ensemble.weights),
        "ridge_penalty": penalty,
        "kernel_width": width,
        "kernel_penalty": kernel_penalty,
        "epoch": search.epoch,
    }
    log.info(
        "Validation HVG Pearson: %s; ensemble weights: %s.",
        ", ".join(f"{name} {value:.3f}" for name, value in validation.items()),
        ", ".join(f"{weight:.2f} {name}" for name, weight in ensemble.weights.items()),
    )
    ridge = ridge_path(features, scores, (penalty,), data.weights)[0]
    kernel = next(kernel_path(features, scores, seed, data.weights, [(width, kernel_penalty)]))

    rng = np.random.default_rng([seed, _SHUFFLE])
    order = np.arange(len(data))
    for section in range(len(data.sections)):
        rows = np.flatnonzero(data.section_of == section)
        order[rows] = rng.permutation(rows)
    shuffled, weights, permuted = scores[order], data.weights[order], np.empty_like(scores)
    for split in search.splits:
        fitted = ridge_path(features[split.rest], shuffled[split.rest], (penalty,), weights[split.rest])[0]
        permuted[split.ids] = fitted.predict(features[split.ids])
    return Head(pca, ridge, kernel, ensemble, record), ValidationPredictions(predicted, permuted, search)
