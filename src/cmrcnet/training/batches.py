"""One epoch's batches: shuffled, of nearly equal size, gathered ahead in a thread, turned on the device."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from lightning_fabric import Fabric
from torch import Tensor

from cmrcnet.features.prefetch import read_ahead
from cmrcnet.training.augmentation import draw_turns, turn_patches, turn_tokens
from cmrcnet.training.data import Pairs, as_tensors


def steps_in(pairs: int, batch_size: int) -> int:
    """Batches an epoch."""
    return max(1, math.ceil(pairs / batch_size))


def epoch_batches(
    pairs: Pairs, ids: np.ndarray, batch_size: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Every pair of `ids` once, in random order.

    The pairs are shared out evenly over the least number of batches that holds them: 100 pairs at batch size 64 make
    two batches of 50, not one of 64 and one of 36, because the number of candidates is part of the contrastive loss.

    Parameters
    ----------
    pairs : Pairs
    ids : array of int
    batch_size : int
        Largest batch.
    rng : numpy.random.Generator
        Draws the order and the turns.

    Returns
    -------
    iterator of (inputs, expression, turns)
        Arrays (see `Pairs.gather`), and the way in which each input is to be turned, where it is.
    """
    shuffled = rng.permutation(np.asarray(ids))
    turns = draw_turns(len(shuffled), rng)
    parts = np.array_split(np.arange(len(shuffled)), steps_in(len(shuffled), batch_size))
    return read_ahead((*pairs.gather(shuffled[part]), turns[part]) for part in parts)


def on_device(
    fabric: Fabric, inputs: np.ndarray, expression: np.ndarray, turns: np.ndarray, prefix: int | None
) -> tuple[Tensor, Tensor]:
    """A batch as tensors on the device, its samples turned there.

    Parameters
    ----------
    fabric : lightning_fabric.Fabric
    inputs, expression, turns : arrays
        One item of `epoch_batches`.
    prefix : int or None
        Tokens before the grid (0 for patches); None: nothing is turned.
    """
    tensors, genes = fabric.to_device(as_tensors(inputs, expression))
    if prefix is None:
        return tensors, genes
    return (turn_tokens(tensors, turns, prefix) if tensors.ndim == 3 else turn_patches(tensors, turns)), genes
