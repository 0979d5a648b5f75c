"""The percentile bootstrap of means, against scipy and against the obvious way."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap

from cmrcnet.errors import BadOption
from cmrcnet.genes.bootstrap import bootstrap_means


def test_the_interval_is_that_of_scipy():
    values = np.random.default_rng(0).normal(0.4, 0.1, (9, 1))
    mean, low, high = bootstrap_means(values, seed=0, resamples=20_000, level=0.9)
    theirs = bootstrap(
        (values[:, 0],), np.mean, n_resamples=20_000, confidence_level=0.9, method="percentile",
        rng=np.random.default_rng(1),
    )  # fmt: skip
    assert mean == pytest.approx(values.mean())
    assert low == pytest.approx(theirs.confidence_interval.low, abs=0.003)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=0.003)


def test_weights_and_undefined_values_against_the_obvious_way():
    values = np.array([[0.1, np.nan], [0.3, 0.5], [0.8, np.nan], [0.2, 0.9]])
    weights = np.array([[1.0, 0.0], [0.5, 0.5], [0.5, 0.0], [1.0, 1.0]])
    found = bootstrap_means(values, weights, seed=3, resamples=50)
    draws = np.random.default_rng(3).integers(0, 4, (50, 4))
    for column in range(2):
        drawn, weight = values[draws, column], weights[draws, column]
        kept = weight.sum(axis=1) > 0
        means = np.nansum(drawn * weight, axis=1)[kept] / weight.sum(axis=1)[kept]
        mean = np.nansum(values[:, column] * weights[:, column]) / weights[:, column].sum()
        expected = [mean, *np.quantile(means, [0.025, 0.975])]
        np.testing.assert_allclose([each[column] for each in found], expected)


def test_one_group_has_no_interval_and_none_no_mean():
    mean, low, high = bootstrap_means(np.array([[0.2, np.nan], [np.nan, np.nan]]), seed=0)
    assert mean[0] == 0.2 and np.isnan([mean[1], *low, *high]).all()
    assert all(np.isnan(each).all() for each in bootstrap_means(np.zeros((0, 2)), seed=0))
    with pytest.raises(BadOption, match="resamples"):
        bootstrap_means(np.zeros((2, 1)), seed=0, resamples=0)
