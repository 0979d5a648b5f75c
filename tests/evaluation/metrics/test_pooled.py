"""The pooled correlation is that of all spots stacked, however they come."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cmrcnet.errors import ShapeMismatch
from cmrcnet.evaluation.metrics.gene_metrics import PooledPearson
from cmrcnet.genes.spatial_stats import pearson_per_gene


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 999))
def test_it_is_the_correlation_of_all_spots_stacked(sizes, seed):
    random = np.random.default_rng(seed)
    parts = [(random.poisson(2.0, (n, 4)) + 100.0 * k, random.normal(k, 1, (n, 4))) for k, n in enumerate(sizes)]
    pool = PooledPearson("ABCD")
    for truth, guess in parts:
        pool.add(sparse.csr_matrix(truth), guess, "ABCD")
    stacked = pearson_per_gene(*(np.vstack(each) for each in zip(*parts, strict=True)))
    np.testing.assert_allclose(pool.values(), stacked, atol=1e-9)


def test_a_difference_between_sections_counts_only_when_pooled():
    pool, random = PooledPearson("A"), np.random.default_rng(0)
    for level in (0.0, 50.0):
        pool.add(random.normal(level, 1, (40, 1)), random.normal(level, 1, (40, 1)), "A")
    assert pool.values()[0] > 0.99


def test_a_gene_that_one_section_lacks_takes_its_spots_from_the_others():
    pool, random = PooledPearson("AB"), np.random.default_rng(1)
    truth, guess = random.normal(size=(20, 2)), random.normal(size=(20, 2))
    pool.add(truth[:12, ::-1], guess[:12, ::-1], "BA")
    pool.add(truth[12:, :1], guess[12:, :1], "A")
    expected = [pearson_per_gene(truth, guess)[0], pearson_per_gene(truth[:12], guess[:12])[1]]
    np.testing.assert_allclose(pool.values(), expected)


def test_constant_and_broken_and_unseen_genes_are_undefined():
    pool = PooledPearson("ABCD")
    truth = np.array([[1.0, 1.0, 1.0], [1.0, 2.0, 2.0], [1.0, 4.0, 4.0]])
    pool.add(truth, np.array([[1.0, 0.3, 1.0], [2.0, 0.3, np.nan], [3.0, 0.3, 3.0]]), "ABC")
    assert np.isnan(pool.values()).all()


def test_other_shapes_are_refused():
    with pytest.raises(ShapeMismatch, match="The prediction has shape"):
        PooledPearson("AB").add(np.ones((3, 2)), np.ones((2, 2)), "AB")
