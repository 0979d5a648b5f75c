"""The module that is trained: the network, its encoder where that is trained too, and the augmentation of its inputs.

Augmentation draws one of the eight symmetries of a square (D4) for each sample: tissue has no upright. For an encoder
that is trained, patches are turned and mirrored; where its last blocks are, before what is below them encodes them. For
a frozen encoder, whose tokens are computed once, the GRID of tokens is, which is not the same thing: each token was
computed from an upright patch. In the network a token's position carries no embedding and the image embedding is the
mean of the tokens, so this changes only which tokens a mask hides.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

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


class BatchShare:
    """A rank's part of a batch, in training on several devices: which rows, and the whole batch's embeddings.

    Every rank computes the loss of the whole batch. Backward, `torch.distributed` sums over the ranks what their losses
    ask of a row, and DDP averages the gradients of the weights over the ranks: together that of one process.
    """

    def __init__(self, fabric: Fabric, pairs: int) -> None:
        self.pairs = pairs
        parts = np.array_split(np.arange(pairs), fabric.world_size)
        self.rows = slice(int(parts[fabric.global_rank][0]), int(parts[fabric.global_rank][-1]) + 1)
        self._sizes, self._fabric = [len(part) for part in parts], fabric

    def gather(self, outputs: Outputs) -> Outputs:
        """Outputs of the whole batch, in its order; gradients flow back to the rank that computed a row."""
        values = [outputs.image, outputs.gene]
        if outputs.reconstruction is not None and outputs.target is not None:
            values += [outputs.reconstruction, outputs.target]
        joined = torch.cat([value.float() for value in values], dim=1)  # one exchange; mixed precision joins float32
        most = max(self._sizes)
        padded = nn.functional.pad(joined, (0, 0, 0, most - len(joined)))
        gathered: Any = self._fabric.all_gather(padded, sync_grads=True)
        whole = torch.cat([part[:size] for part, size in zip(gathered, self._sizes, strict=True)])
        image, gene, *rest = whole.split([value.shape[1] for value in values], dim=1)
        return Outputs(image, gene, *(rest or (None, None)))


class TrainingModule(nn.Module):
    """Computes the losses of a batch of pairs.

    Inputs are patches where the encoder is trained too, tokens of what is below where its last blocks are, and its own
    tokens otherwise.
    """

    def __init__(self, network: CMRCNet, encoder: ImageEncoder | None) -> None:
        super().__init__()
        self.network = network
        self.encoder = encoder

    def forward(
        self,
        inputs: Tensor,
        expression: Tensor,
        masks: torch.Generator | None,
        share: BatchShare | None = None,
    ) -> tuple[Tensor, ...]:
        """Losses of a batch and its embeddings; `masks` draws what is hidden.

        With `share` the inputs are its rows, and losses and embeddings those of the whole batch, whose masks are drawn.

        Returns
        -------
        total, contrastive, reconstruction : torch.Tensor, shape ()
            The reconstruction loss is 0 for a config without one.
        image, gene : torch.Tensor, shape (batch, embedding_dim)
        """
        if self.encoder is None:
            tokens = inputs
        elif (trained_blocks := self.network.config.trained_blocks) is not None:
            tokens = self.encoder.finish(inputs, trained_blocks)
        else:
            tokens = self.encoder(self.encoder.prepare(inputs))
        keep = None
        if share is not None and self.network.fusion is not None:
            keep = self.network.draw_masks(share.pairs, tokens.shape[1], masks, tokens.device)[share.rows]
        outputs: Outputs = self.network(tokens, expression, masks, keep)
        if share is not None:
            outputs = share.gather(outputs)
        losses = self.network.losses(outputs)
        reconstruction = losses.reconstruction
        if reconstruction is None:
            reconstruction = torch.zeros_like(losses.contrastive)
        return losses.total, losses.contrastive, reconstruction, outputs.image, outputs.gene


def new_network(config: Config, data: TrainingData, encoder: ImageEncoder) -> CMRCNet:
    """Build a network with seeded weights for these data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        return CMRCNet(
            config.model,
            n_genes=data.n_genes,
            token_dim=encoder.dim,
            n_tokens=FeatureSpec.of(config, encoder).token_count(encoder),
        )


def new_training_module(config: Config, data: TrainingData, ids: np.ndarray, encoder: ImageEncoder) -> TrainingModule:
    """Build a module with seeded weights, and token statistics or PCA of the spots `ids`, which it is trained on."""
    network = new_network(config, data, encoder)
    if config.model.pool == "components":
        pca = fit_pca(data.inputs_of(np.asarray(ids)), config.train.seed)
        network.set_pca(torch.from_numpy(pca.mean), torch.from_numpy(pca.directions))
    if network.standardizes_tokens:
        network.set_token_statistics(*data.token_statistics(ids))
    trained = config.model.train_encoder
    encoder.requires_grad_(trained)
    if trained:
        _leave_out_unreached(encoder, config)
    return TrainingModule(network, encoder if trained else None)


def _leave_out_unreached(encoder: ImageEncoder, config: Config) -> None:
    """Train only what tokens depend on: for the gradients of blocks behind the last wanted one, DDP would wait."""
    side, before, trained_blocks = encoder.config.patch_px, encoder.training, config.model.trained_blocks
    weights = list(encoder.parameters())
    blank = torch.zeros(1, 3, side, side, device=encoder.mean.device)
    if trained_blocks is None:
        tokens = encoder.eval()(blank)
    else:
        with torch.no_grad():
            inputs = encoder.below(trained_blocks, side).eval()(blank)
        tokens = encoder.eval().finish(inputs, trained_blocks)
    for weight, gradient in zip(weights, torch.autograd.grad(tokens.sum(), weights, allow_unused=True), strict=True):
        weight.requires_grad_(gradient is not None)
    encoder.train(before)


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
