"""Every switch of the model changes something that can be measured, and no switch is forgotten here."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cmrcnet.config import ModelConfig
from cmrcnet.models.encoders import create_image_encoder
from tests.models.builders import noise_patches, pairs, small_config, small_network

FLIPPED = {
    "embedding_dim": 8,
    "head_dropout": 0.6,
    "similarity": "dot",
    "temperature": 0.2,
    "targets": "identity",
    "reconstruct": "gene",
    "reconstruction_loss": "cosine",
    "mask_rate": 0.9,
    "mask_rate_is": "kept",
    "mask_unit": "scalar",
    "gene_tokens": 5,
    "fusion_dim": 8,
    "fusion_dropout": 0.6,
    "gene_tokens_init": "torch",
    "block_dropout": 0.6,
    "query_key_dropout": 0.6,
    "total": "sample",
    "cross_heads": 4,
    "fusion_heads": 2,
    "fusion_blocks": 3,
    "share_fusion_blocks": True,
    "standardize_tokens": False,
    "pool": "components",
}
"""Switches whose effect shows in one training step of the network, and a value that is not the default."""

ELSEWHERE = {
    "encoder": "test_the_encoders_switches_change_the_tokens",
    "weights": "test_the_encoders_switches_change_the_tokens",
    "blocks": "test_the_encoders_switches_change_the_tokens",
    "encoder_depth": "test_the_encoders_switches_change_the_tokens",
    "encoder_heads": "test_the_encoders_switches_change_the_tokens",
    "train_encoder": "test_training_the_encoder_turns_standardising_off",
    "trained_blocks": "test_only_the_last_blocks_are_trained",
    "detach_target": "test_detaching_shows_in_the_gradient",
    "mask_seeded_in_validation": "test_seeded_validation_repeats_itself",
    "second_targets": "test_transposed_targets_show_in_the_loss",
}


def test_no_switch_of_the_model_is_forgotten():
    assert set(FLIPPED) | set(ELSEWHERE) == {field.name for field in dataclasses.fields(ModelConfig)}
    assert all(name in globals() for name in ELSEWHERE.values())


def measured(**changes) -> tuple:
    """Parameters, losses and gradients of one seeded training step."""
    network = small_network(**changes).train()
    torch.manual_seed(0)
    outputs = network(*pairs(), generator=torch.Generator().manual_seed(0))
    losses = network.losses(outputs)
    losses.total.backward()
    size = sum(value.numel() for value in network.parameters())
    slope = sum(float(value.grad.double().abs().sum()) for value in network.parameters() if value.grad is not None)
    return size, round(losses.total.item(), 5), round(slope, 4)


def test_what_is_reconstructed_changes_the_step():
    steps = [measured(reconstruct=what) for what in ("image", "gene", "tokens", "expression", "none")]
    assert len(set(steps)) == len(steps)


def test_only_the_last_blocks_are_trained():
    encoder = create_image_encoder("timm:test_vit", weights="random")
    below = encoder.below(2, 160)
    with torch.no_grad():
        tokens = below(below.prepare(noise_patches(2, 160)))
    encoder.finish(tokens, 2).sum().backward()
    reached = {name for name, value in encoder.backbone.named_parameters() if value.grad is not None}
    assert {name.split(".")[1] for name in reached if name.startswith("blocks.")} == {"4", "5"}
    assert "norm.weight" in reached and "pos_embed" not in reached


@pytest.mark.parametrize("switch", FLIPPED)
def test_each_switch_changes_the_step(switch):
    assert FLIPPED[switch] != getattr(small_config(mask_rate=0.3), switch)
    assert measured(mask_rate=0.3) == measured(mask_rate=0.3)  # so that a difference is the switch's
    assert measured(**{"mask_rate": 0.3, switch: FLIPPED[switch]}) != measured(mask_rate=0.3)


def test_sharing_blocks_saves_a_blocks_parameters():
    one, two, shared = (
        measured(fusion_blocks=number, share_fusion_blocks=share)[0]
        for number, share in ((1, False), (2, False), (2, True))
    )
    assert shared == one < two


def test_transposed_targets_show_in_the_loss():
    """Only when the targets are not symmetric already, as they nearly are in a small batch of cosines."""
    totals = []
    for second in ("softmax", "transpose"):
        network = small_network(similarity="dot", second_targets=second).eval()
        totals.append(float(network.losses(network(*pairs(seed=4))).contrastive))
    assert totals[0] != pytest.approx(totals[1], rel=1e-4)


def test_detaching_shows_in_the_gradient():
    assert measured(detach_target=True)[2] != measured(detach_target=False)[2]
    assert measured(detach_target=True)[:2] == measured(detach_target=False)[:2]


def test_seeded_validation_repeats_itself():
    for seeded in (True, False):
        network = small_network(mask_seeded_in_validation=seeded).eval()
        passes = [network(*pairs(), generator=network.validation_generator(3)).reconstruction for _ in range(2)]
        assert torch.equal(*passes) == seeded


def test_training_the_encoder_turns_standardising_off():
    assert "token_mean" in small_network().state_dict()
    assert "token_mean" not in small_network(train_encoder=True).state_dict()


def test_the_encoders_switches_change_the_tokens():
    def tokens(name="timm:test_vit", **changes):
        encoder = create_image_encoder(name, **({"weights": "random", "seed": 0} | changes))
        with torch.inference_mode():
            return encoder(encoder.prepare(noise_patches(1, encoder.config.patch_px)))

    plain = tokens()
    assert torch.equal(plain, tokens())
    for other in (
        tokens("timm:test_vit2"),
        tokens(seed=1),
        tokens(blocks=(1,)),
        tokens(depth=2),
        tokens(heads=4),
    ):
        assert other.shape != plain.shape or not torch.allclose(other, plain, atol=1e-3)
