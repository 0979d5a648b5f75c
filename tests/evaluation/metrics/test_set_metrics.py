"""Scores of a set as a whole, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cmrcnet.errors import ShapeMismatch
from cmrcnet.evaluation.metrics.set_metrics import gene_gene_correlation, recall_of_highest, share_of_ceiling


def test_recall_counts_the_highest_that_are_found():
    truth = np.array([0.9, 0.8, 0.7, 0.1, np.nan, 0.0])
    guess = np.array([0.5, 0.1, 0.9, 0.8, 0.99, np.nan])
    recall, undefined = recall_of_highest(truth, guess, size=3)
    # Highest in truth: 0, 1, 2. In prediction: 4, 2, 3. Found: 2.
    assert recall == pytest.approx(1 / 3) and undefined == 2


def test_recall_of_a_prediction_without_any_pattern_is_undefined_and_of_the_truth_whole():
    truth = np.array([0.3, 0.2, np.nan])
    assert math.isnan(recall_of_highest(truth, np.full(3, np.nan))[0])
    assert recall_of_highest(truth, truth, size=50) == (1.0, 1)


def test_the_correlation_error_is_the_frobenius_norm_over_the_root_of_the_number_of_pairs():
    random = np.random.default_rng(0)
    truth = random.normal(size=(30, 5)) @ random.normal(size=(5, 5))
    guess = truth + random.normal(size=(30, 5))
    true, said = np.corrcoef(truth.T), np.corrcoef(guess.T)
    error, agreement, left_out = gene_gene_correlation(truth, guess)
    assert error == pytest.approx(np.linalg.norm(true - said, "fro") / np.sqrt(5 * 4))
    pairs = [(i, j) for i in range(5) for j in range(i)]
    expected = np.corrcoef([true[i, j] for i, j in pairs], [said[i, j] for i, j in pairs])[0, 1]
    assert agreement == pytest.approx(expected) and left_out == 0


def test_the_correlation_error_does_not_grow_with_the_set():
    """Independent truth against a prediction of one pattern for all: every entry is wrong by about 1."""
    random = np.random.default_rng(1)
    for genes in (5, 60):
        pattern = np.tile(random.normal(size=(4000, 1)), genes)
        assert gene_gene_correlation(random.normal(size=(4000, genes)), pattern)[0] == pytest.approx(1.0, abs=0.03)


def test_constant_genes_are_left_out_and_counted():
    random = np.random.default_rng(2)
    truth, guess = random.normal(size=(20, 5)), random.normal(size=(20, 5))
    kept = gene_gene_correlation(truth[:, 2:], guess[:, 2:])
    truth[:, 0], guess[:, 1] = 1.0, 2.0
    assert gene_gene_correlation(truth, guess) == (pytest.approx(kept[0]), pytest.approx(kept[1]), 2)
    error, agreement, left_out = gene_gene_correlation(truth[:, :3], guess[:, :3])
    assert math.isnan(error) and math.isnan(agreement) and left_out == 2
    with pytest.raises(ShapeMismatch):
        gene_gene_correlation(truth, guess[:, 1:])


def test_the_share_is_the_ratio_of_two_means_over_the_same_genes():
    scores, ceiling = np.array([0.4, 0.2, np.nan, 0.9, 0.5]), np.array([0.8, 0.5, 0.9, 0.0, np.nan])
    share, left_out = share_of_ceiling(scores, ceiling)
    assert share == pytest.approx((0.4 + 0.2) / (0.8 + 0.5)) and left_out == 3
    assert math.isnan(share_of_ceiling(scores[3:], ceiling[3:])[0])
