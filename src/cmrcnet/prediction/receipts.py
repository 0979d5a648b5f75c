"""What a prediction owes to whom: the weight of every neighbour, and the votes of every patient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.prediction.bank import ReferenceBank
from cmrcnet.recipe import ReadoutConfig
from cmrcnet.search.average import neighbour_weights
from cmrcnet.search.neighbours import Neighbours

if TYPE_CHECKING:
    import pandas as pd


def receipts(
    neighbours: Neighbours, bank: ReferenceBank, config: ReadoutConfig, names: list[str] | None = None
) -> tuple[np.ndarray, pd.DataFrame]:
    """Weights and votes of some places.

    Parameters
    ----------
    neighbours : Neighbours
        Of these places.
    bank : ReferenceBank
    config : ReadoutConfig
        How they are averaged.
    names : list of str, optional
        Of the places, for the index of the votes.

    Returns
    -------
    weights : numpy.ndarray, shape (places, k), float32
        Of each neighbour, summing to 1: ``obsm["neighbour_weight"]``.
    votes : pandas.DataFrame, shape (places, patients), float32
        Share of the weight per patient of the bank: ``obsm["votes"]``.
    """
    import pandas as pd

    weights = neighbour_weights(neighbours, config.weighting, config.temperature)
    patients = list(bank.patients)
    patient_of_section = bank.spots.groupby("section", sort=False)["patient"].first()
    row_of_section = np.array([patients.index(patient_of_section[section]) for section in bank.sections])
    patient = row_of_section[bank.section_of_spot[neighbours.ids]]
    slot = np.arange(len(patient))[:, None] * len(patients) + patient
    votes = np.bincount(slot.ravel(), weights.ravel(), minlength=len(patient) * len(patients))
    shares = votes.reshape(len(patient), len(patients)).astype(np.float32)
    return weights, pd.DataFrame(shares, columns=pd.Index(patients, dtype=object), index=names)
