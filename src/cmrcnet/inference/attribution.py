"""What a prediction owes to whom: the weight of every neighbour, and the patient_weights of every patient."""

from __future__ import annotations

import numpy as np

from cmrcnet.config import HeadConfig
from cmrcnet.retrieval.bank import ReferenceBank
from cmrcnet.search.average import neighbour_weights
from cmrcnet.search.neighbours import Neighbours


def attributions(neighbours: Neighbours, bank: ReferenceBank, config: HeadConfig) -> tuple[np.ndarray, np.ndarray]:
    """Weights and patient_weights of some locations.

    Parameters
    ----------
    neighbours : Neighbours
        Of these locations.
    bank : ReferenceBank
    config : HeadConfig
        How they are averaged.

    Returns
    -------
    weights : numpy.ndarray, shape (locations, k), float32
        Of each neighbour, summing to 1: ``obsm["neighbour_weight"]``.
    patient_weights : numpy.ndarray, shape (locations, patients), float32
        Share of the weight per patient, in the order of `bank.patients`: ``obsm["patient_weights"]``.
    """
    weights = neighbour_weights(neighbours, config.weighting, config.temperature)
    row_of = {patient: row for row, patient in enumerate(bank.patients)}
    patient = np.array([row_of[part.patient] for part in bank.parts])[bank.section_of_spot[neighbours.ids]]
    slot = np.arange(len(patient))[:, None] * len(row_of) + patient
    patient_weights = np.bincount(slot.ravel(), weights.ravel(), minlength=len(patient) * len(row_of))
    return weights, patient_weights.reshape(len(patient), len(row_of)).astype(np.float32)
