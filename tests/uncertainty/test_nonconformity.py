"""What makes a location hard: traits by hand, and weights that find what they were given."""

from __future__ import annotations

import numpy as np

from cmrcnet.uncertainty.nonconformity import difficulty_traits, fit_difficulty


def test_traits_are_what_the_formulas_say():
    power = np.array([4.0, 1.0])
    parts = {"one": np.array([[1.0, 0.0]]), "other": np.array([[3.0, 0.0]])}
    traits = difficulty_traits(np.array([0.4]), np.array([[0.5, 2.0]]), parts, np.array([[2.0, -3.0]]), power)
    wanted = [0.4, np.log(np.sqrt(4 * 0.25 + 4)), np.log(np.sqrt(4 * 1)), np.log(np.sqrt(4 * 4 + 9)), 2, -3, 0]
    np.testing.assert_allclose(traits, [wanted], rtol=1e-5)


def test_the_factor_follows_what_made_the_residuals_large():
    rng = np.random.default_rng(0)
    traits = rng.normal(size=(4000, 7)) * 3 + 5
    true = np.exp(0.5 * (traits[:, 1] - 5) / 3)
    missed = true * np.exp(0.1 * rng.normal(size=4000))
    found = fit_difficulty(traits, missed)
    np.testing.assert_allclose(found.weights, [0, 0.5, 0, 0, 0, 0, 0], atol=0.02)
    assert np.corrcoef(np.log(found.factor(traits)), np.log(true))[0, 1] > 0.99


def test_the_typical_place_has_factor_one_and_a_wild_trait_counts_up_to_four_deviations():
    traits = np.random.default_rng(1).normal(size=(500, 7))
    found = fit_difficulty(traits, np.exp(traits[:, 0]))
    np.testing.assert_allclose(found.factor(found.middle[None]), 1)
    far, further = (found.factor(found.middle[None] + by * found.deviation) for by in (4, 400))
    np.testing.assert_allclose(far, further)


def test_a_trait_that_never_varies_has_no_say():
    traits = np.random.default_rng(2).normal(size=(50, 7))
    traits[:, 3] = 1.0
    assert np.isfinite(fit_difficulty(traits, np.ones(50)).factor(traits)).all()
