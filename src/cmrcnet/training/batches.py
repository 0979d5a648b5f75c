"""One epoch's batches: shuffled, of nearly equal size, turned, prepared ahead in a thread."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from cmrcnet.encoding.read_ahead import read_ahead
from cmrcnet.training.augmentation import draw_turns, turn_patches, turn_tokens
from cmrcnet.training.pairs import Pairs


def steps_in(pairs: int, batch_size: int) -> int:
    """Batches an epoch."""
    return max(1, math.ceil(pairs / batch_size))


def epoch_batches(
    pairs: Pairs,
    ids: np.ndarray,
    batch_size: int,
    rng: np.random.Generator,
    *,
    prefix: int | None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every pair of `ids` once, in random order, as arrays (see `Pairs.gather`).

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
    prefix : int or None
        Turn the samples at random; `prefix` tokens come before the grid (0 for patches). None: no augmentation.
    """
    shuffled = rng.permutation(np.asarray(ids))
    turns = draw_turns(len(shuffled), rng)
    parts = np.array_split(np.arange(len(shuffled)), steps_in(len(shuffled), batch_size))

    def make() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for part in parts:
            inputs, expression = pairs.gather(shuffled[part])
            if prefix is not None:
                inputs = _turn(inputs, turns[part], prefix)
            yield inputs, expression

    return read_ahead(make())


def _turn(inputs: np.ndarray, turns: np.ndarray, prefix: int) -> np.ndarray:
    return turn_tokens(inputs, turns, prefix) if inputs.ndim == 3 else turn_patches(inputs, turns)
