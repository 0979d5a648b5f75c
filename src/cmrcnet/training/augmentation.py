"""Random flips and right-angle rotations: the eight ways to lay a square down.

Tissue has no upright. For an encoder that is trained, patches are turned. For a frozen encoder, whose tokens are
computed once, the GRID of tokens is turned, which is not the same thing: the tokens keep what they saw upright. In
the network a token's place carries no embedding and the image embedding is the mean of the tokens, so that turning
the grid changes only which tokens the seeded mask happens to hide. It is nearly without effect, and costs nearly
nothing; it is kept so that a fusion which knows places could be added without forgetting it.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from cmrcnet.errors import ShapeMismatch

WAYS = 8


def draw_turns(count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one of the eight ways for each of `count` samples: (count,) in 0 to 7; 0 leaves as it is.

    Bit 0 mirrors left and right, bit 1 top and bottom, bit 2 then swaps rows and columns.
    """
    return rng.integers(WAYS, size=count)


def turn_patches(patches: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Turn each patch its own way.

    Parameters
    ----------
    patches : numpy.ndarray, shape (batch, side, side, channels)
        Any type.
    turns : array of int, shape (batch,)

    Returns
    -------
    numpy.ndarray
        A new array; `patches` is unchanged.
    """
    if patches.ndim != 4 or patches.shape[1] != patches.shape[2]:
        raise ShapeMismatch("patches", want="(batch, side, side, channels)", got=patches.shape)
    turned = np.empty(patches.shape, patches.dtype)
    # A pixel's channels move together: as one item they are copied twice as fast.
    pixel = np.dtype((np.void, patches.shape[3] * patches.itemsize))
    before, after = (each.view(pixel)[..., 0] for each in (np.ascontiguousarray(patches), turned))
    for way in range(WAYS):
        for which in np.flatnonzero(turns == way):
            after[which] = _turned(before[which], way)
    return turned


def turn_tokens(tokens: np.ndarray, turns: np.ndarray, prefix: int) -> np.ndarray:
    """Turn each sample's grid of tokens its own way; the `prefix` tokens before the grid (class token) stay.

    Parameters
    ----------
    tokens : numpy.ndarray, shape (batch, prefix + side * side, dim)
    turns : array of int, shape (batch,)
    prefix : int
    """
    order = _orders(tokens.shape[1], prefix)[turns]
    return tokens[np.arange(len(tokens))[:, None], order]


@cache
def _orders(n_tokens: int, prefix: int) -> np.ndarray:
    """(8, tokens): which token comes to each place, for each way."""
    side = math.isqrt(n_tokens - prefix)
    if side * side != n_tokens - prefix:
        raise ShapeMismatch("tokens", want=f"(batch, {prefix} + side * side, dim)", got=("batch", n_tokens, "dim"))
    grid = np.arange(prefix, n_tokens).reshape(side, side)
    kept = np.arange(prefix)
    return np.stack([np.concatenate([kept, _turned(grid, way).ravel()]) for way in range(WAYS)])


def _turned(square: np.ndarray, way: int) -> np.ndarray:
    """A view of (side, side), laid down in one of the eight ways."""
    if way & 1:
        square = square[:, ::-1]
    if way & 2:
        square = square[::-1]
    return square.T if way & 4 else square
