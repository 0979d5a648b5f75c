"""Predictions of some places at a time: what a table in memory and a file on disk are both filled from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.prediction.place_features import PlaceFeatures
from cmrcnet.prediction.prediction_block import PredictionBlock
from cmrcnet.progress import metered

if TYPE_CHECKING:
    from cmrcnet.prediction.plan import Plan

BLOCK_BYTES = 1 << 27
"""Size of one block's predicted expression, about; a handful of such arrays are in memory at once."""
LEAST, MOST = 256, 4_096
"""Places of a block."""


def places_at_once(genes: int) -> int:
    """Places of a block: as many parts of 256 as `BLOCK_BYTES` hold."""
    fit = BLOCK_BYTES // (4 * max(genes, 1)) // LEAST * LEAST
    return int(np.clip(fit, LEAST, MOST))


def predict_blocks(plan: Plan, features: PlaceFeatures, *, start: int = 0) -> Iterator[PredictionBlock]:
    """Predict the genes, block by block.

    Parameters
    ----------
    plan : Plan
    features : PlaceFeatures
        Encoded.
    start : int
        First place; those before it are done.

    Yields
    ------
    PredictionBlock
        In the order of the places, to the last.
    """
    count, step = len(plan.places), places_at_once(len(plan.columns))
    with metered(f"predict {plan.slide.name}", count, "places") as meter:
        meter.skip(start)
        for first in range(start, count, step):
            rows = slice(first, min(first + step, count))
            yield plan.block(rows, features.take(rows))  # held by nobody here while the next one is made
            meter.advance(rows.stop - rows.start)
