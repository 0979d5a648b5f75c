"""The model and the bank that the tests of inference look at, too."""

from tests.inference.conftest import bank, model

__all__ = ["bank", "model"]
