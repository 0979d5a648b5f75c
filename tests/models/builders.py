"""Small networks, encoders and models that the tests of this room share."""

from __future__ import annotations

import numpy as np
import torch

from cmrcnet.config import Config, ModelConfig
from cmrcnet.genes.gene_sets import GenePanel
from cmrcnet.models.cmrcnet import CMRCNet
from cmrcnet.models.encoders import create_image_encoder
from cmrcnet.models.trained_model import Provenance, TrainedModel

GENES, TOKENS, DIM = 11, 6, 10
SMALL = {"embedding_dim": 16, "fusion_dim": 16, "gene_tokens": 3, "cross_heads": 2, "fusion_heads": 4}


def small_config(**changes) -> ModelConfig:
    """A network of 16 features."""
    return ModelConfig(**(SMALL | changes))


def small_network(seed: int = 0, **changes) -> CMRCNet:
    """A network of 16 features for 11 genes and tokens of 10, its token statistics set when it has any."""
    torch.manual_seed(seed)
    network = CMRCNet(small_config(**changes), n_genes=GENES, token_dim=DIM, n_tokens=TOKENS)
    if network.config.pool == "components":
        network.set_pca(torch.zeros(TOKENS * DIM), torch.eye(TOKENS * DIM)[:, :7])
    if network.standardizes_tokens:
        network.set_token_statistics(torch.linspace(-1, 1, DIM), torch.linspace(0.5, 2, DIM))
    return network


def pairs(batch: int = 5, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (batch, 6, 10) and expression (batch, 11)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, TOKENS, DIM, generator=generator), torch.rand(batch, GENES, generator=generator) * 3


def noise_patches(count: int = 2, side: int = 224, seed: int = 0) -> np.ndarray:
    """Patches of random pixels."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def small_model(encoder: str = "timm:test_vit", weights: str = "random", **changes) -> TrainedModel:
    """A trained model of the smallest timm transformer."""
    settings = SMALL | {"encoder": encoder, "weights": weights} | changes
    config = Config.load("tiny").override({"model.blocks": [], **{f"model.{k}": v for k, v in settings.items()}})
    made = create_image_encoder(encoder, weights=weights, blocks=config.model.blocks)
    torch.manual_seed(3)
    network = CMRCNet(config.model, n_genes=GENES, token_dim=made.dim)
    panel = GenePanel(tuple(f"G{number}" for number in range(GENES)))
    provenance = Provenance(("A1", "A2"), ("A",), seed=3, version="0", history=({"epoch": 1, "total": 2.5},))
    return TrainedModel(network, made, panel, config, provenance)
