"""Some locations predicted from a bank: searched, averaged, read out, with the attribution of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.config import HeadConfig
from cmrcnet.inference.attribution import attributions
from cmrcnet.inference.feature_spec import split
from cmrcnet.inference.head import read_out
from cmrcnet.inference.prediction_chunk import PredictionBlock
from cmrcnet.search.average import average
from cmrcnet.search.neighbours import Neighbours

if TYPE_CHECKING:
    from cmrcnet.inference.plan import PredictionPlan
    from cmrcnet.models.trained_model import TrainedModel
    from cmrcnet.retrieval.bank import ReferenceBank


def bank_block(plan: PredictionPlan, rows: slice, seen: np.ndarray) -> PredictionBlock:
    """Predict some locations.

    Parameters
    ----------
    plan : PredictionPlan
    rows : slice
        Of the plan's locations.
    seen : array, shape (locations, width)
        From the features of these locations.
    """
    queries, reduced = split(seen, plan.model)
    neighbours = plan.bank.searcher().nearest(queries, plan.head.k)
    mean, spread, certain = _expression(plan, neighbours, reduced)
    weights, patient_weights = attributions(neighbours, plan.bank, plan.head)
    layers = plan.confidence.layers(mean, certain)
    return PredictionBlock(
        rows,
        mean,
        spread,
        neighbours,
        layers,
        certain,
        {"neighbour_weight": weights, "patient_weights": patient_weights},
    )


def component_scores(
    model: TrainedModel,
    bank: ReferenceBank,
    config: HeadConfig,
    neighbours: Neighbours,
    reduced: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Expression scores of some locations, from a model that works on components.

    Parameters
    ----------
    model : TrainedModel
    bank : ReferenceBank
    config : HeadConfig
        How they are read out.
    neighbours : Neighbours
        Rows of the bank, of these locations.
    reduced : array, shape (locations, components)

    Returns
    -------
    scores : numpy.ndarray, shape (locations, rank), float32
    spread : numpy.ndarray, shape (locations, rank), float32
        Deviation of the neighbours' scores.
    parts : dict of array, shape (locations, rank)
        What each part of the head says by itself.
    """
    how = {"weighting": config.weighting, "temperature": config.temperature}
    retrieved, varied = average(neighbours, bank.scores, **how)
    parts = model.head.parts(reduced, retrieved)
    return model.head.combine(parts, config.kind), varied, parts


def _expression(
    plan: PredictionPlan, neighbours: Neighbours, reduced: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Mean and spread, as the head says, and how certain each location is."""
    config, bank, model = plan.head, plan.bank, plan.model
    mean, spread = read_out(neighbours, bank, config, plan.columns)
    if model.head is None or reduced is None or bank.scores is None or bank.levels is None:
        return mean, spread, {}
    scores, varied, parts = component_scores(model, bank, config, neighbours, reduced)
    unmeasured = np.isnan(mean)
    mean = bank.levels.expression(
        scores,
        plan.columns,
        covariance=model.head.ensemble.covariance,
        variance_rescaling=config.variance_rescaling,
    )
    mean[unmeasured] = np.nan
    return mean, spread, plan.confidence.of_locations(neighbours.similarity, varied, parts, scores)
