"""Expression in, gene tokens out: the self-normalising network that feeds the reconstruction."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class GeneTokens(nn.Module):
    """Linear, ELU, AlphaDropout, cut into `tokens` pieces of `width` (arXiv 2506.08854).

    The weights begin with variance ``1 / n_genes``, under which such a layer keeps mean and variance (Klambauer et
    al., "Self-Normalizing Neural Networks", 2017).
    """

    def __init__(self, n_genes: int, tokens: int, width: int, dropout: float) -> None:
        super().__init__()
        self.tokens = tokens
        self.project = nn.Linear(n_genes, tokens * width)
        self.activation = nn.ELU()
        self.dropout = nn.AlphaDropout(dropout)
        nn.init.normal_(self.project.weight, std=n_genes**-0.5)
        nn.init.zeros_(self.project.bias)

    def forward(self, expression: Float[Tensor, "batch genes"]) -> Float[Tensor, "batch gene_tokens width"]:
        """Make the tokens of a batch of spots."""
        wide = self.dropout(self.activation(self.project(expression)))
        return wide.unflatten(1, (self.tokens, -1))
