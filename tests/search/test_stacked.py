"""Several files read as one: equal to putting them together first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cmrcnet.errors import ShapeMismatch
from cmrcnet.search import stacked_arrays
from cmrcnet.search.aggregate import average, average_blocks
from cmrcnet.search.exact import ExactSearch, Neighbours
from cmrcnet.search.stacked_arrays import StackedColumns, StackedRows

GENES = 11


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(sum),
    start=st.integers(-3, 30),
    stop=st.integers(-3, 30),
    step=st.sampled_from([1, 2, -1]),
)
def test_slices_are_those_of_the_whole(lengths, start, stop, step):
    whole = np.arange(3.0 * sum(lengths), dtype=np.float32).reshape(-1, 3)
    rows = StackedRows(np.split(whole, np.cumsum(lengths)[:-1]))
    np.testing.assert_array_equal(rows[start:stop:step], whole[start:stop:step])
    assert rows.shape == whole.shape and len(rows) == len(whole)


def test_row_numbers_in_any_order_and_shape():
    whole = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    rows = StackedRows(np.split(whole, [3, 3, 11]))
    for wanted in (np.array([19, 0, 0, 3, 11, -1]), np.array([[2, 3], [10, 11]]), whole[:, 0] > 0, 7):
        np.testing.assert_array_equal(rows[wanted], whole[wanted])
    np.testing.assert_array_equal(np.asarray(rows), whole)
    np.testing.assert_array_equal(rows.T, whole.T)
    with pytest.raises(IndexError):
        rows[np.array([20])]


def test_parts_of_different_width_are_refused():
    with pytest.raises(ShapeMismatch, match="one dim for all"):
        StackedRows([np.ones((2, 3)), np.ones((2, 4))])
    with pytest.raises(ShapeMismatch, match="one number of genes for all"):
        StackedColumns([np.ones((2, 3)), np.ones((2, 4))])


def test_exact_search_reads_them_as_one_array():
    whole = np.random.default_rng(1).normal(size=(300, 8)).astype(np.float32)
    queries = np.random.default_rng(2).normal(size=(9, 8)).astype(np.float32)
    there = ExactSearch(whole, block=70).nearest(queries, 12)
    here = ExactSearch(StackedRows(np.split(whole, [5, 200])), block=70).nearest(queries, 12)
    np.testing.assert_array_equal(here.ids, there.ids)
    np.testing.assert_array_equal(here.similarity, there.similarity)


def tables(seed: int) -> tuple[StackedColumns, np.ndarray]:
    """Four sections with genes of their own in their own order, and the same table laid out."""
    rng = np.random.default_rng(seed)
    parts, own, whole = [], [], []
    for _ in range(4):
        spots, listed = rng.integers(1, 9), rng.permutation(GENES)[: rng.integers(1, GENES + 1)]
        values = rng.poisson(0.8, (spots, len(listed))).astype(np.float32)
        column = np.full(GENES, -1, np.int32)
        column[listed] = np.arange(len(listed))
        parts.append(sparse.csc_matrix(values) if rng.random() < 0.7 else values)
        own.append(column)
        laid_out = np.zeros((spots, GENES), np.float32)
        laid_out[:, listed] = values
        whole.append(laid_out)
    return StackedColumns(parts, own), np.concatenate(whole)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), long_columns=st.booleans())
def test_columns_and_rows_are_those_of_the_whole(seed, long_columns):
    before = stacked_arrays._LONG_COLUMN
    stacked_arrays._LONG_COLUMN = 0 if long_columns else before
    try:
        table, whole = tables(seed)
        rng = np.random.default_rng(seed)
        columns, rows = rng.integers(0, GENES, 6), rng.integers(0, len(whole), 7)
        assert table.shape == whole.shape
        np.testing.assert_array_equal(table.toarray(), whole)
        np.testing.assert_array_equal(table.dense(columns), whole[:, columns])
        np.testing.assert_array_equal(table.dense(columns, rows), whole[rows][:, columns])
        np.testing.assert_array_equal(table.dense(rows=rows), whole[rows])
    finally:
        stacked_arrays._LONG_COLUMN = before


def test_only_columns_that_are_read_are_checked():
    asked = []
    table = StackedColumns(
        [sparse.csc_matrix(np.ones((3, 4), np.float32))],
        [np.array([2, -1, 3, 0, -1])],
        [lambda *span: asked.append(span)],
    )
    table.dense(np.array([0, 1, 2, 4]))
    assert asked == [(2, 4)]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 4), queries=st.integers(1, 12))
def test_averages_come_in_blocks_and_equal_those_of_the_whole(seed, k, queries):
    """Few queries lay out their neighbours alone, many the whole bank: the numbers are the same."""
    table, whole = tables(seed)
    rng = np.random.default_rng(seed)
    ids = np.array([rng.permutation(len(whole))[: min(k, len(whole))] for _ in range(queries)])
    neighbours = Neighbours(ids, np.zeros(ids.shape, np.float32))
    wanted_mean, wanted_spread = whole[ids].mean(axis=1), whole[ids].std(axis=1)
    mean, spread = average(neighbours, table)
    np.testing.assert_allclose(mean, wanted_mean, atol=1e-5)
    np.testing.assert_allclose(spread, wanted_spread, atol=5e-3)
    columns, reached = rng.permutation(GENES), 0
    for place, some_mean, some_std in average_blocks(neighbours, table, columns=columns, block_bytes=200):
        assert place.start == reached
        reached = place.stop
        np.testing.assert_array_equal(some_mean, mean[:, columns[place]])
        np.testing.assert_array_equal(some_std, spread[:, columns[place]])
    assert reached == GENES


def test_giving_pages_back_changes_no_number(tmp_path, monkeypatch):
    monkeypatch.setattr(stacked_arrays, "HELD_BYTES", 0)
    matrix = sparse.random(50, GENES, 0.4, "csc", np.float32, np.random.default_rng(3))
    whole = matrix.toarray()
    for name in ("data", "indices"):
        np.save(tmp_path / f"{name}.npy", getattr(matrix, name))
        setattr(matrix, name, np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    table, given_back = StackedColumns([matrix]), []
    release = table.release
    monkeypatch.setattr(table, "release", lambda: given_back.append(1) or release())
    for _ in range(2):
        np.testing.assert_array_equal(table.toarray(), whole)
    assert given_back == [1, 1]
