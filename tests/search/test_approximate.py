"""Approximate searches against exact search, and what they state of themselves."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrcnet.errors import BadOption, MissingExtra, NotAvailable, ShapeMismatch
from cmrcnet.search import cells as cells_module
from cmrcnet.search import search_config
from cmrcnet.search.build import build_search
from cmrcnet.search.cells import Cells, cells_for
from cmrcnet.search.effort import Effort
from cmrcnet.search.exact import ExactSearch
from cmrcnet.search.inverted_file import InvertedFile
from cmrcnet.search.neighbours import Neighbours
from cmrcnet.search.recall import HeldOutQueries
from cmrcnet.search.search_config import SearchConfig
from cmrcnet.search.searcher import Searcher
from cmrcnet.search.stacked_rows import StackedRows

APPROXIMATE = ("hnsw", "ivf", "ivf-compressed")


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


@pytest.mark.parametrize(
    ("kind", "fixed", "parameter"), [("ivf", {"probes": 1}, "probes"), ("ivf-compressed", {"probes": 1}, "probes"),
                                    ("hnsw", {"breadth": 1}, "breadth")],
)  # fmt: skip
def test_too_little_recall_says_what_to_raise(kind, fixed, parameter):
    noise = np.random.default_rng(0).normal(size=(3_000, 64)).astype(np.float32)  # no clusters: the hardest case
    wanted = (
        rf"The {kind} index finds 0\.\d+ of the \d+ nearest .* {parameter} 1, and 0.999 was .*; raise --{parameter}"
    )
    with pytest.raises(NotAvailable, match=wanted):
        build_search(noise, SearchConfig(kind=kind, recall=0.999, **fixed))


def test_exact_is_built_without_the_library_and_others_name_the_extra(bank, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert isinstance(build_search(bank, SearchConfig(kind="exact")).searcher, ExactSearch)
    assert build_search(bank, SearchConfig()).kind == "exact"
    with pytest.raises(MissingExtra, match=r"needs faiss, which is not installed; run: pip install 'cmrcnet\[ann\]'"):
        build_search(bank, SearchConfig(kind="ivf"))


def test_auto_follows_the_size(monkeypatch):
    sizes = (search_config.EXACT_BELOW, search_config.COMPRESSED_FROM)
    kinds = [SearchConfig().kind_for(n) for n in (1, sizes[0] - 1, sizes[0], sizes[1] - 1, sizes[1])]
    assert kinds == ["exact", "exact", "ivf", "ivf", "ivf-compressed"]
    assert SearchConfig(kind="hnsw").kind_for(3) == "hnsw"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kind": "magic"}, "search is 'magic'; wanted exact, hnsw, ivf, ivf-compressed, auto"),
        ({"recall": 0.0}, "recall is 0.0; wanted a share above 0, at most 1"),
        ({"kind": "ivf", "probes": 0}, "probes is 0; wanted a whole number"),
        (
            {"kind": "hnsw", "probes": 3},
            "probes is 3; wanted nothing with --search hnsw; it belongs to ivf and ivf-comp",
        ),
        ({"breadth": 3}, "breadth is 3; wanted nothing with --search auto; it belongs to hnsw"),
    ],
)
def test_options_that_make_no_sense(options, sentence):
    with pytest.raises(BadOption, match=sentence):
        SearchConfig(**options)


def test_the_same_bank_gives_the_same_search(bank):
    one, two = (build_search(bank, SearchConfig(kind="ivf")).searcher for _ in range(2))
    np.testing.assert_array_equal(one.cells.sums, two.cells.sums)
    np.testing.assert_array_equal(one.cell_of_spot, two.cell_of_spot)
    assert one.effort == two.effort


def test_cells_hold_the_sums_of_their_own_unit_vectors(bank):
    cells, cell_of_spot = Cells.learn(bank, 20, seed=0)
    vectors = np.asarray(bank, np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for cell in range(20):
        np.testing.assert_allclose(cells.sums[cell], unit[cell_of_spot == cell].sum(axis=0), atol=1e-4)
        assert cells.counts[cell] == (cell_of_spot == cell).sum()


def test_walking_to_a_cell_hardly_ever_ends_next_door(bank, monkeypatch):
    cells, _ = Cells.learn(bank, 100, seed=0)
    exactly = cells.assign(bank)
    monkeypatch.setattr(cells_module, "WALK_FROM", 1)
    assert (cells.assign(bank) == exactly).mean() > 0.99


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1_000))
def test_vectors_that_are_taken_out_leave_nothing(seed):
    vectors = clustered(60, seed)
    cell_of_spot = np.random.default_rng(seed).integers(0, 6, 60)
    cell_of_spot[:40] %= 5  # cell 5 is held by those that go alone
    nothing = Cells(np.zeros((6, 24)), np.zeros(6, np.int64))
    stay = nothing.plus(vectors[:40], cell_of_spot[:40])
    back = nothing.plus(vectors, cell_of_spot).plus(vectors[40:], cell_of_spot[40:], sign=-1)
    np.testing.assert_array_equal(back.counts, stay.counts)
    np.testing.assert_allclose(back.sums, stay.sums, atol=1e-12)
    assert (back.sums[5] == 0).all() and (back.centres[5] == 0).all()
    np.testing.assert_allclose(np.linalg.norm(stay.centres, axis=1), (stay.counts > 0).astype(float), atol=1e-6)


def test_cells_that_hold_too_few_send_on_to_others():
    vectors = clustered(400, 6)
    cells, cell_of_spot = Cells.learn(vectors, 40, seed=0)
    for compressed in (False, True):
        search = InvertedFile(vectors, cells, cell_of_spot, Effort(((1, 1),)), compressed=compressed)
        assert (search.nearest(vectors[:5], 300).ids >= 0).all()


def test_effort_grows_with_k():
    effort = Effort(((50, 4), (500, 20)))
    assert [effort.at(k) for k in (1, 50, 51, 500, 501, 1_000)] == [4, 4, 20, 20, 21, 40]


def test_cells_grow_as_the_root():
    assert [cells_for(n) for n in (1, 100, 10_000, 1_000_000, 10**9)] == [1, 12, 200, 2_000, 4_096]


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
