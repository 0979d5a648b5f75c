"""A model and a bank that several tests look at."""

from __future__ import annotations

import pytest

from cmrcnet.model.trained_model import TrainedModel
from cmrcnet.prediction.bank import ReferenceBank, build_bank
from tests.prediction.small_model import small_cohort, small_model


@pytest.fixture(scope="session")
def model() -> TrainedModel:
    """A small untrained model."""
    return small_model()


@pytest.fixture(scope="session")
def bank(model) -> ReferenceBank:
    """Its bank of three sections: 24 spots, 13 genes."""
    return build_bank(model, small_cohort())
