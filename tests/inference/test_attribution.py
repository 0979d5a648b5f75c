"""Weights and patient_weights by hand."""

from __future__ import annotations

import numpy as np

from cmrcnet.config import HeadConfig
from cmrcnet.inference.predict import predict
from cmrcnet.inference.predictor import attribution_weights
from cmrcnet.search.exact import Neighbours
from tests.inference.small_model import locations, noise_slide


def test_patient_weights_sum_the_weights_of_each_patients_spots(bank):
    """Rows 0 to 15 of the bank are patient A's, 16 to 23 patient B's."""
    ids = np.array([[0, 23, 15], [16, 17, 18]])
    similarity = np.array([[0.9, 0.8, 0.7], [0.5, 0.5, 0.5]], np.float32)
    config = HeadConfig(weighting="similarity", temperature=0.1)
    weights, patient_weights = attribution_weights(Neighbours(ids, similarity), bank, config)
    wanted = np.exp(np.array([9.0, 8, 7]))
    np.testing.assert_allclose(weights[0], wanted / wanted.sum(), rtol=1e-5)
    np.testing.assert_allclose(patient_weights[0], [weights[0, [0, 2]].sum(), weights[0, 1]], rtol=1e-5)
    np.testing.assert_allclose(patient_weights[1], [0, 1], rtol=1e-5)
    assert bank.patients == ("A", "B")


def test_every_prediction_carries_them(model, bank):
    table = predict(model, noise_slide(9), bank=bank, spots=locations(5, seed=3))
    assert table.obsm["neighbour_weight"].shape == (5, 4)
    np.testing.assert_allclose(table.obsm["neighbour_weight"].sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(table.obsm["patient_weights"].sum(axis=1), 1, rtol=1e-5)
    assert table.obsm["patient_weights"].shape == (5, 2) and table.obsm["patient_weights"].dtype == np.float32
