"""Exact search against the obvious path: the whole matrix of cosines and a stable sort."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrcnet.errors import BadOption, ShapeMismatch
from cmrcnet.search import exact
from cmrcnet.search.exact import ExactSearch


def signs(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    """Rows of +1 and -1. For dim 4, 16 or 64 their length is a power of 2: cosines are exact, and ties true ties."""
    return rng.choice(np.float32([-1, 1]), (rows, dim))


def obvious(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """All cosines at once, sorted stably: the lower row first among equals."""
    length = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(vectors, axis=1)
    cosine = (queries @ vectors.T) / length
    ids = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return ids, np.take_along_axis(cosine, ids, axis=1)


@pytest.mark.parametrize("block", [7, 64, 100_000])
@pytest.mark.parametrize("k", [1, 5, 83])
def test_blocks_do_not_change_the_neighbours(block, k):
    rng = np.random.default_rng(0)
    vectors, queries = signs(rng, 83, 16), signs(rng, 11, 16)
    found = ExactSearch(vectors, block=block).nearest(queries, k)
    ids, cosine = obvious(vectors, queries, k)
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_array_equal(found.similarity, cosine)
    assert found.ids.dtype == np.int64 and found.similarity.dtype == np.float32
    assert len(np.unique(cosine)) < 17  # so the test was one of ties


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    dim=st.sampled_from([4, 16, 64]),
    bank=st.integers(1, 40),
    queries=st.integers(0, 9),
    block=st.integers(1, 50),
    at_once=st.integers(1, 5),
    data=st.data(),
)
def test_any_blocks_of_any_bank_give_the_stable_sort(seed, dim, bank, queries, block, at_once, data):
    k = data.draw(st.integers(1, bank))
    rng = np.random.default_rng(seed)
    vectors, asked = signs(rng, bank, dim), signs(rng, queries, dim)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "QUERIES_AT_ONCE", at_once)
        found = ExactSearch(vectors, block=block).nearest(asked, k)
    np.testing.assert_array_equal(found.ids, obvious(vectors, asked, k)[0])


@pytest.mark.parametrize("block", [500, 3_000])
@pytest.mark.parametrize("k", [1, 50, 400])
def test_a_bank_of_real_numbers(block, k):
    """Here the columns are folded over each other before the k-th value is sought."""
    rng = np.random.default_rng(1)
    vectors, queries = rng.standard_normal((3_000, 32), np.float32), rng.standard_normal((40, 32), np.float32)
    found = ExactSearch(vectors, block=block).nearest(queries, k)
    ids, cosine = obvious(vectors.astype(np.float64), queries.astype(np.float64), k)
    np.testing.assert_allclose(found.similarity, cosine, atol=1e-6)
    assert (found.ids == ids).mean() > 0.999  # but for neighbours that differ by less than float32 can tell
    assert (np.diff(found.similarity, axis=1) <= 0).all()
    assert all(len(set(row)) == k for row in found.ids.tolist())


def test_the_best_may_stand_side_by_side_or_at_the_end():
    """The folding looks at every 16th column: the best must not hide behind each other."""
    vectors = np.zeros((4_096, 4), np.float32)
    vectors[:, 0], vectors[:, 1] = 1, np.linspace(3, 2, 4_096)
    for hidden in (np.arange(8) * 256, np.arange(8), np.arange(4_088, 4_096)):
        bank = vectors.copy()
        bank[hidden, 1] = np.linspace(0, 0.1, 8)
        found = ExactSearch(bank).nearest(np.float32([[1, 0, 0, 0]]), 8)
        np.testing.assert_array_equal(found.ids[0], hidden)


def test_length_does_not_count():
    rng = np.random.default_rng(2)
    vectors, queries = signs(rng, 60, 16), signs(rng, 5, 16)
    longer = vectors * np.exp2(rng.integers(-3, 4, (60, 1))).astype(np.float32)
    here, there = ExactSearch(vectors).nearest(queries, 9), ExactSearch(longer).nearest(queries * 4, 9)
    np.testing.assert_array_equal(here.ids, there.ids)
    np.testing.assert_array_equal(here.similarity, there.similarity)


def test_equal_spots_come_in_the_order_of_the_bank():
    found = ExactSearch(np.ones((5_000, 4), np.float32), block=700).nearest(np.ones((3, 4), np.float32), 900)
    np.testing.assert_array_equal(found.ids, np.tile(np.arange(900), (3, 1)))


def test_a_vector_of_zeros_is_like_nothing():
    found = ExactSearch(np.float32([[-1, 0], [0, 0], [1, 0], [-0.0, 1]])).nearest(np.float32([[1, 0], [0, 0]]), 4)
    np.testing.assert_array_equal(found.ids, [[2, 1, 3, 0], [0, 1, 2, 3]])
    np.testing.assert_array_equal(found.similarity, [[1, 0, 0, -1], [0, 0, 0, 0]])


def test_a_query_finds_the_same_alone_and_in_company():
    rng = np.random.default_rng(3)
    vectors, queries = rng.standard_normal((2_000, 256), np.float32), rng.standard_normal((300, 256), np.float32)
    search = ExactSearch(vectors)
    together = search.nearest(queries, 20)
    for number in (0, 7, 299):
        alone = search.nearest(queries[number : number + 1], 20)
        np.testing.assert_array_equal(alone.ids[0], together.ids[number])
        np.testing.assert_allclose(alone.similarity[0], together.similarity[number], atol=1e-6)


def test_a_memory_mapped_bank(tmp_path):
    rng = np.random.default_rng(4)
    vectors, queries = signs(rng, 300, 16), signs(rng, 6, 16)
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    found = ExactSearch(mapped, block=37).nearest(queries, 12)
    np.testing.assert_array_equal(found.ids, obvious(vectors, queries, 12)[0])


def test_the_whole_matrix_is_never_held():
    rng = np.random.default_rng(5)
    vectors, queries = rng.standard_normal((80_000, 4), np.float32), rng.standard_normal((600, 4), np.float32)
    tracemalloc.start()
    ExactSearch(vectors).nearest(queries, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64e6 < 600 * 80_000 * 4 / 2


def test_no_queries_have_no_neighbours():
    assert ExactSearch(np.eye(4, dtype=np.float32)).nearest(np.empty((0, 4), np.float32), 2).ids.shape == (0, 2)


@pytest.mark.parametrize("k", [0, -1, 5])
def test_a_k_that_the_bank_cannot_give_is_refused(k):
    with pytest.raises(BadOption, match=rf"k is {k}; wanted 1 to 4, the number of spots in the bank"):
        ExactSearch(np.eye(4, dtype=np.float32)).nearest(np.eye(4, dtype=np.float32), k)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_refused(value):
    broken = np.eye(4, dtype=np.float32)
    broken[2, 1] = value
    with pytest.raises(BadOption, match="queries is 'not finite"):
        ExactSearch(np.eye(4, dtype=np.float32)).nearest(broken, 1)
    with pytest.raises(BadOption, match="vectors is 'not finite"):
        ExactSearch(broken).nearest(np.eye(4, dtype=np.float32), 1)


def test_shapes_that_do_not_fit_are_refused():
    search = ExactSearch(np.eye(4, dtype=np.float32))
    with pytest.raises(ShapeMismatch, match=r"queries has shape \(2, 3\); wanted \('queries', 4\)"):
        search.nearest(np.ones((2, 3), np.float32), 1)
    with pytest.raises(ShapeMismatch, match="queries has shape"):
        search.nearest(np.ones(4, np.float32), 1)
    with pytest.raises(ShapeMismatch, match="vectors has shape"):
        ExactSearch(np.empty((0, 4), np.float32))
    with pytest.raises(BadOption, match="block is 0"):
        ExactSearch(np.eye(4, dtype=np.float32), block=0)
