"""Predictions of some locations at a time: what a table in memory and a file on disk are both filled from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.inference.location_features import LocationFeatures
from cmrcnet.inference.prediction_chunk import PredictionBlock
from cmrcnet.progress import metered

if TYPE_CHECKING:
    from cmrcnet.inference.plan import Plan

BLOCK_BYTES = 1 << 27
"""Size of one block's predicted expression, about; a handful of such arrays are in memory at once."""
LEAST, MOST = 256, 4_096
"""Locations of a block."""


def chunk_size(genes: int) -> int:
    """Locations of a block: as many parts of 256 as `BLOCK_BYTES` hold."""
    fit = BLOCK_BYTES // (4 * max(genes, 1)) // LEAST * LEAST
    return int(np.clip(fit, LEAST, MOST))


def predict_blocks(plan: Plan, features: LocationFeatures, *, start: int = 0) -> Iterator[PredictionBlock]:
    """Predict the genes, block by block.

    Parameters
    ----------
    plan : Plan
    features : LocationFeatures
        Encoded.
    start : int
        First place; those before it are done.

    Yields
    ------
    PredictionBlock
        In the order of the locations, to the last.
    """
    count, step = len(plan.locations), chunk_size(len(plan.columns))
    with metered(f"predict {plan.slide.name}", count, "locations") as meter:
        meter.skip(start)
        for first in range(start, count, step):
            rows = slice(first, min(first + step, count))
            yield plan.block(rows, features.take(rows))  # held by nobody here while the next one is made
            meter.advance(rows.stop - rows.start)
