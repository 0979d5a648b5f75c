"""The head of a distilled student: from reduced image features to expression scores."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class StudentHead(nn.Module):
    """A line and what bends away from it: ``unit * (A x + b + W2 GELU(W1 x + b1))``.

    The second part starts at zero, so that an untrained head is the line, which can be solved for.

    Parameters
    ----------
    features : int
        Length of x.
    rank : int
        Number of scores.
    hidden : int
        Width of the bend.
    """

    def __init__(self, features: int, rank: int, hidden: int) -> None:
        super().__init__()
        self.line = nn.Linear(features, rank)
        self.bend = nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, rank, bias=False))
        nn.init.zeros_(self.bend[2].weight)
        self.register_buffer("unit", torch.ones(()))

    def forward(self, features: Float[Tensor, "locations features"]) -> Float[Tensor, "locations rank"]:
        """Scores of some locations."""
        return self.unit * (self.line(features) + self.bend(features))
