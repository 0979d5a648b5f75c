"""The one module that is trained: the network, and the encoder where it is trained too."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from cmrcnet.config import Config
from cmrcnet.features.extract import FeatureSpec
from cmrcnet.heads.pca import fit_pca
from cmrcnet.models.cmrcnet import CMRCNet, Outputs
from cmrcnet.models.image_encoder import ImageEncoder
from cmrcnet.training.data import Pairs


class Learner(nn.Module):
    """Pairs in, losses out.

    Parameters
    ----------
    network : CMRCNet
    encoder : ImageEncoder or None
        The encoder, when it is trained; inputs are then patches, otherwise tokens.
    """

    def __init__(self, network: CMRCNet, encoder: ImageEncoder | None) -> None:
        super().__init__()
        self.network = network
        self.encoder = encoder

    def forward(self, inputs: Tensor, expression: Tensor, masks: torch.Generator | None) -> tuple[Tensor, ...]:
        """Losses of a batch and its embeddings: total, contrastive, reconstruction (0 without one), image, gene."""
        outputs: Outputs = self.network(self.tokens(inputs), expression, masks)
        losses = self.network.losses(outputs)
        reconstruction = losses.reconstruction
        if reconstruction is None:
            reconstruction = torch.zeros_like(losses.contrastive)
        return losses.total, losses.contrastive, reconstruction, outputs.image, outputs.gene

    def tokens(self, inputs: Tensor) -> Tensor:
        """Tokens as they are, or the encoder's of uint8 patches."""
        return inputs if self.encoder is None else self.encoder(self.encoder.prepare(inputs))


def new_learner(config: Config, pairs: Pairs, ids, n_genes: int, encoder: ImageEncoder) -> Learner:
    """A learner with seeded weights; token statistics come from the pairs `ids` and no other.

    Parameters
    ----------
    config : Config
    pairs : Pairs
    ids : array of int
        The pairs that will be trained on.
    n_genes : int
        Genes of the panel.
    encoder : ImageEncoder
        With the weights that training starts from.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        network = CMRCNet(
            config.model, n_genes=n_genes, token_dim=encoder.dim, n_tokens=FeatureSpec.of(config).token_count(encoder)
        )
    if config.model.pool == "components":
        reduction = fit_pca(pairs.inputs_of(np.asarray(ids)), config.train.seed)
        network.set_pca(torch.from_numpy(reduction.mean), torch.from_numpy(reduction.directions))
    if network.standardizes_tokens:
        network.set_token_statistics(*pairs.token_statistics(ids))
    trained = config.model.train_encoder
    encoder.requires_grad_(trained)
    return Learner(network, encoder if trained else None)
