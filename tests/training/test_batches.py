"""An epoch's batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric import Fabric

from cmrcnet.training.augmentation import turn_patches
from cmrcnet.training.batches import epoch_batches, on_device, steps_in
from tests.training.conftest import made_up_pairs


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 16), batch_size=st.integers(1, 20), seed=st.integers(0, 3))
def test_every_pair_comes_once_in_batches_of_nearly_one_size(count, batch_size, seed):
    pairs = made_up_pairs()
    ids = np.random.default_rng(9).permutation(16)[:count]
    batches = list(epoch_batches(pairs, ids, batch_size, np.random.default_rng(seed)))
    sizes = [len(expression) for _, expression, _ in batches]
    assert len(sizes) == steps_in(count, batch_size)
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    came = np.concatenate([inputs.reshape(len(inputs), -1) for inputs, _, _ in batches])
    wanted = pairs.gather(ids)[0].reshape(len(ids), -1)
    assert sorted(map(tuple, came.tolist())) == sorted(map(tuple, wanted.tolist()))


def test_a_seed_gives_one_order_and_another_seed_another():
    pairs = made_up_pairs(inputs="patches")

    def order(seed):
        rng = np.random.default_rng(seed)
        return np.concatenate([inputs for inputs, *_ in epoch_batches(pairs, np.arange(16), 5, rng)])

    assert np.array_equal(order(1), order(1))
    assert not np.array_equal(order(1), order(2))


def test_inputs_stay_with_their_expression():
    pairs = made_up_pairs()
    known = {tuple(inputs.flatten().tolist()): row for row, inputs in enumerate(pairs.gather(np.arange(16))[0])}
    for inputs, expression, _ in epoch_batches(pairs, np.arange(16), 6, np.random.default_rng(0)):
        rows = [known[tuple(each.flatten().tolist())] for each in inputs]
        np.testing.assert_array_equal(expression, pairs.expression.toarray()[rows])


@pytest.mark.parametrize("inputs", ["tokens", "patches"])
def test_augmentation_turns_and_changes_nothing_else(inputs):
    pairs = made_up_pairs(inputs=inputs)
    prefix = {"tokens": 1, "patches": 0}[inputs]  # 5 tokens: one before a grid of 2 x 2
    batch = next(iter(epoch_batches(pairs, np.arange(16), 16, np.random.default_rng(4))))
    fabric = Fabric(accelerator="cpu", devices=1)
    plain, genes = on_device(fabric, *batch, None)
    turned, same_genes = on_device(fabric, *batch, prefix)
    assert torch.equal(genes, same_genes)
    assert not torch.equal(plain, turned)
    assert torch.equal(plain.flatten(1).sort(dim=1).values, turned.flatten(1).sort(dim=1).values)
    if inputs == "patches":
        ways = [turn_patches(plain, np.full(16, way)) for way in range(8)]
        assert all(torch.equal(turned[i], ways[batch[2][i]][i]) for i in range(16))
