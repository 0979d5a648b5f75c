"""Averages of neighbours against a loop in float64, and what must hold for every average."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cmrcnet.errors import BadOption, ShapeMismatch
from cmrcnet.search.aggregate import average, neighbour_weights
from cmrcnet.search.exact import Neighbours
from cmrcnet.search.stacked_arrays import StackedColumns

BANK, GENES, SECTIONS = 40, 13, 3


def bank_of(rng: np.random.Generator, bank: int = BANK, genes: int = GENES) -> np.ndarray:
    return (np.log1p(rng.poisson(1.0, (bank, genes)) * rng.uniform(0, 50, (bank, 1)))).astype(np.float32)


def neighbours_of(rng: np.random.Generator, queries: int = 7, k: int = 5, bank: int = BANK) -> Neighbours:
    ids = np.array([rng.choice(bank, k, replace=False) for _ in range(queries)]).reshape(queries, k)
    return Neighbours(ids, -np.sort(-rng.uniform(-1, 1, (queries, k)), axis=1).astype(np.float32))


def by_hand(neighbours, expression, weighting, temperature, section_of_spot=None, measured=None):
    """One query and one gene after another."""
    shape = (len(neighbours.ids), expression.shape[1])
    mean, spread = np.full(shape, np.nan), np.full(shape, np.nan)
    for query, (ids, cosine) in enumerate(zip(neighbours.ids, neighbours.similarity.astype(np.float64), strict=True)):
        weight = np.exp(cosine / temperature) if weighting == "similarity" else np.ones(len(ids))
        for gene in range(shape[1]):
            known = np.ones(len(ids), bool) if measured is None else measured[section_of_spot[ids], gene]
            if known.any():
                share = weight[known] / weight[known].sum()
                values = expression[ids[known], gene].astype(np.float64)
                mean[query, gene] = (share * values).sum()
                spread[query, gene] = np.sqrt((share * (values - mean[query, gene]) ** 2).sum())
    return mean, spread


@pytest.mark.parametrize("weighting", ["mean", "similarity"])
@pytest.mark.parametrize("temperature", [0.07, 1.0, 5.0])
@pytest.mark.parametrize("kind", [np.asarray, sparse.csc_matrix, sparse.csr_matrix, sparse.csc_array])
def test_it_equals_the_formula_written_out_by_hand(weighting, temperature, kind):
    rng = np.random.default_rng(0)
    expression, neighbours = bank_of(rng), neighbours_of(rng)
    mean, spread = average(neighbours, kind(expression), weighting=weighting, temperature=temperature)
    wanted_mean, wanted_spread = by_hand(neighbours, expression, weighting, temperature)
    np.testing.assert_allclose(mean, wanted_mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(spread, wanted_spread, rtol=1e-3, atol=5e-3)  # its stated resolution
    assert mean.dtype == spread.dtype == np.float32


@pytest.mark.parametrize("block_bytes", [1, 700, 3_000, 2**24])
def test_blocks_do_not_change_the_average(block_bytes):
    rng = np.random.default_rng(1)
    expression, neighbours = sparse.csc_matrix(bank_of(rng)), neighbours_of(rng)
    whole, parts = average(neighbours, expression), average(neighbours, expression, block_bytes=block_bytes)
    np.testing.assert_array_equal(whole[0], parts[0])
    np.testing.assert_array_equal(whole[1], parts[1])


def test_chosen_columns_are_those_columns_in_that_order_and_no_other_is_read():
    rng = np.random.default_rng(2)
    expression, neighbours = bank_of(rng), neighbours_of(rng)
    columns = np.array([7, 2, 2, 11])
    trapped = sparse.csc_matrix(expression)
    for column in set(range(GENES)) - set(columns.tolist()):
        trapped.indices[trapped.indptr[column] : trapped.indptr[column + 1]] = 10**6  # reading it would raise
    mean, spread = average(neighbours, trapped, columns=columns)
    whole_mean, whole_spread = average(neighbours, expression)
    np.testing.assert_array_equal(mean, whole_mean[:, columns])
    np.testing.assert_array_equal(spread, whole_spread[:, columns])
    with pytest.raises(IndexError):
        average(neighbours, trapped)


def test_without_the_spread_the_mean_is_the_same():
    rng = np.random.default_rng(3)
    expression, neighbours = sparse.csc_matrix(bank_of(rng)), neighbours_of(rng)
    mean, spread = average(neighbours, expression, with_std=False)
    assert spread is None
    np.testing.assert_array_equal(mean, average(neighbours, expression)[0])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    k=st.integers(1, BANK),
    weighting=st.sampled_from(["mean", "similarity"]),
    temperature=st.sampled_from([1e-4, 0.05, 1.0, 100.0]),
    some=st.booleans(),
)
def test_an_average_never_leaves_its_neighbours(seed, k, weighting, temperature, some):
    rng = np.random.default_rng(seed)
    expression, neighbours = bank_of(rng), neighbours_of(rng, queries=4, k=k)
    section_of_spot, measured = rng.integers(0, SECTIONS, BANK), rng.random((SECTIONS, GENES)) < 0.6
    expression[~measured[section_of_spot]] = 0
    given_mask = {"section_of_spot": section_of_spot, "measured": measured} if some else {}
    mean, spread = average(
        neighbours, sparse.csc_matrix(expression), weighting=weighting, temperature=temperature, **given_mask
    )
    near = expression[neighbours.ids].astype(np.float64)
    if some:
        near[~measured[section_of_spot[neighbours.ids]]] = np.nan
    unmeasured = np.isnan(near).all(axis=1)
    np.testing.assert_array_equal(np.isnan(mean), unmeasured)
    np.testing.assert_array_equal(np.isnan(spread), unmeasured)
    least, most = np.nanmin(near, axis=1, initial=99), np.nanmax(near, axis=1, initial=-99)
    assert (mean >= least - 1e-5)[~unmeasured].all() and (mean <= most + 1e-5)[~unmeasured].all()
    assert (spread >= 0)[~unmeasured].all() and (spread <= (most - least) / 2 + 5e-3)[~unmeasured].all()


def test_one_neighbour_is_copied_without_spread():
    rng = np.random.default_rng(4)
    expression, neighbours = bank_of(rng), neighbours_of(rng, k=1)
    for weighting in ("mean", "similarity"):
        mean, spread = average(neighbours, sparse.csc_matrix(expression), weighting=weighting)
        np.testing.assert_array_equal(mean, expression[neighbours.ids[:, 0]])
        assert (spread == 0).all()


def test_neighbours_that_agree_have_no_spread():
    """Also where float32 sums leave a rest: 0.1 and 5.3 are no binary fractions."""
    expression = np.tile(np.float32([0, 0.1, 5.3]), (BANK, 1))
    neighbours = neighbours_of(np.random.default_rng(5), k=37)
    mean, spread = average(neighbours, sparse.csc_matrix(expression), weighting="similarity")
    np.testing.assert_allclose(mean, np.tile([0, 0.1, 5.3], (7, 1)), rtol=1e-6)
    assert (spread == 0).all()


def test_similarity_weights_by_hand():
    """Cosines that lie ln 2 x temperature apart: each neighbour counts half of the one before."""
    for temperature in (0.1, 0.5):
        cosine = np.float32([[0.9, 0.9 - np.log(2) * temperature, 0.9 - np.log(4) * temperature]])
        weights = neighbour_weights(Neighbours(np.int64([[4, 1, 3]]), cosine), "similarity", temperature)
        np.testing.assert_allclose(weights, np.array([[4, 2, 1]]) / 7, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), shift=st.floats(-0.5, 0.5), temperature=st.floats(1e-6, 1e3))
def test_only_differences_of_cosines_count_and_none_overflows(seed, shift, temperature):
    rng = np.random.default_rng(seed)
    cosine = -np.sort(-rng.integers(-64, 65, (3, 6)) / 128, axis=1).astype(np.float32)
    shift = np.float32(round(shift * 128) / 128)  # exact in float32, like the cosines
    here, there = (
        neighbour_weights(Neighbours(np.zeros((3, 6), np.int64), each), "similarity", temperature)
        for each in (cosine, cosine + shift)
    )
    np.testing.assert_array_equal(here, there)
    assert np.isfinite(here).all() and (here > 0).all()
    np.testing.assert_allclose(here.sum(axis=1), 1, rtol=1e-6)
    assert (np.diff(here, axis=1) <= 0).all()


@pytest.mark.parametrize("weighting", ["mean", "similarity"])
def test_weights_are_shared_among_those_who_measured(weighting):
    rng = np.random.default_rng(6)
    section_of_spot, measured = rng.integers(0, SECTIONS, BANK), rng.random((SECTIONS, GENES)) < 0.5
    measured[:, 0], measured[:, 1] = False, True
    expression = bank_of(rng) * measured[section_of_spot]
    neighbours = neighbours_of(rng)
    found = average(
        neighbours,
        sparse.csc_matrix(expression),
        weighting=weighting,
        temperature=0.4,
        section_of_spot=section_of_spot,
        measured=measured,
        block_bytes=2_000,
    )
    wanted = by_hand(neighbours, expression, weighting, 0.4, section_of_spot, measured)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)
        assert np.isnan(ours[:, 0]).all() and np.isfinite(ours[:, 1]).all()
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5, atol=1e-6)


def test_a_far_neighbour_speaks_where_no_near_one_measured():
    """Its weight beside the nearest would vanish in any float."""
    neighbours = Neighbours(np.int64([[0, 1]]), np.float32([[1, -1]]))
    expression, measured = sparse.csc_matrix(np.float32([[0, 2], [3, 4]])), np.array([[False, True], [True, True]])
    mean, spread = average(
        neighbours,
        expression,
        weighting="similarity",
        temperature=1e-3,
        section_of_spot=np.array([0, 1]),
        measured=measured,
    )
    np.testing.assert_allclose(mean, [[3, 2]], rtol=1e-6)
    assert (spread[:, 0] == 0).all()


def test_memory_does_not_grow_with_the_genes():
    """0.5 % of 64 million values are not 0: laid out densely they would need 256 MB."""
    rng = np.random.default_rng(7)
    expression = sparse.random(4_000, 16_000, 0.005, "csc", np.float32, rng)
    neighbours = neighbours_of(rng, queries=20, bank=4_000)
    tracemalloc.start()
    average(neighbours, expression)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def test_memory_mapped_expression(tmp_path):
    rng = np.random.default_rng(8)
    expression, neighbours = sparse.csc_matrix(bank_of(rng)), neighbours_of(rng)
    wanted = average(neighbours, expression)
    for name in ("data", "indices", "indptr"):
        np.save(tmp_path / f"{name}.npy", getattr(expression, name))
        setattr(expression, name, np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    for ours, theirs in zip(average(neighbours, expression), wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_dense_columns():
    values = bank_of(np.random.default_rng(9))
    dense = StackedColumns.of(sparse.csc_matrix(values)).dense(np.array([3, 0]))
    np.testing.assert_array_equal(dense, values[:, [3, 0]])


def test_no_places_give_an_empty_table():
    empty = Neighbours(np.empty((0, 3), np.int64), np.empty((0, 3), np.float32))
    for weighting in ("mean", "similarity"):
        assert average(empty, np.ones((4, 2), np.float32), weighting=weighting)[0].shape == (0, 2)


def test_bad_input_is_refused():
    rng = np.random.default_rng(10)
    expression, neighbours = bank_of(rng), neighbours_of(rng)
    beyond = Neighbours(neighbours.ids + BANK, neighbours.similarity)
    with pytest.raises(BadOption, match="wanted rows of the bank, 0 to 39"):
        average(beyond, expression)
    with pytest.raises(BadOption, match="wanted columns of the expression, 0 to 12"):
        average(neighbours, expression, columns=np.array([13]))
    with pytest.raises(BadOption, match="weighting is 'median'; wanted mean or similarity"):
        average(neighbours, expression, weighting="median")
    with pytest.raises(BadOption, match="temperature is 0; wanted a number above 0"):
        average(neighbours, expression, weighting="similarity", temperature=0)
    with pytest.raises(ShapeMismatch, match="section_of_spot has shape"):
        average(neighbours, expression, measured=np.zeros((2, GENES), bool))
    with pytest.raises(ShapeMismatch, match="measured has shape"):
        average(neighbours, expression, section_of_spot=np.zeros(BANK, int), measured=np.zeros((2, 5), bool))
