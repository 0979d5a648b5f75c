"""CMRCNet: tokens and expression in, two embeddings and a reconstruction out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cmrcnet.config import ModelConfig
from cmrcnet.errors import BadOption, ShapeMismatch
from cmrcnet.models.contrastive_loss import contrastive_loss
from cmrcnet.models.fusion import Fusion
from cmrcnet.models.masking import keep_mask
from cmrcnet.models.projection_head import ProjectionHead
from cmrcnet.models.reconstruction_loss import reconstruction_loss
from cmrcnet.models.total_loss import total_loss

COMPONENTS = 256
"""Width of the image head with `pool: components`; as `heads.pca`."""

_NO_SPREAD = 1e-6  # a feature that varies less than this over all training tokens is only shifted


@dataclass(frozen=True, eq=False)
class Outputs:
    """What the network makes of a batch of pairs. `reconstruction` and `target` are None without a reconstruction."""

    image: Float[Tensor, "batch embedding"]
    gene: Float[Tensor, "batch embedding"]
    reconstruction: Float[Tensor, "batch embedding"] | None
    target: Float[Tensor, "batch embedding"] | None


@dataclass(frozen=True, eq=False)
class Losses:
    """The losses of a batch; `total` is trained on."""

    contrastive: Float[Tensor, ""]
    reconstruction: Float[Tensor, ""] | None
    total: Float[Tensor, ""]


class CMRCNet(nn.Module):
    """The network of arXiv 2506.08854 behind an image encoder's tokens, each departure from it a switch of `config`.

    Parameters
    ----------
    config : ModelConfig
    n_genes : int
        Genes of the panel.
    token_dim : int
        Features of an image token.
    n_tokens : int
        Image tokens of a spot; matters only where they are laid side by side (`pool: components`).
    """

    def __init__(self, config: ModelConfig, *, n_genes: int, token_dim: int, n_tokens: int = 1) -> None:
        super().__init__()
        for what, count in (("n_genes", n_genes), ("token_dim", token_dim), ("n_tokens", n_tokens)):
            if count < 1:
                raise BadOption(what, count, "a number, 1 or more")
        self.config = config
        self.n_genes = n_genes
        self.token_dim = token_dim
        self.n_tokens = n_tokens
        width = token_dim
        if config.pool == "components":
            width = min(COMPONENTS, n_tokens * token_dim)
            self.register_buffer("pca_mean", torch.zeros(n_tokens * token_dim))
            self.register_buffer("reduction", torch.zeros(n_tokens * token_dim, width))
        self.image_head = ProjectionHead(width, config.embedding_dim, config.head_dropout)
        self.gene_head = ProjectionHead(n_genes, config.embedding_dim, config.head_dropout)
        self.fusion = None
        if config.reconstruct != "none":
            self.fusion = Fusion(config, n_genes=n_genes, token_dim=token_dim)
        if self.standardizes_tokens:
            self.register_buffer("token_mean", torch.zeros(token_dim))
            self.register_buffer("token_deviation", torch.ones(token_dim))

    @property
    def standardizes_tokens(self) -> bool:
        """Whether tokens are shifted and scaled first: asked for, and the encoder is frozen."""
        return self.config.standardize_tokens and not self.config.train_encoder

    def set_token_statistics(self, mean: Float[Tensor, " dim"], deviation: Float[Tensor, " dim"]) -> None:
        """Store mean and deviation of each token feature over the training spots.

        Raises
        ------
        BadOption
            If this network does not standardise its tokens.
        ShapeMismatch
        """
        if not self.standardizes_tokens:
            raise BadOption("model.standardize_tokens", False, "true, and a frozen encoder, to set token statistics")
        for what, values in (("mean", mean), ("deviation", deviation)):
            if tuple(values.shape) != (self.token_dim,):
                raise ShapeMismatch(f"the tokens' {what}", want=(self.token_dim,), got=tuple(values.shape))
        self.token_mean.copy_(mean)
        self.token_deviation.copy_(torch.where(deviation > _NO_SPREAD, deviation, torch.ones_like(deviation)))

    def set_pca(self, mean: Float[Tensor, " flat"], directions: Float[Tensor, "flat components"]) -> None:
        """Store the principal components of the training spots' tokens, for `pool: components`.

        Fewer components than the head is wide (few training spots) are filled up with zeros.

        Raises
        ------
        ShapeMismatch
        """
        want = (self.n_tokens * self.token_dim, "components")
        if tuple(mean.shape) != want[:1] or directions.shape[0] != want[0] or directions.shape[1] > COMPONENTS:
            raise ShapeMismatch("the reduction", want=want, got=tuple(directions.shape))
        self.pca_mean.copy_(mean)
        self.reduction.zero_()
        self.reduction[:, : directions.shape[1]] = directions

    def embed_images(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch embedding"]:
        """Embed patches by the mean of their tokens, or by their principal components (`pool`)."""
        return self._embed_standardized(self._standardized(tokens))

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
        expression : tensor, shape (batch, genes)
            Log-normalised.
        generator : torch.Generator or None
            Draws the masks; None: torch's own. See `validation_generator`.
        keep : bool tensor, shape (batch, tokens, fusion_dim), or None
            Masks, where they are not to be drawn.
        """
        tokens = self._standardized(tokens)
        image = self._embed_standardized(tokens)
        gene = self.embed_genes(expression)
        if self.fusion is None:
            return Outputs(image, gene, None, None)
        if keep is None:
            keep = self._draw_mask(tokens, generator)
        target = image if self.config.reconstruct == "image" else gene
        if self.config.detach_target:
            target = target.detach()
        return Outputs(image, gene, self.fusion(tokens, expression, keep), target)

    def losses(self, outputs: Outputs) -> Losses:
        """The contrastive loss, the reconstruction loss, and the total. Computed in float32 under mixed precision."""
        config = self.config
        with torch.autocast(outputs.image.device.type, enabled=False):
            contrastive = contrastive_loss(
                _at_least_float32(outputs.image),
                _at_least_float32(outputs.gene),
                temperature=config.temperature,
                similarity=config.similarity,
                targets=config.targets,
                second_targets=config.second_targets,
            )
            reconstruction = None
            if outputs.reconstruction is not None and outputs.target is not None:
                reconstruction = reconstruction_loss(
                    _at_least_float32(outputs.reconstruction),
                    _at_least_float32(outputs.target),
                    kind=config.reconstruction_loss,
                )
            return Losses(contrastive, reconstruction, total_loss(contrastive, reconstruction))

    def validation_generator(self, seed: int) -> torch.Generator | None:
        """The generator for one validation: freshly seeded, so that every validation hides the same tokens.

        None, so that masks come from torch's own running generator, when `mask_seeded_in_validation` is off (the
        released behaviour).
        """
        return torch.Generator().manual_seed(seed) if self.config.mask_seeded_in_validation else None

    def _standardized(self, tokens: Tensor) -> Tensor:
        tokens = tokens.to(self.image_head.project.weight.dtype)
        return (tokens - self.token_mean) / self.token_deviation if self.standardizes_tokens else tokens

    def _embed_standardized(self, tokens: Tensor) -> Tensor:
        if self.config.pool == "components":
            return self.image_head((tokens.flatten(1) - self.pca_mean) @ self.reduction)
        return self.image_head(tokens.mean(dim=1))

    def _draw_mask(self, tokens: Tensor, generator: torch.Generator | None) -> Tensor:
        config = self.config
        return keep_mask(
            tokens.shape[0],
            tokens.shape[1],
            config.fusion_dim,
            rate=config.mask_rate,
            rate_is=config.mask_rate_is,
            unit=config.mask_unit,
            generator=generator,
            device=tokens.device,
        )


def _at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
