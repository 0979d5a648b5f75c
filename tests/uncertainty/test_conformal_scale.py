"""Nonconformity: features by hand, and weights recovered from made-up residuals."""

from __future__ import annotations

import numpy as np

from cmrcnet.uncertainty.conformal import fit_nonconformity_scale, nonconformity_features


def test_features_are_what_the_formulas_say():
    power = np.array([4.0, 1.0])
    parts = {"one": np.array([[1.0, 0.0]]), "other": np.array([[3.0, 0.0]])}
    features = nonconformity_features(np.array([0.4]), np.array([[0.5, 2.0]]), parts, np.array([[2.0, -3.0]]), power)
    wanted = [0.4, np.log(np.sqrt(4 * 0.25 + 4)), np.log(np.sqrt(4 * 1)), np.log(np.sqrt(4 * 4 + 9)), 2, -3, 0]
    np.testing.assert_allclose(features, [wanted], rtol=1e-5)


def test_the_scale_follows_what_made_the_residuals_large():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4000, 7)) * 3 + 5
    true = np.exp(0.5 * (features[:, 1] - 5) / 3)
    residual = true * np.exp(0.1 * rng.normal(size=4000))
    found = fit_nonconformity_scale(features, residual)
    np.testing.assert_allclose(found.weights, [0, 0.5, 0, 0, 0, 0, 0], atol=0.02)
    assert np.corrcoef(np.log(found.scale(features)), np.log(true))[0, 1] > 0.99


def test_the_average_spot_has_scale_one_and_a_wild_feature_counts_up_to_four_deviations():
    features = np.random.default_rng(1).normal(size=(500, 7))
    found = fit_nonconformity_scale(features, np.exp(features[:, 0]))
    np.testing.assert_allclose(found.scale(found.centre[None]), 1)
    far, further = (found.scale(found.centre[None] + by * found.deviation) for by in (4, 400))
    np.testing.assert_allclose(far, further)


def test_a_constant_feature_has_no_effect():
    features = np.random.default_rng(2).normal(size=(50, 7))
    features[:, 3] = 1.0
    assert np.isfinite(fit_nonconformity_scale(features, np.ones(50)).scale(features)).all()
