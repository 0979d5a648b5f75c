"""The network computes what the paper says, and, with the config as-released, what the released code does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from cmrcnet.config import Config, ModelConfig
from cmrcnet.models.cmrcnet import CMRCNet, keep_mask
from tests.reference import plain_network

GENES, TOKENS, DIM, BATCH = 9, 7, 12, 4
SMALL = {"embedding_dim": 16, "fusion_dim": 16, "gene_tokens": 3, "cross_heads": 4, "fusion_heads": 8}

LAYERS = {
    "image_head.project": "image head W1",
    "image_head.refine": "image head W2",
    "image_head.norm": "image head norm",
    "gene_head.project": "gene head W1",
    "gene_head.refine": "gene head W2",
    "gene_head.norm": "gene head norm",
    "fusion.gene_tokens.project": "gene tokens",
    "fusion.image_tokens": "image tokens",
    "fusion.cross.out_proj": "cross out",
}
BLOCK_LAYERS = {
    "attention_norm": "first norm",
    "attention.out_proj": "attention out",
    "mlp_norm": "second norm",
    "mlp.0": "mlp in",
    "mlp.2": "mlp out",
    "v1": "V1",
    "v2": "V2",
}


def renamed(network: CMRCNet) -> dict[str, np.ndarray]:
    """Our weights under the reference's names, every one used."""
    names = dict(LAYERS)
    for number in range(len(network.fusion.blocks)):
        names |= {f"fusion.blocks.{number}.{ours}": f"block {number} {theirs}" for ours, theirs in BLOCK_LAYERS.items()}
    found = {}
    for key, value in network.state_dict().items():
        layer, _, kind = key.rpartition(".")
        if kind.startswith("in_proj_"):  # Q, K and V stand on top of each other
            block = layer.removesuffix(".attention").rpartition(".")[2]
            name = "cross" if layer == "fusion.cross" else f"block {block} attention"
            for part, rows in zip("QKV", value.double().numpy().reshape(3, -1, *value.shape[1:]), strict=True):
                found[f"{name} {part} {kind.removeprefix('in_proj_')}"] = rows
        else:
            found[f"{names[layer]} {kind}"] = value.double().numpy()
    return found


def small(config: str, **changes) -> ModelConfig:
    return dataclasses.replace(Config.load(config).model, **SMALL, **changes)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randn(BATCH, TOKENS, DIM, generator=generator, dtype=torch.float64)
    expression = torch.rand(BATCH, GENES, generator=generator, dtype=torch.float64) * 4
    return tokens, expression


@pytest.mark.parametrize("temperature", [0.07, 1.0, 5.0])
@pytest.mark.parametrize("preset", ["paper", "as-released"])
def test_outputs_and_losses_equal_the_plain_lines(batch, preset, temperature):
    config = small(preset, temperature=temperature)
    torch.manual_seed(0)
    network = CMRCNet(config, n_genes=GENES, token_dim=DIM).double().eval()
    for value in network.parameters():  # norms begin at one and zero, where a mistake would not show
        torch.nn.init.normal_(value, std=0.4)
    keep = keep_mask(
        BATCH,
        TOKENS,
        16,
        rate=config.mask_rate,
        rate_is=config.mask_rate_is,
        unit=config.mask_unit,
        generator=torch.Generator().manual_seed(2),
    )
    released = preset == "as-released"
    with torch.no_grad():
        outputs = network(*batch, keep=keep)
        ours = network.losses(outputs)
    plain = plain_network.forward(
        renamed(network),
        *(each.numpy() for each in (*batch, keep)),
        cross_heads=4,
        fusion_heads=8,
        gene_tokens=3,
        blocks=2,
        released=released,
    )
    for mine, theirs in zip((outputs.image, outputs.gene, outputs.reconstruction), plain, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=1e-9, atol=1e-10)
    wanted = plain_network.losses(*plain, temperature=temperature, cosine=False, released=released)
    assert [float(ours.contrastive), float(ours.reconstruction), float(ours.total)] == pytest.approx(wanted, rel=1e-9)


def test_cosine_losses_equal_the_plain_lines(batch):
    config = small("paper", similarity="cosine", temperature=0.3)
    torch.manual_seed(0)
    network = CMRCNet(config, n_genes=GENES, token_dim=DIM).double().eval()
    with torch.no_grad():
        outputs = network(*batch)
        ours = network.losses(outputs)
    rows = (outputs.image.numpy(), outputs.gene.numpy(), outputs.reconstruction.numpy())
    wanted = plain_network.losses(*rows, temperature=0.3, cosine=True, released=False)
    assert [float(ours.contrastive), float(ours.reconstruction), float(ours.total)] == pytest.approx(wanted, rel=1e-9)


def test_the_two_readings_differ_where_they_should(batch):
    """The reference can tell one from the other where the second block has weights of its own."""
    torch.manual_seed(0)
    network = CMRCNet(small("paper"), n_genes=GENES, token_dim=DIM).double().eval()
    keep = torch.ones(BATCH, TOKENS, 16, dtype=torch.bool)
    shape = {"cross_heads": 4, "fusion_heads": 8, "gene_tokens": 3, "blocks": 2}
    arrays = [each.numpy() for each in (*batch, keep)]
    one = plain_network.forward(renamed(network), *arrays, **shape, released=False)
    other = plain_network.forward(renamed(network), *arrays, **shape, released=True)
    assert np.abs(one[2] - other[2]).max() > 1e-3
