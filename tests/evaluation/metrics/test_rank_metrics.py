"""Spearman against scipy, detection against counting pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr

from cmrcnet.errors import ShapeMismatch
from cmrcnet.evaluation.metrics.gene_metrics import detection_auc, spearman_per_gene

few_values = arrays(np.float64, (9, 3), elements=st.integers(0, 4).map(float))


@settings(max_examples=40, deadline=None)
@given(few_values, few_values)
def test_spearman_is_scipys_with_ties(truth, guess):
    for gene, found in enumerate(spearman_per_gene(truth, guess)):
        if np.ptp(truth[:, gene]) == 0 or np.ptp(guess[:, gene]) == 0:
            assert np.isnan(found)
        else:
            assert found == pytest.approx(spearmanr(truth[:, gene], guess[:, gene])[0], abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(few_values, few_values)
def test_detection_is_the_share_of_pairs_in_the_right_order(truth, guess):
    for gene, found in enumerate(detection_auc(truth > 0, guess)):
        yes, no = guess[truth[:, gene] > 0, gene], guess[truth[:, gene] == 0, gene]
        if len(yes) == 0 or len(no) == 0:
            assert np.isnan(found)
        else:
            pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in yes for b in no]
            assert found == pytest.approx(np.mean(pairs))


def test_only_the_order_of_predictions_counts():
    random = np.random.default_rng(0)
    truth, guess = random.poisson(1.0, (30, 4)), random.normal(size=(30, 4))
    np.testing.assert_allclose(spearman_per_gene(truth, np.exp(3 * guess)), spearman_per_gene(truth, guess))
    np.testing.assert_allclose(detection_auc(truth > 0, np.exp(3 * guess)), detection_auc(truth > 0, guess))


def test_a_constant_prediction_tells_nothing_of_detection_and_a_missing_value_makes_it_undefined():
    detected = np.array([[True], [False], [True]])
    assert detection_auc(detected, np.ones((3, 1))).tolist() == [0.5]
    broken = np.array([[1.0], [np.nan], [2.0]])
    assert np.isnan(detection_auc(detected, broken)).all() and np.isnan(spearman_per_gene(broken, broken)).all()


def test_other_shapes_are_refused():
    for score in (spearman_per_gene, detection_auc):
        with pytest.raises(ShapeMismatch):
            score(np.ones((3, 2)), np.ones((3, 1)))
