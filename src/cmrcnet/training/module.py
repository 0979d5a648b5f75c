"""The module that is trained: the network, its encoder where that is trained too, and the augmentation of its inputs.

Augmentation draws one of the eight symmetries of a square (D4) for each sample: tissue has no upright. For an encoder
that is trained, patches are turned and mirrored. For a frozen encoder, whose tokens are computed once, the GRID of
tokens is, which is not the same thing: each token was computed from an upright patch. In the network a token's position
carries no embedding and the image embedding is the mean of the tokens, so this changes only which tokens a mask hides.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from cmrcnet.config import Config
from cmrcnet.errors import ShapeMismatch
from cmrcnet.features.spec import FeatureSpec
from cmrcnet.heads.pca import fit_pca
from cmrcnet.models.cmrcnet import CMRCNet, Outputs
from cmrcnet.models.image_encoder import ImageEncoder, d4
from cmrcnet.training.data import TrainingData, as_tensors

WAYS = 8


class TrainingModule(nn.Module):
    """Computes the losses of a batch of pairs. Inputs are patches when the encoder is trained too, otherwise tokens."""

    def __init__(self, network: CMRCNet, encoder: ImageEncoder | None) -> None:
        super().__init__()
        self.network = network
        self.encoder = encoder

    def forward(self, inputs: Tensor, expression: Tensor, masks: torch.Generator | None) -> tuple[Tensor, ...]:
        """Losses of a batch and its embeddings; `masks` draws what is hidden.

        Returns
        -------
        total, contrastive, reconstruction : torch.Tensor, shape ()
            The reconstruction loss is 0 for a config without one.
        image, gene : torch.Tensor, shape (batch, embedding_dim)
        """
        tokens = inputs if self.encoder is None else self.encoder(self.encoder.prepare(inputs))
        outputs: Outputs = self.network(tokens, expression, masks)
        losses = self.network.losses(outputs)
        reconstruction = losses.reconstruction
        if reconstruction is None:
            reconstruction = torch.zeros_like(losses.contrastive)
        return losses.total, losses.contrastive, reconstruction, outputs.image, outputs.gene


def new_training_module(config: Config, data: TrainingData, ids: np.ndarray, encoder: ImageEncoder) -> TrainingModule:
    """Build a module with seeded weights, and token statistics or PCA of the spots `ids`, which it is trained on."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        network = CMRCNet(
            config.model,
            n_genes=data.n_genes,
            token_dim=encoder.dim,
            n_tokens=FeatureSpec.of(config, encoder).token_count(encoder),
        )
    if config.model.pool == "components":
        pca = fit_pca(data.inputs_of(np.asarray(ids)), config.train.seed)
        network.set_pca(torch.from_numpy(pca.mean), torch.from_numpy(pca.directions))
    if network.standardizes_tokens:
        network.set_token_statistics(*data.token_statistics(ids))
    trained = config.model.train_encoder
    encoder.requires_grad_(trained)
    return TrainingModule(network, encoder if trained else None)


def on_device(
    fabric: Fabric, inputs: np.ndarray, expression: np.ndarray, ways: np.ndarray, prefix: int | None
) -> tuple[Tensor, Tensor]:
    """A batch of `epoch_batches` as tensors on the device, its samples augmented there.

    `prefix` is the number of tokens before the grid (0 for patches); None: no augmentation.
    """
    tensors, genes = fabric.to_device(as_tensors(inputs, expression))
    if prefix is None:
        return tensors, genes
    return (augment_tokens(tensors, ways, prefix) if tensors.ndim == 3 else augment_patches(tensors, ways)), genes


def augment_patches(patches: Tensor, ways: np.ndarray) -> Tensor:
    """Turn and mirror each patch (batch, side, side, channels) its own way of `image_encoder.d4`, into a new tensor."""
    if patches.ndim != 4 or patches.shape[1] != patches.shape[2]:
        raise ShapeMismatch("patches", want="(batch, side, side, channels)", got=tuple(patches.shape))
    turned = torch.empty_like(patches)
    for way in range(WAYS):
        which = torch.from_numpy(np.flatnonzero(ways == way)).to(patches.device)
        if len(which):
            turned[which] = d4(patches[which], way, rows=1, columns=2)
    return turned


def augment_tokens(tokens: Tensor, ways: np.ndarray, prefix: int) -> Tensor:
    """Turn and mirror each sample's grid of tokens its own way; the `prefix` tokens before it (class token) stay.

    Takes and returns (batch, prefix + side * side, dim).
    """
    order = torch.from_numpy(_token_orders(tokens.shape[1], prefix)[ways]).to(tokens.device)
    return tokens[torch.arange(len(tokens), device=tokens.device)[:, None], order]


@cache
def _token_orders(n_tokens: int, prefix: int) -> np.ndarray:
    """(8, tokens): index of the token that comes to each position, for each way."""
    side = math.isqrt(n_tokens - prefix)
    if side * side != n_tokens - prefix:
        raise ShapeMismatch("tokens", want=f"(batch, {prefix} + side * side, dim)", got=("batch", n_tokens, "dim"))
    grid = torch.arange(prefix, n_tokens).reshape(1, side, side, 1)
    kept = np.arange(prefix)
    ways = [d4(grid, way, rows=1, columns=2).reshape(-1).numpy() for way in range(WAYS)]
    return np.stack([np.concatenate([kept, way]) for way in ways])
