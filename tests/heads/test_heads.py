"""Ridge, kernel ridge, reduction and ensemble against their formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrcnet.errors import ShapeMismatch
from cmrcnet.genes.spatial_stats import mean_pearson
from cmrcnet.heads import ridge
from cmrcnet.heads.ensemble import Ensemble, choose, component_weights_of, fit_ensemble
from cmrcnet.heads.pca import fit_pca
from cmrcnet.heads.ridge import PENALTIES, kernel_path, ridge_path


def data(seed: int = 0, spots: int = 30, features: int = 5, rank: int = 2):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(spots, features)).astype(np.float32)
    return inputs, (inputs @ rng.normal(size=(features, rank)) + 0.1 * rng.normal(size=(spots, rank))).astype(
        np.float32
    )


@pytest.mark.parametrize("penalty", PENALTIES)
def test_ridge_is_its_formula(penalty):
    inputs, scores = data()
    middle, level = inputs.mean(axis=0), scores.mean(axis=0)
    gram = (inputs - middle).T @ (inputs - middle) + penalty * 30 * np.eye(5)
    weights = np.linalg.solve(gram, (inputs - middle).T @ (scores - level))
    (found,) = ridge_path(inputs, scores, [penalty])
    np.testing.assert_allclose(found.predict(inputs), (inputs - middle) @ weights + level, atol=1e-4)


def test_kernel_ridge_with_every_spot_a_landmark_is_kernel_ridge():
    inputs, scores = data()
    apart = np.sqrt(((inputs[:, None] - inputs[None]) ** 2).sum(axis=2))
    gram = np.exp(-0.5 * apart / np.median(apart))
    level = scores.mean(axis=0)
    wanted = gram @ np.linalg.solve(gram + 0.3 * np.eye(30), scores - level) + level
    np.testing.assert_allclose(
        next(kernel_path(inputs, scores, 0, None, [(0.5, 0.3)])).predict(inputs), wanted, atol=2e-3
    )


def test_a_weight_of_two_is_the_same_spot_twice():
    inputs, scores = data()
    counts = np.ones(30, np.float32)
    counts[:10] = 2
    twice = np.concatenate([np.arange(30), np.arange(10)])
    weighed, doubled = ridge_path(inputs, scores, [0.4], counts)[0], ridge_path(inputs[twice], scores[twice], [0.3])[0]
    np.testing.assert_allclose(weighed.predict(inputs), doubled.predict(inputs), atol=1e-5)  # 0.4 * 30 = 0.3 * 40


def test_weights_divide_the_penalty_of_kernel_ridge():
    inputs, scores = data()
    counts = np.linspace(0.5, 1.5, 30)
    apart = np.sqrt(((inputs[:, None] - inputs[None]) ** 2).sum(axis=2))
    gram = np.exp(-0.5 * apart / np.median(apart))
    level = (counts[:, None] * scores).sum(axis=0) / counts.sum()
    wanted = gram @ np.linalg.solve(gram + np.diag(0.3 / counts), scores - level) + level
    found = next(kernel_path(inputs, scores, 0, counts, [(0.5, 0.3)])).predict(inputs)
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_the_path_gives_what_each_setting_gives_alone():
    inputs, scores = data()
    for setting, found in zip(ridge.SETTINGS, kernel_path(inputs, scores, 0), strict=True):
        alone = next(kernel_path(inputs, scores, 0, None, [setting]))
        np.testing.assert_allclose(found.predict(inputs), alone.predict(inputs), atol=1e-5)


def test_few_landmarks_come_near_to_all_of_them(monkeypatch):
    inputs, scores = data(spots=120, features=2)
    whole = next(kernel_path(inputs, scores, 0, None, [(0.25, 0.1)])).predict(inputs)
    monkeypatch.setattr(ridge, "LANDMARKS", 60)
    few = next(kernel_path(inputs, scores, 0, None, [(0.25, 0.1)]))
    assert len(few.landmarks) == 60
    assert np.corrcoef(few.predict(inputs)[:, 0], whole[:, 0])[0, 1] > 0.99


def test_blocks_change_no_prediction(monkeypatch):
    inputs, scores = data()
    found = next(kernel_path(inputs, scores, 0, None, [(1.0, 0.1)]))
    whole = found.predict(inputs)
    monkeypatch.setattr(ridge, "_SPOTS_AT_A_TIME", 7)
    np.testing.assert_allclose(found.predict(inputs), whole, atol=1e-6)
    np.testing.assert_allclose(
        next(kernel_path(inputs, scores, 0, None, [(1.0, 0.1)])).predict(inputs), whole, atol=1e-4
    )


def test_the_reduction_keeps_distances_up_to_one_scale():
    tokens = np.random.default_rng(1).normal(size=(40, 3, 4)).astype(np.float32)
    reduced = fit_pca(tokens, seed=0).apply(tokens)
    assert (reduced**2).mean() == pytest.approx(1, rel=0.05)
    flat = tokens.reshape(40, -1)
    ratio = np.linalg.norm(reduced[0] - reduced[1:], axis=1) / np.linalg.norm(flat[0] - flat[1:], axis=1)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)
    with pytest.raises(ShapeMismatch, match="features"):
        fit_pca(tokens, seed=0).apply(tokens[:, :2])


def test_the_taper_is_the_mean_over_ranks():
    np.testing.assert_allclose(component_weights_of([1, 3, 9], 4), [1, 2 / 3, 2 / 3, 1 / 3])


def validation(seed: int = 5):
    rng = np.random.default_rng(seed)
    scores, loadings = rng.normal(size=(60, 3)), rng.normal(size=(3, 8))
    sections = np.repeat(["a", "b"], 30)
    good, poor = scores + 0.3 * rng.normal(size=(60, 3)), rng.normal(size=(60, 3))
    return {"good": good, "poor": poor}, scores, scores @ loadings, loadings, sections


def test_a_part_that_knows_more_weighs_more():
    predicted, scores, truth, loadings, sections = validation()
    ensemble, value = fit_ensemble(predicted, np.ones(3), scores, truth, loadings, sections)
    assert ensemble.weights["good"] > 0.9 > 0.1 > ensemble.weights["poor"]
    assert sum(ensemble.weights.values()) == pytest.approx(1)
    assert value > mean_pearson(truth, predicted["poor"] @ loadings, sections)


def test_a_blend_does_not_feel_how_boldly_a_part_speaks():
    predicted, scores, truth, loadings, sections = validation()
    loud = {"good": predicted["good"], "poor": 100 * predicted["poor"]}
    first, _ = fit_ensemble(predicted, np.ones(3), scores, truth, loadings, sections)
    second, _ = fit_ensemble(loud, np.ones(3), scores, truth, loadings, sections)
    np.testing.assert_allclose(first.combine(predicted), second.combine(loud), atol=1e-4)


def test_the_slope_is_least_squares():
    predicted, scores, truth, loadings, sections = validation()
    ensemble, _ = fit_ensemble(predicted, np.ones(3), scores, truth, loadings, sections)
    error = [((scale * ensemble.combine(predicted) - scores) ** 2).sum() for scale in (0.9, 1.0, 1.1)]
    assert error[1] < min(error[0], error[2])


def test_a_blend_survives_its_plain_values():
    predicted, scores, truth, loadings, sections = validation()
    ensemble, _ = fit_ensemble(predicted, component_weights_of([1, 3], 3), scores, truth, loadings, sections)
    again = Ensemble.from_dict(ensemble.to_dict())
    np.testing.assert_array_equal(again.combine(predicted), ensemble.combine(predicted))
    np.testing.assert_array_equal(again.covariance, ensemble.covariance)


@given(noise=st.lists(st.floats(0.0, 3.0), min_size=2, max_size=5, unique=True))
@settings(max_examples=15, deadline=None)
def test_the_setting_with_the_best_validation_score_is_chosen(noise):
    _, scores, truth, loadings, sections = validation()
    rng = np.random.default_rng(0)
    tried = [scores + each * rng.normal(size=scores.shape) for each in noise]
    number, value = choose(tried, np.ones(3), truth, loadings, sections)
    best = max(mean_pearson(truth, guess @ loadings, sections) for guess in tried)
    assert value == pytest.approx(mean_pearson(truth, tried[number] @ loadings, sections))
    assert value >= best - 0.0011
