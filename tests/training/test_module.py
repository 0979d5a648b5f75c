"""Augmentation by the eight symmetries of a square."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrcnet.errors import ShapeMismatch
from cmrcnet.training.module import WAYS, augment_patches, augment_tokens


def corner_marked(side: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


def by_numpy(patch: np.ndarray) -> set[bytes]:
    """All flips and rotations, the plain way."""
    return {np.rot90(p, k).tobytes() for p in (patch, patch[:, ::-1]) for k in range(4)}


def test_the_ways_are_all_flips_and_rotations_and_no_other():
    patch = corner_marked()
    turned = augment_patches(torch.from_numpy(np.stack([patch] * WAYS)), np.arange(WAYS)).numpy()
    assert {np.ascontiguousarray(each).tobytes() for each in turned} == by_numpy(patch)
    np.testing.assert_array_equal(turned[0], patch)
    np.testing.assert_array_equal(turned[1], patch[:, ::-1])
    np.testing.assert_array_equal(turned[2], patch[::-1])
    np.testing.assert_array_equal(turned[4], patch.transpose(1, 0, 2))


@settings(max_examples=20, deadline=None)
@given(turns=st.lists(st.integers(0, 7), min_size=1, max_size=9), prefix=st.integers(0, 2), side=st.integers(1, 4))
def test_turning_the_grid_of_tokens_is_turning_a_picture_of_them(turns, prefix, side):
    turns = np.array(turns)
    tokens = torch.from_numpy(np.random.default_rng(0).random((len(turns), prefix + side * side, 3)))
    turned = augment_tokens(tokens, turns, prefix)
    np.testing.assert_array_equal(turned[:, :prefix], tokens[:, :prefix])
    picture = augment_patches(tokens[:, prefix:].reshape(len(turns), side, side, 3), turns)
    np.testing.assert_array_equal(turned[:, prefix:], picture.reshape(len(turns), -1, 3))


def test_the_mean_of_the_tokens_does_not_move():
    """So with a frozen encoder the image embedding is untouched, as the module says."""
    tokens = torch.arange(2 * 50 * 4).reshape(2, 50, 4)
    turned = augment_tokens(tokens, np.array([3, 6]), 1)
    assert not torch.equal(turned, tokens)
    assert torch.equal(turned.sum(dim=1), tokens.sum(dim=1))


def test_the_input_is_left_alone():
    patches = torch.from_numpy(np.stack([corner_marked()] * 3))
    before = patches.clone()
    augment_patches(patches, np.array([1, 5, 7]))
    assert torch.equal(patches, before)


def test_what_is_no_square_is_refused():
    with pytest.raises(ShapeMismatch, match="side, side"):
        augment_patches(torch.zeros(1, 4, 5, 3), np.array([0]))
    with pytest.raises(ShapeMismatch, match="1 \\+ side \\* side"):
        augment_tokens(torch.zeros(1, 49, 3), np.array([0]), 1)
