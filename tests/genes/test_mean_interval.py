"""The interval of a mean, against scipy, and its coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cmrcnet.genes.mean_interval import mean_interval


def test_the_interval_is_that_of_scipy():
    values = np.random.default_rng(0).normal(0.4, 0.1, 9)
    theirs = stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
    np.testing.assert_allclose(mean_interval(values, level=0.9), [values.mean(), theirs.low, theirs.high])


def test_undefined_values_are_left_out_column_by_column():
    values = np.array([[0.1, np.nan], [0.3, 0.5], [0.8, np.nan], [0.2, 0.9]])
    found = np.array(mean_interval(values))
    for column in range(2):
        known = values[np.isfinite(values[:, column]), column]
        np.testing.assert_allclose(found[:, column], np.array(mean_interval(known)))
    assert found[0, 1] == pytest.approx(0.7)


def test_one_group_has_no_interval_and_none_no_mean():
    mean, low, high = mean_interval(np.array([[0.2, np.nan], [np.nan, np.nan]]))
    assert mean[0] == 0.2 and np.isnan([mean[1], *low, *high]).all()
    assert all(np.isnan(each).all() for each in mean_interval(np.zeros((0, 2))))
    assert np.array(mean_interval(np.full(4, 0.25))).tolist() == [0.25] * 3


@pytest.mark.parametrize("patients", [2, 3, 4, 6, 10])
@pytest.mark.parametrize(
    ("draw", "least"),
    [
        (lambda rng, shape: rng.normal(size=shape), 0.945),
        (lambda rng, shape: rng.standard_t(8, shape), 0.945),  # a patient now and then far off
        (lambda rng, shape: rng.uniform(-1, 1, shape), 0.92),  # no middle: three or four patients cover .925
    ],
    ids=["normal", "heavy tails", "uniform"],
)
def test_it_covers_the_true_mean_as_often_as_it_says(patients, draw, least):
    samples = draw(np.random.default_rng(patients), (patients, 20_000))
    _, low, high = mean_interval(samples)
    assert least < ((low <= 0) & (high >= 0)).mean() < 0.965


def test_a_percentile_bootstrap_would_not_hold_its_level():
    """Why the interval is not a bootstrap: the figure that the docstring states."""
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(2_000, 3))
    draws = rng.integers(0, 3, (1_000, 3))
    low, high = np.quantile(samples[:, draws].mean(axis=2), [0.025, 0.975], axis=1)
    assert ((low <= 0) & (high >= 0)).mean() == pytest.approx(0.76, abs=0.03)
