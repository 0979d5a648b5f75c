"""What a prediction owes to whom: the weight of every neighbour, and the votes of every patient."""

from __future__ import annotations

import numpy as np

from cmrcnet.prediction.bank import ReferenceBank
from cmrcnet.recipe import ReadoutConfig
from cmrcnet.search.average import neighbour_weights
from cmrcnet.search.neighbours import Neighbours


def receipts(neighbours: Neighbours, bank: ReferenceBank, config: ReadoutConfig) -> tuple[np.ndarray, np.ndarray]:
    """Weights and votes of some places.

    Parameters
    ----------
    neighbours : Neighbours
        Of these places.
    bank : ReferenceBank
    config : ReadoutConfig
        How they are averaged.

    Returns
    -------
    weights : numpy.ndarray, shape (places, k), float32
        Of each neighbour, summing to 1: ``obsm["neighbour_weight"]``.
    votes : numpy.ndarray, shape (places, patients), float32
        Share of the weight per patient, in the order of `bank.patients`: ``obsm["votes"]``.
    """
    weights = neighbour_weights(neighbours, config.weighting, config.temperature)
    row_of = {patient: row for row, patient in enumerate(bank.patients)}
    patient = np.array([row_of[part.patient] for part in bank.parts])[bank.section_of_spot[neighbours.ids]]
    slot = np.arange(len(patient))[:, None] * len(row_of) + patient
    votes = np.bincount(slot.ravel(), weights.ravel(), minlength=len(patient) * len(row_of))
    return weights, votes.reshape(len(patient), len(row_of)).astype(np.float32)
