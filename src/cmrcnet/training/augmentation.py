"""Random flips and right-angle rotations: the eight ways to lay a square down.

Tissue has no upright. For an encoder that is trained, patches are turned. For a frozen encoder, whose tokens are
computed once, the GRID of tokens is turned, which is not the same thing: the tokens keep what they saw upright. In
the network a token's place carries no embedding and the image embedding is the mean of the tokens, so that turning
the grid changes only which tokens the seeded mask happens to hide. It is nearly without effect, and costs nearly
nothing; it is kept so that a fusion which knows locations could be added without forgetting it.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from cmrcnet.errors import ShapeMismatch
from cmrcnet.models.image_encoder import d4

WAYS = 8


def draw_turns(count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one of the eight ways for each of `count` samples: (count,) in 0 to 7; 0 leaves as it is.

    Bit 0 mirrors left and right, bit 1 top and bottom, bit 2 then swaps rows and columns.
    """
    return rng.integers(WAYS, size=count)


def turn_patches(patches: Tensor, turns: np.ndarray) -> Tensor:
    """Turn each patch its own way, on its own device: a GPU turns a batch sooner than a CPU hands it over.

    Parameters
    ----------
    patches : torch.Tensor, shape (batch, side, side, channels)
        Any type.
    turns : array of int, shape (batch,)

    Returns
    -------
    torch.Tensor
        A new tensor; `patches` is unchanged.
    """
    if patches.ndim != 4 or patches.shape[1] != patches.shape[2]:
        raise ShapeMismatch("patches", want="(batch, side, side, channels)", got=tuple(patches.shape))
    turned = torch.empty_like(patches)
    for way in range(WAYS):
        which = torch.from_numpy(np.flatnonzero(turns == way)).to(patches.device)
        if len(which):
            turned[which] = d4(patches[which], way, rows=1, columns=2)
    return turned


def turn_tokens(tokens: Tensor, turns: np.ndarray, prefix: int) -> Tensor:
    """Turn each sample's grid of tokens its own way; the `prefix` tokens before the grid (class token) stay.

    Parameters
    ----------
    tokens : torch.Tensor, shape (batch, prefix + side * side, dim)
    turns : array of int, shape (batch,)
    prefix : int
    """
    order = torch.from_numpy(_orders(tokens.shape[1], prefix)[turns]).to(tokens.device)
    return tokens[torch.arange(len(tokens), device=tokens.device)[:, None], order]


@cache
def _orders(n_tokens: int, prefix: int) -> np.ndarray:
    """(8, tokens): which token comes to each location, for each way."""
    side = math.isqrt(n_tokens - prefix)
    if side * side != n_tokens - prefix:
        raise ShapeMismatch("tokens", want=f"(batch, {prefix} + side * side, dim)", got=("batch", n_tokens, "dim"))
    grid = torch.arange(prefix, n_tokens).reshape(1, side, side, 1)
    kept = np.arange(prefix)
    ways = [d4(grid, way, rows=1, columns=2).reshape(-1).numpy() for way in range(WAYS)]
    return np.stack([np.concatenate([kept, way]) for way in ways])
