"""Approximate searches against exact search, and what they state of themselves."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrcnet.errors import BadOption, Incompatible, MissingExtra, ShapeMismatch
from cmrcnet.search.build import COMPRESSED_FROM, EXACT_BELOW, HeldOutQueries, SearchConfig, build_search
from cmrcnet.search.exact import ExactSearch, Neighbours, Searcher
from cmrcnet.search.ivf import IVFLists, IVFSearch, SearchParameters, list_count
from cmrcnet.search.stacked_arrays import StackedRows

APPROXIMATE = ("ivf", "ivf-compressed")


def clustered(count: int, seed: int, dim: int = 24) -> np.ndarray:
    """Vectors around thirty centres, of different lengths."""
    centre = np.random.default_rng(0).normal(size=(30, dim))
    rng = np.random.default_rng(seed)
    found = centre[rng.integers(0, 30, count)] + 0.5 * rng.normal(size=(count, dim))
    return (found * rng.uniform(0.5, 2, (count, 1))).astype(np.float32)


@pytest.fixture(scope="module")
def bank() -> StackedRows:
    return StackedRows(np.split(clustered(2_000, 1), [100, 1_700]))


@pytest.fixture(scope="module", params=APPROXIMATE)
def built(request, bank):
    return build_search(bank, SearchConfig(kind=request.param, recall=0.95))


@pytest.mark.parametrize("k", [1, 50, 500])
def test_it_finds_what_it_states(bank, built, k):
    """On queries that had no part in its making, too."""
    queries = clustered(200, 2)
    found, true = built.searcher.nearest(queries, k), ExactSearch(bank).nearest(queries, k)
    shared = np.mean([len(np.intersect1d(f, t)) / k for f, t in zip(found.ids, true.ids, strict=True)])
    assert shared > 0.9
    assert min(built.recall.values()) >= 0.95 and set(built.recall) == {1, 10, 50, 500} and built.queries == 200


@pytest.mark.parametrize("k", [1, 7, 50])
def test_similarities_are_exact_and_fall(bank, built, k):
    queries = clustered(40, 3)
    found = built.searcher.nearest(queries, k)
    vectors = np.asarray(bank)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    asked = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    np.testing.assert_allclose(found.similarity, np.einsum("qkd,qd->qk", unit[found.ids], asked), atol=2e-6)
    assert (np.diff(found.similarity, axis=1) <= 0).all()
    assert all(len(set(ids)) == k for ids in found.ids)


def test_as_many_as_there_are_can_be_asked_for(built, bank):
    found = built.searcher.nearest(clustered(3, 4), len(bank))
    np.testing.assert_array_equal(np.sort(found.ids), np.tile(np.arange(len(bank)), (3, 1)))


def test_batches_change_nothing(built):
    queries = clustered(30, 5)
    whole = built.searcher.nearest(queries, 9)
    parts = [built.searcher.nearest(some, 9) for some in np.split(queries, [1, 12])]
    np.testing.assert_array_equal(whole.ids, np.concatenate([part.ids for part in parts]))
    assert built.searcher.nearest(queries[:0], 9).ids.shape == (0, 9)


def test_it_refuses_as_exact_search_does(built):
    assert isinstance(built.searcher, Searcher) and isinstance(ExactSearch(np.eye(2, dtype=np.float32)), Searcher)
    with pytest.raises(BadOption, match="k is 2001; wanted 1 to 2000, the number of spots in the bank"):
        built.searcher.nearest(clustered(1, 0), 2_001)
    with pytest.raises(ShapeMismatch, match="queries has shape"):
        built.searcher.nearest(clustered(1, 0, dim=5), 3)
    with pytest.raises(BadOption, match="queries is 'not finite"):
        built.searcher.nearest(np.full((1, 24), np.nan, np.float32), 3)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_a_bank_that_is_not_finite_is_refused(kind):
    broken = clustered(200, 0)
    broken[150, 3] = np.nan
    with pytest.raises(BadOption, match=r"vectors is 'not finite \(NaN or infinite\)'; wanted numbers only"):
        build_search(broken, SearchConfig(kind=kind))


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_too_little_recall_says_what_to_raise(kind):
    noise = np.random.default_rng(0).normal(size=(3_000, 64)).astype(np.float32)  # no clusters: the hardest case
    wanted = rf"The {kind} index finds 0\.\d+ of the \d+ nearest .* nprobe 1, and 0.999 was .*; raise --nprobe"
    with pytest.raises(Incompatible, match=wanted):
        build_search(noise, SearchConfig(kind=kind, recall=0.999, nprobe=1))


def test_exact_is_built_without_the_library_and_others_name_the_extra(bank, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert isinstance(build_search(bank, SearchConfig(kind="exact")).searcher, ExactSearch)
    assert build_search(bank, SearchConfig()).kind == "exact"
    with pytest.raises(MissingExtra, match=r"needs faiss, which is not installed; run: pip install 'cmrcnet\[ann\]'"):
        build_search(bank, SearchConfig(kind="ivf"))


def test_auto_follows_the_size(monkeypatch):
    sizes = (EXACT_BELOW, COMPRESSED_FROM)
    kinds = [SearchConfig().kind_for(n) for n in (1, sizes[0] - 1, sizes[0], sizes[1] - 1, sizes[1])]
    assert kinds == ["exact", "exact", "ivf", "ivf", "ivf-compressed"]
    assert SearchConfig(kind="ivf").kind_for(3) == "ivf"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kind": "magic"}, "search is 'magic'; wanted exact, ivf, ivf-compressed, auto"),
        ({"recall": 0.0}, "recall is 0.0; wanted a share above 0, at most 1"),
        ({"kind": "ivf", "nprobe": 0}, "nprobe is 0; wanted a whole number"),
        ({"nprobe": 3}, "nprobe is 3; wanted nothing with --search auto; it belongs to ivf and ivf-compressed"),
        ({"kind": "hnsw"}, "search is 'hnsw'; wanted exact, ivf, ivf-compressed, auto"),
    ],
)
def test_options_that_make_no_sense(options, sentence):
    with pytest.raises(BadOption, match=sentence):
        SearchConfig(**options)


def test_the_same_bank_gives_the_same_search(bank):
    one, two = (build_search(bank, SearchConfig(kind="ivf")).searcher for _ in range(2))
    np.testing.assert_array_equal(one.lists.sums, two.lists.sums)
    np.testing.assert_array_equal(one.list_of_spot, two.list_of_spot)
    assert one.parameters == two.parameters


def test_lists_hold_the_sums_of_their_own_unit_vectors(bank):
    lists, list_of_spot = IVFLists.fit(bank, 20, seed=0)
    vectors = np.asarray(bank, np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for number in range(20):
        np.testing.assert_allclose(lists.sums[number], unit[list_of_spot == number].sum(axis=0), atol=1e-4)
        assert lists.counts[number] == (list_of_spot == number).sum()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1_000))
def test_vectors_that_are_taken_out_leave_nothing(seed):
    vectors = clustered(60, seed)
    list_of_spot = np.random.default_rng(seed).integers(0, 6, 60)
    list_of_spot[:40] %= 5  # list 5 holds nothing but what is removed
    nothing = IVFLists(np.zeros((6, 24)), np.zeros(6, np.int64))
    stay = nothing.plus(vectors[:40], list_of_spot[:40])
    back = nothing.plus(vectors, list_of_spot).plus(vectors[40:], list_of_spot[40:], sign=-1)
    np.testing.assert_array_equal(back.counts, stay.counts)
    np.testing.assert_allclose(back.sums, stay.sums, atol=1e-12)
    assert (back.sums[5] == 0).all() and (back.centroids[5] == 0).all()
    np.testing.assert_allclose(np.linalg.norm(stay.centroids, axis=1), (stay.counts > 0).astype(float), atol=1e-6)


def test_more_lists_are_scanned_where_they_hold_too_few():
    vectors = clustered(400, 6)
    lists, list_of_spot = IVFLists.fit(vectors, 40, seed=0)
    for compressed in (False, True):
        search = IVFSearch(vectors, lists, list_of_spot, SearchParameters(((1, 1),)), compressed=compressed)
        assert (search.nearest(vectors[:5], 300).ids >= 0).all()


def test_nprobe_grows_with_k():
    parameters = SearchParameters(((50, 4), (500, 20)))
    assert [parameters.nprobe(k) for k in (1, 50, 51, 500, 501, 1_000)] == [4, 4, 20, 20, 21, 40]


def test_the_number_of_lists_grows_as_the_root():
    assert [list_count(n) for n in (1, 100, 10_000, 1_000_000, 10**9)] == [1, 12, 200, 2_000, 4_096]


class Perfect:
    """Finds all but the `missed` best."""

    def __init__(self, vectors, missed=0):
        self.exact, self.missed = ExactSearch(vectors), missed

    def __len__(self):
        return len(self.exact)

    def nearest(self, queries, k):
        found = self.exact.nearest(queries, min(len(self), k + self.missed))
        keep = np.r_[0, 1 + self.missed : found.k]  # the query itself, then what is behind the missed
        return Neighbours(found.ids[:, keep], found.similarity[:, keep])


def test_recall_by_hand():
    vectors = clustered(700, 7)
    held_out = HeldOutQueries.draw(vectors, seed=0)
    assert held_out.ks == (1, 10, 50, 500)
    for k in (10, 50, 500):
        assert held_out.recall(Perfect(vectors), k) == 1
        assert held_out.recall(Perfect(vectors, missed=5), k) == pytest.approx(1 - 5 / k)


def test_recall_of_a_small_bank_is_stated_for_all_it_has():
    assert HeldOutQueries.draw(clustered(30, 8), seed=0).ks == (1, 10, 29)
    assert HeldOutQueries.draw(clustered(30, 8), seed=0, queries=clustered(4, 9)).ks == (1, 10, 30)


def test_equal_spots_may_stand_for_each_other():
    """Of twins, either is right."""
    twins = np.repeat(clustered(300, 10), 2, axis=0)
    held_out = HeldOutQueries.draw(twins, seed=0)

    class Other(Perfect):
        def nearest(self, queries, k):
            found = super().nearest(queries, k)
            return Neighbours(found.ids ^ 1, found.similarity)

    assert held_out.recall(Other(twins), 50) >= 0.98


def test_a_small_bank_is_searched_exactly_and_a_large_one_where_no_index_finds_enough(monkeypatch):
    vectors = np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32)
    assert build_search(vectors[:144], SearchConfig()).kind == "exact"
    monkeypatch.setattr("cmrcnet.search.build.EXACT_BELOW", 100)
    assert build_search(vectors, SearchConfig()).kind == "ivf"
    monkeypatch.setattr("cmrcnet.search.build.HeldOutQueries.recall", lambda *_: 0.571)
    assert build_search(vectors, SearchConfig()).kind == "exact"
    with pytest.raises(Incompatible, match=r"finds 0\.571"):
        build_search(vectors, SearchConfig(kind="ivf"))
