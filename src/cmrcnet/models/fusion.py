"""Image and gene tokens are fused until the mean token can stand for the whole pair."""

from __future__ import annotations

import math

from jaxtyping import Bool, Float
from torch import Tensor, nn

from cmrcnet.config import ModelConfig
from cmrcnet.models.gene_encoder import GeneTokens


class ResidualCrossAttention(nn.Module):
    """``Q + V1(Q) + softmax(Q K^T / sqrt(dim)) V2(K)`` (arXiv 2506.08854).

    Q are the image tokens and K the gene tokens themselves; V1 and V2 are the only weights, as the formula says.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.own_value = nn.Linear(dim, dim)
        self.other_value = nn.Linear(dim, dim)

    def forward(
        self, image: Float[Tensor, "batch tokens dim"], gene: Float[Tensor, "batch gene_tokens dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Let every image token take what it needs from the gene tokens."""
        attention = (image @ gene.transpose(1, 2) / math.sqrt(image.shape[-1])).softmax(dim=-1)
        return image + self.own_value(image) + attention @ self.other_value(gene)


class FusionBlock(nn.Module):
    """Pre-norm self-attention and MLP (four times as wide), each added to its input, then residual cross-attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.cross = ResidualCrossAttention(dim)

    def forward(
        self, image: Float[Tensor, "batch tokens dim"], gene: Float[Tensor, "batch gene_tokens dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Fuse once."""
        normed = self.attention_norm(image)
        image = image + self.attention(normed, normed, normed, need_weights=False)[0]
        image = image + self.mlp(self.mlp_norm(image))
        return self.cross(image, gene)


class Fusion(nn.Module):
    """Cross-modal mask reconstruction: masked image tokens and expression in, a guess at the embedding out.

    Image tokens are projected to the fusion's width, masked, and ask the gene tokens (cross-attention, whose output
    replaces them); fusion blocks follow. The mean token is the reconstruction; a linear map follows only where the
    fusion is of another width than the embeddings. With `share_fusion_blocks` one block is used again and again.
    """

    def __init__(self, config: ModelConfig, *, n_genes: int, token_dim: int) -> None:
        super().__init__()
        dim = config.fusion_dim
        self.image_tokens = nn.Linear(token_dim, dim)
        self.gene_tokens = GeneTokens(n_genes, config.gene_tokens, dim, config.fusion_dropout)
        self.cross = nn.MultiheadAttention(dim, config.cross_heads, batch_first=True)
        different = 1 if config.share_fusion_blocks else config.fusion_blocks
        self.blocks = nn.ModuleList(FusionBlock(dim, config.fusion_heads) for _ in range(different))
        self.rounds = config.fusion_blocks // different
        self.to_embedding = nn.Identity() if dim == config.embedding_dim else nn.Linear(dim, config.embedding_dim)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens token_dim"],
        expression: Float[Tensor, "batch genes"],
        keep: Bool[Tensor, "batch tokens dim"],
    ) -> Float[Tensor, "batch embedding"]:
        """Reconstruct the embedding of each pair."""
        genes = self.gene_tokens(expression)
        image = self.image_tokens(tokens)
        image = image * keep.to(image.dtype)
        fused = self.cross(image, genes, genes, need_weights=False)[0]
        for block in [*self.blocks] * self.rounds:
            fused = block(fused, genes)
        return self.to_embedding(fused.mean(dim=1))
