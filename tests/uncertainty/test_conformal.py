"""Conformal quantiles by hand, their promise on exchangeable data, and what few units cost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, t

from cmrcnet.training.calibrate import offset_share
from cmrcnet.uncertainty.conformal import (
    LEVEL,
    ConformalIntervals,
    bounds,
    conformal_quantiles,
    group_weights,
    patients_needed,
    scale_quantiles,
    widening,
)


def even(count: int) -> np.ndarray:
    return np.full(count, 1 / count)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_with_even_weights_it_is_the_order_statistic_of_the_textbook(level):
    """The ceil((n + 1) (1 - a / 2))-th smallest of n, and the mirrored one below (Lei et al. 2018)."""
    values = np.random.default_rng(0).normal(size=(57, 3))
    low, high = conformal_quantiles(values, even(57), level)
    rank = int(np.ceil(58 * (1 + level) / 2 - 1e-9))
    ranked = np.sort(values, axis=0)
    np.testing.assert_array_equal(high, ranked[rank - 1])
    np.testing.assert_array_equal(low, ranked[57 - rank])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), level=st.sampled_from([0.5, 0.8, 0.9]))
def test_new_values_are_covered_as_promised(seed, level):
    """Exchangeable data, 400 problems of 30 residuals each: at least the level on the mean, and not much more."""
    rng = np.random.default_rng(seed)
    values, new = rng.standard_cauchy((30, 400)), rng.standard_cauchy(400)
    low, high = conformal_quantiles(values, even(30), level)
    covered = ((low <= new) & (new <= high)).mean()
    assert level - 4 * 0.5 / 20 < covered < level + 2 / 31 + 4 * 0.5 / 20


def test_too_few_residuals_promise_nothing_finite():
    low, high = conformal_quantiles(np.arange(10.0)[:, None], even(10), 0.9)
    assert low[0] == -np.inf and high[0] == np.inf


def test_what_was_not_measured_is_left_out():
    values = np.array([[1.0, np.nan], [2.0, np.nan], [3.0, np.nan], [np.nan, np.nan]])
    low, high = conformal_quantiles(values, even(4), 0.4)
    assert (low[0], high[0]) == (1.0, 3.0)
    assert np.isnan(low[1]) and np.isnan(high[1])


def test_units_sections_and_spots_weigh_alike():
    unit = np.array(["A", "A", "A", "B"])
    section = np.array(["A1", "A1", "A2", "B1"])
    np.testing.assert_allclose(group_weights(unit, section), [1 / 8, 1 / 8, 1 / 4, 1 / 2])


def test_a_heavy_spot_counts_for_many():
    values = np.array([[0.0], [1.0], [10.0]])
    _, even_high = conformal_quantiles(np.repeat(values, 40, axis=0), even(120), 0.9)
    _, high = conformal_quantiles(np.repeat(values, 40, axis=0), np.repeat([0.49, 0.49, 0.02], 40) / 40, 0.9)
    assert even_high[0] == 10 and high[0] == 1


def test_few_units_widen_what_differs_between_them_and_enough_do_not():
    share = np.array([0.0, 0.3, 1.0])
    ratio = (t.ppf(0.95, 3) / norm.ppf(0.95)) ** 2
    np.testing.assert_allclose(widening(share, 3, 0.9), np.sqrt(1 + share * (ratio - 1)))
    np.testing.assert_array_equal(widening(share, 9, 0.9), 1)
    assert [patients_needed(level) for level in (0.5, 0.8, 0.9, 0.95)] == [1, 4, 9, 19]


def test_an_interval_is_a_product_around_the_prediction_and_never_below_nothing():
    mean = np.array([[1.0, 0.2], [3.0, 0.0]], np.float32)
    lower, upper = bounds(mean, np.array([1.0, 2.0]), np.array([-0.5, -1.0]), np.array([2.0, np.nan]))
    np.testing.assert_allclose(lower, [[0.5, 0.0], [2.0, 0.0]])
    np.testing.assert_allclose(upper, [[3.0, np.nan], [7.0, np.nan]])
    assert lower.dtype == upper.dtype == np.float32


def calibration(groups: int = 3, group: str = "patient", patients: int = 3) -> ConformalIntervals:
    facts = {"level": 0.9, "groups": groups, "group_by": group, "patients": patients, "sections": 12, "spots": 3456}
    nothing = np.zeros(1, np.float32)
    return ConformalIntervals(nothing, nothing, np.linspace(1, 3, 101, dtype=np.float32), facts)


def test_confidence_is_the_share_of_validation_spots_that_looked_harder():
    factor = np.array([0.5, 1.0, 1.5, 3.0, 9.0, np.nan])
    np.testing.assert_allclose(calibration().confidence(factor), [1, 1, 0.75, 0, 0, np.nan], atol=1e-6)


def test_quantiles_of_scales_are_weighted():
    found = scale_quantiles(np.array([3.0, 1.0, 2.0]), np.array([0.2, 0.5, 0.3]))
    assert (found[0], found[50], found[51], found[80], found[100]) == (1, 1, 2, 2, 3)


def test_the_sentence_says_what_is_covered():
    start = "90% intervals, split-conformal, calibrated on "
    assert calibration(9, patients=9).sentence == f"{start}9 validation patients (12 sections, 3,456 spots)."
    end = "the difference between patients is widened by Student's t instead."
    few = "Guaranteed coverage of new patients needs 9 of them;"
    assert calibration().sentence == f"{start}3 validation patients (12 sections, 3,456 spots). {few} {end}"
    assert calibration(4, "section", 1).sentence.startswith("No intervals: the training sections are of one patient")


@pytest.mark.parametrize("patients", [2, 3, 6])
@pytest.mark.parametrize("offset", [0.0, 0.1, 0.3])
def test_new_patients_are_covered_as_often_as_it_says(patients, offset):
    """Simulated: patients whose residuals are offset from each other, as many genes as repetitions."""
    rng = np.random.default_rng(patients)
    shifts = rng.normal(size=(patients, 1, 400)) * np.sqrt(offset)
    noise = rng.normal(size=(patients, 100, 400)) * np.sqrt(1 - offset)
    residual, groups = (shifts + noise).reshape(-1, 400), np.repeat([f"P{n}" for n in range(patients)], 100)
    weights = group_weights(groups, groups)
    low, high = conformal_quantiles(residual, weights, LEVEL)
    wider = widening(offset_share(residual, weights, groups), patients, LEVEL)
    new = rng.normal(size=1_000) * np.sqrt(offset)
    below, above = (norm.cdf((q[:, None] * wider[:, None] - new) / np.sqrt(1 - offset)) for q in (low, high))
    assert (above - below).mean() == pytest.approx(LEVEL, abs=0.02)
