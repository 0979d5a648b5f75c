"""Predictions of some places at a time: what a table in memory and a file on disk are both filled from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from cmrcnet.prediction.place_features import PlaceFeatures
from cmrcnet.prediction.plan import PredictionPlan
from cmrcnet.prediction.readout import read_out
from cmrcnet.prediction.receipts import receipts
from cmrcnet.progress import metered
from cmrcnet.search.average import average
from cmrcnet.search.neighbours import Neighbours
from cmrcnet.search.searcher import Searcher

BLOCK_BYTES = 1 << 27
"""Size of one block's predicted expression, about; a handful of such arrays are in memory at once."""
LEAST, MOST = 256, 4_096
"""Places of a block."""


@dataclass(frozen=True, eq=False)
class PredictionBlock:
    """Predictions of places that follow each other.

    Parameters
    ----------
    rows : slice
        Of the plan's places.
    mean, spread : numpy.ndarray, shape (places, genes), float32
        NaN where no neighbour's section measured the gene.
    neighbours : Neighbours
        Of these places.
    layers : dict of array, shape (places, genes), float32
        Whatever else is said of each place and gene; becomes a layer of the table under its name.
    obs : dict of array, shape (places,)
        Whatever else is said of each place; becomes a column of `obs` under its name.
    obsm : dict of array, shape (places, columns)
        And what takes several numbers a place; becomes an array of `obsm`.
    """

    rows: slice
    mean: np.ndarray
    spread: np.ndarray
    neighbours: Neighbours
    layers: dict[str, np.ndarray] = field(default_factory=dict)
    obs: dict[str, np.ndarray] = field(default_factory=dict)
    obsm: dict[str, np.ndarray] = field(default_factory=dict)


def places_at_once(genes: int) -> int:
    """Places of a block: as many parts of 256 as `BLOCK_BYTES` hold."""
    fit = BLOCK_BYTES // (4 * max(genes, 1)) // LEAST * LEAST
    return int(np.clip(fit, LEAST, MOST))


def predict_blocks(plan: PredictionPlan, features: PlaceFeatures, *, start: int = 0) -> Iterator[PredictionBlock]:
    """Search the bank and read out the genes, block by block.

    Parameters
    ----------
    plan : PredictionPlan
    features : PlaceFeatures
        Encoded.
    start : int
        First place; those before it are done.

    Yields
    ------
    PredictionBlock
        In the order of the places, to the last.
    """
    search = plan.bank.searcher()
    count, step = len(plan.places), places_at_once(len(plan.columns))
    with metered(f"predict {plan.slide.name}", count, "places") as meter:
        meter.skip(start)
        for first in range(start, count, step):
            rows = slice(first, min(first + step, count))
            yield _block(plan, features, search, rows)  # held by nobody here while the next one is made
            meter.advance(rows.stop - rows.start)


def _block(plan: PredictionPlan, features: PlaceFeatures, search: Searcher, rows: slice) -> PredictionBlock:
    queries, reduced = features.take(rows)
    neighbours = search.nearest(queries, plan.readout.k)
    mean, spread, certain = _expression(plan, neighbours, reduced)
    weights, votes = receipts(neighbours, plan.bank, plan.readout)
    layers = plan.confidence.layers(mean, certain)
    return PredictionBlock(
        rows, mean, spread, neighbours, layers, certain, {"neighbour_weight": weights, "votes": votes}
    )


def _expression(
    plan: PredictionPlan, neighbours: Neighbours, reduced: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Mean and spread, as the readout says, and how certain each place is."""
    config, bank, readout = plan.readout, plan.bank, plan.model.readout
    mean, spread = read_out(neighbours, bank, config, plan.columns)
    if readout is None or reduced is None or bank.scores is None or bank.levels is None:
        return mean, spread, {}
    retrieved, varied = average(neighbours, bank.scores, weighting=config.weighting, temperature=config.temperature)
    parts = readout.parts(reduced, retrieved)
    scores = readout.combine(parts, config.kind)
    unmeasured = np.isnan(mean)
    mean = bank.levels.expression(
        scores,
        plan.columns,
        covariance=readout.blend.covariance,
        amplitude=config.amplitude,
    )
    mean[unmeasured] = np.nan
    return mean, spread, plan.confidence.of_places(neighbours.similarity, varied, parts, scores)
