"""The projection head of both sides: any width in, an embedding out."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu


class ProjectionHead(nn.Module):
    """``h = W1 x``; ``LayerNorm(h + Dropout(W2 GELU(h)))`` (arXiv 2506.08854; after BLEEP).

    The norm leaves every embedding about ``sqrt(embedding_dim)`` long.
    """

    def __init__(self, width: int, embedding_dim: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Linear(width, embedding_dim)
        self.refine = nn.Linear(embedding_dim, embedding_dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(embedding_dim)

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch embedding"]:
        """Embed a batch."""
        projected = self.project(features)
        return self.norm(projected + self.dropout(self.refine(gelu(projected))))
