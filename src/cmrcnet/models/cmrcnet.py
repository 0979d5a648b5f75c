"""The network of arXiv 2506.08854: image tokens and expression in, two embeddings and a reconstruction out.

From top to bottom: a projection head embeds each side; for the reconstruction, expression becomes gene tokens, a part
of the image tokens is hidden, and both are fused; `CMRCNet` puts them together. The losses stand in `models.losses`.
`tests/reference/plain_network.py` computes the same in plain NumPy, and docs/paper/deviations.md lists every departure
from the paper, each a switch of `ModelConfig`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import elu, gelu, layer_norm

from cmrcnet.config import ModelConfig
from cmrcnet.errors import BadOption, ShapeMismatch
from cmrcnet.models.losses import Losses, contrastive_loss, reconstruction_loss, total_loss

COMPONENTS = 256  # width of the image head's input with `pool: components`; as `heads.pca`


class ProjectionHead(nn.Module):
    """Embed one side: ``h = W1 x``, ``z = LayerNorm(h + Dropout(W2 GELU(h)))`` (the paper's heads, after BLEEP)."""

    def __init__(self, width: int, embedding_dim: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Linear(width, embedding_dim)
        self.refine = nn.Linear(embedding_dim, embedding_dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(embedding_dim)

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch embedding"]:
        projected = self.project(features)
        return self.norm(projected + self.dropout(self.refine(gelu(projected))))


class GeneTokens(nn.Module):
    """Gene encoder of the reconstruction: ``AlphaDropout(ELU(W g))``, cut into `tokens` pieces of `width`.

    Weights start with variance ``1 / n_genes``, which keeps mean and variance (Klambauer et al., 2017), or as torch's.
    """

    def __init__(
        self, n_genes: int, tokens: int, width: int, dropout: float, init: Literal["lecun", "torch"] = "lecun"
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.project = nn.Linear(n_genes, tokens * width)
        self.dropout = nn.AlphaDropout(dropout)
        if init == "lecun":
            nn.init.normal_(self.project.weight, std=n_genes**-0.5)
            nn.init.zeros_(self.project.bias)

    def forward(self, expression: Float[Tensor, "batch genes"]) -> Float[Tensor, "batch gene_tokens width"]:
        return self.dropout(elu(self.project(expression))).unflatten(1, (self.tokens, -1))


def keep_mask(
    batch: int,
    tokens: int,
    dim: int,
    *,
    rate: float,
    rate_is: Literal["hidden", "kept"] = "hidden",
    unit: Literal["token", "scalar"] = "token",
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Bool[Tensor, "batch tokens dim"]:
    """Draw which image tokens stay visible, M in ``M * x``: what is hidden is set to zero, without rescaling.

    Parameters
    ----------
    batch, tokens, dim : int
        Size of the tokens.
    rate : float
        Share of the tokens that is hidden, in [0, 1].
    rate_is : {"hidden", "kept"}
        "kept": `rate` is the share that stays, as in the released code.
    unit : {"token", "scalar"}
        "token": whole tokens, the same number in every row (the rate times the tokens, halves rounded up), each
        choice equally likely. "scalar": every feature independently, as in the released code.
    generator : torch.Generator or None
        None: torch's own. The mask is drawn on the generator's device, so that a seed gives the same mask everywhere.
    device : torch.device or None
        Of the mask.
    """
    at = generator.device if generator is not None else device
    if unit == "scalar":
        visible = rate if rate_is == "kept" else 1.0 - rate
        return (torch.rand(batch, tokens, dim, generator=generator, device=at) < visible).to(device)
    counted = math.floor(rate * tokens + 0.5)
    hidden = tokens - counted if rate_is == "kept" else counted
    order = torch.rand(batch, tokens, generator=generator, device=at).argsort(dim=1)
    keep = torch.ones(batch, tokens, dtype=torch.bool, device=at)
    keep.scatter_(1, order[:, :hidden], False)
    return keep.to(device)[:, :, None].expand(batch, tokens, dim)


class FusionBlock(nn.Module):
    """Pre-norm self-attention and MLP (four times as wide), each added to its input, then residual cross-attention.

    Residual cross-attention is ``Q + V1(Q) + softmax(Q K^T / sqrt(dim)) V2(K)`` with Q the image tokens and K the gene
    tokens themselves; V1 and V2 are the only weights, as the formula says. There is no dropout but what is asked for:
    behind the self-attention and in the MLP, and of V1(Q) and V2(K).
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, query_key_dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.v1, self.v2 = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dropout, self.query_key_dropout = nn.Dropout(dropout), nn.Dropout(query_key_dropout)

    def forward(
        self, image: Float[Tensor, "batch tokens dim"], gene: Float[Tensor, "batch gene_tokens dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        x = self.attention_norm(image)
        image = image + self.dropout(self.attention(x, x, x, need_weights=False)[0])
        image = image + self.dropout(self.mlp(self.mlp_norm(image)))
        share = (image @ gene.transpose(1, 2) / math.sqrt(image.shape[-1])).softmax(dim=-1)
        return image + self.query_key_dropout(self.v1(image)) + share @ self.query_key_dropout(self.v2(gene))


class Fusion(nn.Module):
    """Cross-modal mask reconstruction: ``r = mean over tokens of blocks(CrossAttention(M * x, genes), genes)``.

    Image tokens x are projected to the fusion's width, masked by M, and query the gene tokens (cross-attention, whose
    output replaces them); fusion blocks follow. The mean token is the reconstruction; a linear map follows only where
    the fusion is of another width than the embeddings. With `share_fusion_blocks` one block is applied repeatedly.

    To reconstruct tokens, x come projected, each hidden or visible token gets a learnt position, and all tokens are
    the reconstruction.
    """

    def __init__(self, config: ModelConfig, n_genes: int, token_dim: int, n_tokens: int) -> None:
        super().__init__()
        dim = config.fusion_dim
        self.position: nn.Parameter | None = None
        if config.reconstruct == "tokens":
            self.image_tokens = nn.Identity()
            self.position = nn.Parameter(nn.init.normal_(torch.empty(n_tokens, dim), std=0.02))
        else:
            self.image_tokens = nn.Linear(token_dim, dim)
        how = config.gene_tokens, dim, config.fusion_dropout, config.gene_tokens_init
        self.gene_tokens = GeneTokens(n_genes, *how)
        self.cross = nn.MultiheadAttention(dim, config.cross_heads, batch_first=True)
        different = 1 if config.share_fusion_blocks else config.fusion_blocks
        block = dim, config.fusion_heads, config.block_dropout, config.query_key_dropout
        self.blocks = nn.ModuleList(FusionBlock(*block) for _ in range(different))
        self.rounds = config.fusion_blocks // different
        self.to_embedding = nn.Identity() if dim == config.embedding_dim else nn.Linear(dim, config.embedding_dim)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens token_dim"],
        expression: Float[Tensor, "batch genes"],
        keep: Bool[Tensor, "batch tokens dim"],
    ) -> Float[Tensor, "batch reconstructed"]:
        genes, image = self.gene_tokens(expression), self.image_tokens(tokens) * keep
        if self.position is not None:
            image = image + self.position
        fused = self.cross(image, genes, genes, need_weights=False)[0]
        for block in [*self.blocks] * self.rounds:
            fused = block(fused, genes)
        if self.position is not None:
            return fused.flatten(1)
        return self.to_embedding(fused.mean(dim=1))


@dataclass(frozen=True, eq=False)
class Outputs:
    """Embeddings of a batch of pairs; `reconstruction` and `target` are None without a reconstruction.

    What is reconstructed is an embedding, all tokens side by side, or the standardised expression.
    """

    image: Float[Tensor, "batch embedding"]
    gene: Float[Tensor, "batch embedding"]
    reconstruction: Float[Tensor, "batch reconstructed"] | None
    target: Float[Tensor, "batch reconstructed"] | None


class CMRCNet(nn.Module):
    """Two projection heads and a cross-modal reconstruction behind an image encoder's tokens.

    Parameters
    ----------
    config : ModelConfig
        Widths, and a switch for each departure from the paper.
    n_genes : int
        Genes of the panel, or expression components.
    token_dim : int
        Features of an image token.
    n_tokens : int
        Image tokens of a spot; matters only where they are concatenated (`pool: components`) or reconstructed.
    """

    pca_mean: Tensor
    pca_directions: Tensor
    token_mean: Tensor
    token_deviation: Tensor

    def __init__(self, config: ModelConfig, *, n_genes: int, token_dim: int, n_tokens: int = 1) -> None:
        super().__init__()
        for what, count in (("n_genes", n_genes), ("token_dim", token_dim), ("n_tokens", n_tokens)):
            if count < 1:
                raise BadOption(what, count, "a number, 1 or more")
        self.config = config
        self.n_genes, self.token_dim, self.n_tokens = n_genes, token_dim, n_tokens
        self.standardizes_tokens = config.standardize_tokens and not config.train_encoder
        width = token_dim
        if config.pool == "components":
            width = min(COMPONENTS, n_tokens * token_dim)
            self.register_buffer("pca_mean", torch.zeros(n_tokens * token_dim))
            self.register_buffer("pca_directions", torch.zeros(n_tokens * token_dim, width))
        self.image_head = ProjectionHead(width, config.embedding_dim, config.head_dropout)
        self.gene_head = ProjectionHead(n_genes, config.embedding_dim, config.head_dropout)
        self.fusion = self.gene_decoder = None
        if config.reconstruct == "expression":
            self.gene_decoder = nn.Linear(config.embedding_dim, n_genes)
        elif config.reconstruct != "none":
            self.fusion = Fusion(config, n_genes, token_dim, n_tokens)
        if self.standardizes_tokens:
            self.register_buffer("token_mean", torch.zeros(token_dim))
            self.register_buffer("token_deviation", torch.ones(token_dim))

    def set_token_statistics(self, mean: Float[Tensor, " dim"], deviation: Float[Tensor, " dim"]) -> None:
        """Store mean and deviation of each token feature over the training spots, in a network that uses them."""
        if not self.standardizes_tokens:
            raise BadOption("model.standardize_tokens", False, "true, and a frozen encoder, to set token statistics")
        for what, values in (("mean", mean), ("deviation", deviation)):
            if tuple(values.shape) != (self.token_dim,):
                raise ShapeMismatch(f"the tokens' {what}", want=(self.token_dim,), got=tuple(values.shape))
        self.token_mean.copy_(mean)
        self.token_deviation.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))

    def set_pca(self, mean: Float[Tensor, " flat"], directions: Float[Tensor, "flat components"]) -> None:
        """Store principal components of the training spots' tokens, for `pool: components`; missing ones are zero."""
        want = (self.n_tokens * self.token_dim, "components")
        if tuple(mean.shape) != want[:1] or directions.shape[0] != want[0] or directions.shape[1] > COMPONENTS:
            raise ShapeMismatch("the directions of the PCA", want=want, got=tuple(directions.shape))
        self.pca_mean.copy_(mean)
        self.pca_directions.zero_()
        self.pca_directions[:, : directions.shape[1]] = directions

    def embed_images(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch embedding"]:
        """Embed patches by the mean of their tokens, or by their principal components (`pool`)."""
        return self._image_embedding(self._standardized(tokens))

    def embed_genes(self, expression: Float[Tensor, "batch genes"]) -> Float[Tensor, "batch embedding"]:
        """Embed spots by their log-normalised expression, genes in the panel's order."""
        return self.gene_head(expression)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        expression: Float[Tensor, "batch genes"],
        generator: torch.Generator | None = None,
        keep: Bool[Tensor, "batch tokens fusion_dim"] | None = None,
    ) -> Outputs:
        """Embed both sides and reconstruct. Tokens are masked in training and in evaluation alike.

        Parameters
        ----------
        tokens : tensor, shape (batch, tokens, dim)
            From the image encoder.
        expression : tensor, shape (batch, genes)
            Log-normalised.
        generator : torch.Generator or None
            Draws the masks; None: torch's own. See `validation_generator`.
        keep : bool tensor, shape (batch, tokens, fusion_dim), or None
            Masks to use in place of drawn ones.
        """
        config = self.config
        tokens = self._standardized(tokens)
        image = self._image_embedding(tokens)
        gene = self.embed_genes(expression)
        if self.gene_decoder is not None:
            return Outputs(image, gene, self.gene_decoder(image), _standard_scores(expression))
        if self.fusion is None:
            return Outputs(image, gene, None, None)
        if keep is None:
            keep = self.draw_masks(len(tokens), tokens.shape[1], generator, tokens.device)
        target = image if config.reconstruct == "image" else gene
        if config.reconstruct == "tokens":  # at unit variance, so that small tokens are no way out
            tokens = self.image_head.project(tokens)
            target = layer_norm(tokens, tokens.shape[-1:]).flatten(1)
        target = target.detach() if config.detach_target else target
        return Outputs(image, gene, self.fusion(tokens, expression, keep), target)

    def draw_masks(
        self, batch: int, tokens: int, generator: torch.Generator | None, device: torch.device
    ) -> Bool[Tensor, "batch tokens fusion_dim"]:
        """Draw which tokens of a batch stay visible, as `forward` does."""
        how: dict[str, Any] = {
            "rate": self.config.mask_rate,
            "rate_is": self.config.mask_rate_is,
            "unit": self.config.mask_unit,
        }
        return keep_mask(batch, tokens, self.config.fusion_dim, **how, generator=generator, device=device)

    def losses(self, outputs: Outputs) -> Losses:
        """Contrastive, reconstruction and total loss, computed in float32 under mixed precision."""
        config = self.config
        image, gene = _at_least_float32(outputs.image), _at_least_float32(outputs.gene)
        how: dict[str, Any] = {
            "similarity": config.similarity,
            "targets": config.targets,
            "second_targets": config.second_targets,
        }
        with torch.autocast(image.device.type, enabled=False):
            contrastive, rebuilt = contrastive_loss(image, gene, temperature=config.temperature, **how), None
            if outputs.reconstruction is not None and outputs.target is not None:
                rebuilt_values, target = _at_least_float32(outputs.reconstruction), _at_least_float32(outputs.target)
                rebuilt = reconstruction_loss(rebuilt_values, target, kind=config.reconstruction_loss)
            total = total_loss(contrastive, rebuilt, logarithm_of=config.total)
            return Losses(contrastive.mean(), rebuilt, total)

    def validation_generator(self, seed: int) -> torch.Generator | None:
        """A generator that hides the same tokens in every validation; None: torch's own, as in the released code."""
        return torch.Generator().manual_seed(seed) if self.config.mask_seeded_in_validation else None

    def _standardized(self, tokens: Tensor) -> Tensor:
        tokens = tokens.to(self.image_head.project.weight.dtype)
        return (tokens - self.token_mean) / self.token_deviation if self.standardizes_tokens else tokens

    def _image_embedding(self, tokens: Tensor) -> Tensor:
        if self.config.pool == "components":
            return self.image_head((tokens.flatten(1) - self.pca_mean) @ self.pca_directions)
        return self.image_head(tokens.mean(dim=1))


def _standard_scores(expression: Float[Tensor, "batch genes"]) -> Float[Tensor, "batch genes"]:
    """Each gene at mean 0 and deviation 1 over the batch, so that all count alike; one that does not vary is 0."""
    centred = expression - expression.mean(dim=0)
    return centred / centred.square().mean(dim=0).sqrt().clamp(min=1e-3)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
