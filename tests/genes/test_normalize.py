"""Counts: what is refused, and what normalising does to the rest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse

from cmrcnet.errors import BadOption, SectionError
from cmrcnet.genes.scaling import normalize
from cmrcnet.slides.table_kinds import check_counts

COUNTS = np.array([[3, 0, 1], [0, 0, 0], [5, 5, 10]])


def test_it_is_the_formula_written_out_by_hand():
    expression = normalize(sparse.csr_matrix(COUNTS), 100.0).toarray()
    np.testing.assert_allclose(expression[0], np.log1p([75.0, 0.0, 25.0]), rtol=1e-6)
    np.testing.assert_allclose(expression[2], np.log1p([25.0, 25.0, 50.0]), rtol=1e-6)


def test_an_empty_spot_stays_zero():
    for target in (1e4, "median"):
        assert normalize(sparse.csr_matrix(COUNTS), target).toarray()[1].tolist() == [0, 0, 0]


def test_nothing_counted_at_all_gives_zeros_and_no_nan():
    assert normalize(sparse.csr_matrix((3, 4), dtype=np.int64), "median").toarray().tolist() == [[0] * 4] * 3


def test_median_is_of_the_spots_that_are_not_empty():
    expression = normalize(sparse.csr_matrix(COUNTS), "median").toarray()  # library sizes 4 and 20: median 12
    np.testing.assert_allclose(np.expm1(expression).sum(axis=1), [12, 0, 12], rtol=1e-6)


@pytest.mark.parametrize("target", [10_000.0, "median"])
def test_it_equals_scanpy(target):
    import anndata
    import scanpy

    counts = np.random.default_rng(0).poisson(2.0, (20, 30)).astype(np.float32)
    counts[4] = 0
    table = anndata.AnnData(counts.copy())
    scanpy.pp.normalize_total(table, target_sum=None if target == "median" else target)
    scanpy.pp.log1p(table)
    np.testing.assert_allclose(normalize(sparse.csr_matrix(counts), target).toarray(), table.X, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    counts=arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(0, 1000)),
    times=st.integers(1, 9),
)
def test_sequencing_deeper_changes_nothing(counts, times):
    once, deeper = (normalize(sparse.csr_matrix(table)).toarray() for table in (counts, counts * times))
    np.testing.assert_allclose(deeper, once, rtol=1e-5, atol=1e-6)


def test_it_leaves_the_counts_alone_and_gives_float32():
    counts = sparse.csr_matrix(COUNTS)
    expression = normalize(counts)
    assert expression.dtype == np.float32
    np.testing.assert_array_equal(counts.toarray(), COUNTS)


@pytest.mark.parametrize("target", [0.0, -1.0, float("nan")])
def test_a_senseless_target_is_refused(target):
    with pytest.raises(BadOption, match="target_sum"):
        normalize(sparse.csr_matrix(COUNTS), target)


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32, np.float64])
def test_whole_numbers_of_any_type_are_counts(kind):
    check_counts(sparse.csr_matrix(COUNTS.astype(kind)), "A1")
    check_counts(COUNTS.astype(kind), "A1")


@pytest.mark.parametrize(
    ("value", "word"), [(np.nan, "missing"), (np.inf, "infinite"), (-2, "negative"), (0.5, "fractional")]
)
def test_the_first_offender_is_named(value, word):
    counts = COUNTS.astype(float)
    counts[2, 1] = counts[2, 2] = value
    with pytest.raises(
        SectionError, match=rf"A1 are not raw counts: 2 values are {word}.* spot s3, gene TP53"
    ) as refusal:
        check_counts(sparse.csr_matrix(counts), "A1", barcodes=["s1", "s2", "s3"], genes=["ACTB", "TP53", "CD3E"])
    assert "whole numbers" in str(refusal.value)


def test_without_names_the_offender_has_a_number():
    with pytest.raises(SectionError, match="spot number 1, gene number 2"):
        check_counts(np.array([[1, -1]]), "A1")


def test_it_says_what_the_numbers_look_like():
    counts = np.random.default_rng(0).poisson(5.0, (10, 40)) + 1.0
    shares = counts / counts.sum(axis=1, keepdims=True)
    for table, looks in (
        (normalize(sparse.csr_matrix(counts)), "log-normalised"),
        (shares, "shares or probabilities"),
        (shares * 1e4, "scaled to a library size of 10,000"),
        ((counts - counts.mean(0)) / counts.std(0), "centred or scaled"),
    ):
        with pytest.raises(SectionError, match=looks):
            check_counts(table, "A1")
