"""An epoch's batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrcnet.training.augmentation import turn_patches
from cmrcnet.training.batches import epoch_batches, steps_in
from tests.training.conftest import made_up_pairs


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 16), batch_size=st.integers(1, 20), seed=st.integers(0, 3))
def test_every_pair_comes_once_in_batches_of_nearly_one_size(count, batch_size, seed):
    pairs = made_up_pairs()
    ids = np.random.default_rng(9).permutation(16)[:count]
    batches = list(epoch_batches(pairs, ids, batch_size, np.random.default_rng(seed), prefix=None))
    sizes = [len(expression) for _, expression in batches]
    assert len(sizes) == steps_in(count, batch_size)
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    came = np.concatenate([inputs.reshape(len(inputs), -1) for inputs, _ in batches])
    wanted = pairs.gather(ids)[0].reshape(len(ids), -1)
    assert sorted(map(tuple, came.tolist())) == sorted(map(tuple, wanted.tolist()))


def test_a_seed_gives_one_order_and_another_seed_another():
    pairs = made_up_pairs(inputs="patches")

    def order(seed):
        rng = np.random.default_rng(seed)
        return np.concatenate([inputs for inputs, _ in epoch_batches(pairs, np.arange(16), 5, rng, prefix=0)])

    assert np.array_equal(order(1), order(1))
    assert not np.array_equal(order(1), order(2))


def test_inputs_stay_with_their_expression():
    pairs = made_up_pairs()
    known = {tuple(inputs.flatten().tolist()): row for row, inputs in enumerate(pairs.gather(np.arange(16))[0])}
    for inputs, expression in epoch_batches(pairs, np.arange(16), 6, np.random.default_rng(0), prefix=None):
        rows = [known[tuple(each.flatten().tolist())] for each in inputs]
        np.testing.assert_array_equal(expression, pairs.expression.toarray()[rows])


@pytest.mark.parametrize("inputs", ["tokens", "patches"])
def test_augmentation_turns_and_changes_nothing_else(inputs):
    pairs = made_up_pairs(inputs=inputs)
    prefix = {"tokens": 1, "patches": 0}[inputs]  # 5 tokens: one before a grid of 2 x 2
    plain = next(iter(epoch_batches(pairs, np.arange(16), 16, np.random.default_rng(4), prefix=None)))[0]
    turned = next(iter(epoch_batches(pairs, np.arange(16), 16, np.random.default_rng(4), prefix=prefix)))[0]
    assert not np.array_equal(plain, turned)
    assert np.array_equal(np.sort(plain.reshape(16, -1)), np.sort(turned.reshape(16, -1)))
    if inputs == "patches":
        ways = [turn_patches(plain, np.full(16, way)) for way in range(8)]
        assert all(any(np.array_equal(turned[i], way[i]) for way in ways) for i in range(16))
