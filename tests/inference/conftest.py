"""A model and a bank that several tests look at."""

from __future__ import annotations

import pytest

from cmrcnet.models.trained_model import TrainedModel
from cmrcnet.retrieval.bank import ReferenceBank, build_bank
from tests.inference.small_model import small_cohort, small_model


@pytest.fixture(scope="session")
def model() -> TrainedModel:
    """A small untrained model."""
    return small_model()


@pytest.fixture(scope="session")
def bank(model) -> ReferenceBank:
    """Its bank of three sections: 24 spots, 13 genes."""
    return build_bank(model, small_cohort())
