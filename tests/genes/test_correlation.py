"""Pearson per gene: the textbook formula, sparse or dense, and what is undefined."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats

from cmrcnet.errors import ShapeMismatch
from cmrcnet.genes import spatial_stats
from cmrcnet.genes.spatial_stats import pearson_per_gene


@pytest.fixture
def tables():
    random = np.random.default_rng(3)
    truth = random.poisson(1.0, (30, 7)).astype(np.float32)
    return truth, (truth + random.normal(0, 2, truth.shape)).astype(np.float32)


def test_it_is_the_textbook_value(tables):
    truth, guess = tables
    expected = [stats.pearsonr(truth[:, g], guess[:, g]).statistic for g in range(7)]
    np.testing.assert_allclose(pearson_per_gene(truth, guess), expected, rtol=1e-6)


@pytest.mark.parametrize("block", [1, 3, 100])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
def test_blocks_and_sparse_tables_change_nothing(tables, form, block, monkeypatch):
    truth, guess = tables
    expected = pearson_per_gene(truth, guess)
    monkeypatch.setattr(spatial_stats, "_GENES_AT_A_TIME", block)
    np.testing.assert_allclose(pearson_per_gene(form(truth), guess), expected, rtol=1e-12)
    np.testing.assert_allclose(pearson_per_gene(truth, form(guess)), expected, rtol=1e-12)


def test_a_large_offset_costs_no_precision(tables):
    truth, guess = (each.astype(np.float64) for each in tables)
    np.testing.assert_allclose(pearson_per_gene(truth + 1e3, guess), pearson_per_gene(truth, guess), rtol=1e-9)


def test_what_is_undefined_is_nan():
    truth = np.array([[1.0, 1, 1, 0], [2.0, 1, 2, 0], [3.0, 1, np.nan, 1]])
    guess = np.array([[5.0, 1, 1, 7.1], [5.0, 2, 2, 7.1], [5.0, 3, 3, 7.1]])
    guess[1, 3] = np.nextafter(np.float32(7.1), np.float32(8))  # an average of equal numbers, off by rounding
    assert np.isnan(pearson_per_gene(truth, guess)).all()
    assert np.isnan(pearson_per_gene(truth[:1], guess[:1])).all()


def test_inputs_are_left_alone(tables):
    truth, guess = (each.astype(np.float64) for each in tables)
    kept = truth.copy(), guess.copy()
    pearson_per_gene(truth, guess)
    np.testing.assert_array_equal(truth, kept[0])
    np.testing.assert_array_equal(guess, kept[1])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 50), shift=st.floats(-20, 20))
def test_scale_shift_and_order_of_spots_do_not_matter(seed, scale, shift):
    random = np.random.default_rng(seed)
    truth, guess = random.normal(size=(2, 12, 4))
    order = random.permutation(12)
    value = pearson_per_gene(truth, guess)
    np.testing.assert_allclose(pearson_per_gene(truth[order], guess[order] * scale + shift), value, atol=1e-8)
    np.testing.assert_allclose(pearson_per_gene(guess, truth), value, atol=1e-12)
    np.testing.assert_allclose(pearson_per_gene(truth, -guess), -value, atol=1e-12)
    assert (np.abs(value) <= 1).all()


def test_tables_of_different_shape_are_refused(tables):
    with pytest.raises(ShapeMismatch, match=r"wanted \(30, 7\)"):
        pearson_per_gene(tables[0], tables[1][:, :6])
