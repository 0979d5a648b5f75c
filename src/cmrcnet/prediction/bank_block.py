"""Some places predicted from a bank: searched, averaged, read out, with the receipt of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.prediction.prediction_block import PredictionBlock
from cmrcnet.prediction.readout import read_out
from cmrcnet.prediction.receipts import receipts
from cmrcnet.prediction.sight import split
from cmrcnet.recipe import ReadoutConfig
from cmrcnet.search.average import average
from cmrcnet.search.neighbours import Neighbours

if TYPE_CHECKING:
    from cmrcnet.model.trained_model import TrainedModel
    from cmrcnet.prediction.bank import ReferenceBank
    from cmrcnet.prediction.plan import PredictionPlan


def bank_block(plan: PredictionPlan, rows: slice, seen: np.ndarray) -> PredictionBlock:
    """Predict some places.

    Parameters
    ----------
    plan : PredictionPlan
    rows : slice
        Of the plan's places.
    seen : array, shape (places, width)
        From the features of these places.
    """
    queries, reduced = split(seen, plan.model)
    neighbours = plan.bank.searcher().nearest(queries, plan.readout.k)
    mean, spread, certain = _expression(plan, neighbours, reduced)
    weights, votes = receipts(neighbours, plan.bank, plan.readout)
    layers = plan.confidence.layers(mean, certain)
    return PredictionBlock(
        rows, mean, spread, neighbours, layers, certain, {"neighbour_weight": weights, "votes": votes}
    )


def component_scores(
    model: TrainedModel,
    bank: ReferenceBank,
    config: ReadoutConfig,
    neighbours: Neighbours,
    reduced: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Expression scores of some places, from a model that works on components.

    Parameters
    ----------
    model : TrainedModel
    bank : ReferenceBank
    config : ReadoutConfig
        How they are read out.
    neighbours : Neighbours
        Rows of the bank, of these places.
    reduced : array, shape (places, components)

    Returns
    -------
    scores : numpy.ndarray, shape (places, rank), float32
    spread : numpy.ndarray, shape (places, rank), float32
        Deviation of the neighbours' scores.
    parts : dict of array, shape (places, rank)
        What each part of the readout says by itself.
    """
    how = {"weighting": config.weighting, "temperature": config.temperature}
    retrieved, varied = average(neighbours, bank.scores, **how)
    parts = model.readout.parts(reduced, retrieved)
    return model.readout.combine(parts, config.kind), varied, parts


def _expression(
    plan: PredictionPlan, neighbours: Neighbours, reduced: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Mean and spread, as the readout says, and how certain each place is."""
    config, bank, model = plan.readout, plan.bank, plan.model
    mean, spread = read_out(neighbours, bank, config, plan.columns)
    if model.readout is None or reduced is None or bank.scores is None or bank.levels is None:
        return mean, spread, {}
    scores, varied, parts = component_scores(model, bank, config, neighbours, reduced)
    unmeasured = np.isnan(mean)
    mean = bank.levels.expression(
        scores,
        plan.columns,
        covariance=model.readout.blend.covariance,
        amplitude=config.amplitude,
    )
    mean[unmeasured] = np.nan
    return mean, spread, plan.confidence.of_places(neighbours.similarity, varied, parts, scores)
