"""Evaluation of methods on held-out sections: protocol, methods, metrics, reports and sweeps."""

from typing import Any

Frame = Any
"""A `pandas.DataFrame` in annotations; pandas ships no types that a checker can use."""
Sparse = Any
"""A `scipy.sparse` matrix in annotations, for the same reason."""
