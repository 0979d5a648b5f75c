"""Fit the heads of a config that works on expression components; every choice is made on validation units."""

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
from cmrcnet.heads.ridge import PENALTIES, kernel_path, kernel_ridge, ridge_path, settings
from cmrcnet.training.cross_search import CrossSearch
from cmrcnet.training.data import Pairs

log = logging.getLogger("cmrcnet")

_SHUFFLE = 0x5AFE
"""Sets the shuffling of pairs apart from other draws of the same seed."""


@dataclass(frozen=True, eq=False)
class ValidationParts:
    """What each part predicts of every pair, fitted without the pair's unit.

    Parameters
    ----------
    parts : dict of str to numpy.ndarray, shape (pairs, rank)
        Of the settings that were chosen.
    permuted : numpy.ndarray, shape (pairs, rank)
        The same from a ridge regression on pairs shuffled within their sections: what knows nothing.
    search : CrossSearch
    """

    parts: dict[str, np.ndarray]
    permuted: np.ndarray
    search: CrossSearch


@threadpool_limits.wrap(limits=1, user_api="blas")  # several threads may differ in the last bit, and so may two runs
def fit_head(pairs: Pairs, config: Config, search: CrossSearch | None) -> tuple[Head, ValidationParts | None]:
    """Choose penalties, widths, ranks and weights on validation units, then fit on all pairs.

    The reduction is fitted on the features of all training spots, and the components on their expression: neither
    sees both sides, so that a validation unit is still predicted by what others showed of the link between them.

    Parameters
    ----------
    pairs : Pairs
        With scores, and the expression of the genes that choose.
    config : Config
    search : CrossSearch or None
        None where nothing could be held in: middle settings and an even ensemble are taken.

    Returns
    -------
    Head
    ValidationParts or None
    """
    assert pairs.scores is not None and pairs.scored is not None
    seed, scores = config.train.seed, pairs.scores
    tokens = pairs.inputs_of(np.arange(len(pairs)))
    reduction = fit_pca(tokens, seed)
    features = reduction.apply(tokens)
    if search is None or search.retrieved is None:
        return _unchosen(features, pairs, config, reduction), None

    truth = np.asarray(pairs.scored.todense())
    loadings = loadings_of(scores, pairs.scored)
    section_of = np.array(pairs.sections)[pairs.section_of]
    ridges = np.empty((len(PENALTIES), *scores.shape), np.float32)
    kernels = np.empty((len(settings()), *scores.shape), np.float32)
    for split in search.splits:
        rest, out = split.rest, features[split.ids]
        for number, fitted in enumerate(ridge_path(features[rest], scores[rest], weights=pairs.weights[rest])):
            ridges[number, split.ids] = fitted.predict(out)
        for number, fitted in enumerate(kernel_path(features[rest], scores[rest], seed, pairs.weights[rest])):
            kernels[number, split.ids] = fitted.predict(out)

    component_weights = component_weights_of(config.target.ranks, scores.shape[1])
    validation: dict[str, float] = {}
    chosen: dict[str, int] = {}
    predicted: dict[str, np.ndarray] = {}
    for name, tried in ((RETRIEVAL, search.retrieved[None]), (RIDGE, ridges), (KERNEL, kernels)):
        chosen[name], validation[name] = choose(tried, component_weights, truth, loadings, section_of)
        predicted[name] = tried[chosen[name]]
    ensemble, validation["ensemble"] = fit_ensemble(predicted, component_weights, scores, truth, loadings, section_of)
    record = {
        "validation_pearson": validation,
        "weights": dict(ensemble.weights),
        "ridge_penalty": PENALTIES[chosen[RIDGE]],
        "kernel_width": settings()[chosen[KERNEL]][0],
        "kernel_penalty": settings()[chosen[KERNEL]][1],
        "epoch": search.epoch,
    }
    log.info(
        "Validation HVG Pearson: %s; the ensemble takes %s.",
        ", ".join(f"{name} {value:.3f}" for name, value in validation.items()),
        ", ".join(f"{weight:.2f} {name}" for name, weight in ensemble.weights.items()),
    )
    ridge = ridge_path(features, scores, PENALTIES[chosen[RIDGE] : chosen[RIDGE] + 1], pairs.weights)[0]
    kernel = kernel_ridge(features, scores, seed, settings()[chosen[KERNEL]], pairs.weights)
    permuted = _permuted(features, scores, pairs, search, PENALTIES[chosen[RIDGE]], seed)
    return Head(reduction, ridge, kernel, ensemble, record), ValidationParts(predicted, permuted, search)


def _permuted(
    features: np.ndarray, scores: np.ndarray, pairs: Pairs, search: CrossSearch, penalty: float, seed: int
) -> np.ndarray:
    """Validation ridge predictions (pairs, rank) that were learnt from pairs shuffled within each section."""
    rng = np.random.default_rng([seed, _SHUFFLE])
    order = np.arange(len(pairs))
    for section in range(len(pairs.sections)):
        rows = np.flatnonzero(pairs.section_of == section)
        order[rows] = rng.permutation(rows)
    shuffled, found = scores[order], np.empty_like(scores)
    weights = pairs.weights[order]
    for split in search.splits:
        fitted = ridge_path(features[split.rest], shuffled[split.rest], (penalty,), weights[split.rest])[0]
        found[split.ids] = fitted.predict(features[split.ids])
    return found


def _unchosen(features: np.ndarray, pairs: Pairs, config: Config, reduction) -> Head:
    """Middle settings and an even ensemble, for a single training section."""
    scores = pairs.scores
    parts, rank = (RETRIEVAL, RIDGE, KERNEL), scores.shape[1]
    middle = settings()[len(settings()) // 2]
    ridge = ridge_path(features, scores, PENALTIES[len(PENALTIES) // 2 + 1 : len(PENALTIES) // 2 + 2], pairs.weights)[0]
    kernel = kernel_ridge(features, scores, config.train.seed, middle, pairs.weights)
    ensemble = Ensemble(
        dict.fromkeys(parts, 1 / len(parts)),
        dict.fromkeys(parts, 1.0),
        component_weights_of(config.target.ranks, rank),
        1.0,
        np.eye(rank, dtype=np.float32),
    )
    return Head(reduction, ridge, kernel, ensemble, {"validation": "nothing: one training section"})
