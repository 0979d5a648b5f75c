"""The network and its masks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from cmrcnet.config import Config, shipped_presets
from cmrcnet.errors import BadOption, ShapeMismatch
from cmrcnet.models.cmrcnet import CMRCNet, GeneTokens, keep_mask
from tests.models.builders import DIM, GENES, TOKENS, pairs, small_config, small_network


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("config", shipped_presets())
def test_every_shipped_config_builds_and_every_parameter_is_trained(config):
    tokens, expression = pairs()
    network = CMRCNet(Config.load(config).model, n_genes=GENES, token_dim=DIM, n_tokens=tokens.shape[1])
    if network.config.pool == "components":
        network.set_pca(torch.zeros(tokens[0].numel()), torch.eye(tokens[0].numel())[:, :7])
    outputs = network(tokens, expression)
    network.losses(outputs).total.backward()
    assert [name for name, value in network.named_parameters() if value.grad is None] == []
    assert outputs.image.shape == outputs.gene.shape == (5, network.config.embedding_dim)


def test_without_a_reconstruction_nothing_of_it_is_built():
    network = small_network(reconstruct="none")
    outputs = network(*pairs())
    losses = network.losses(outputs)
    assert network.fusion is None
    assert not any(name.startswith("fusion") for name in network.state_dict())
    assert outputs.reconstruction is outputs.target is losses.reconstruction is None
    torch.testing.assert_close(losses.total, losses.contrastive.log1p())


def test_embedding_alone_gives_what_the_whole_pass_gives():
    network = small_network().eval()
    tokens, expression = pairs()
    outputs = network(tokens, expression)
    torch.testing.assert_close(network.embed_images(tokens), outputs.image)
    torch.testing.assert_close(network.embed_genes(expression), outputs.gene)


def test_the_image_embedding_knows_no_expression_and_no_mask():
    network = small_network().eval()
    tokens, expression = pairs()
    first = network(tokens, expression, generator=seeded(1))
    second = network(tokens, expression.flip(0), generator=seeded(2))
    torch.testing.assert_close(first.image, second.image)
    assert not torch.allclose(first.reconstruction, second.reconstruction)


def test_token_order_does_not_change_the_image_embedding():
    network = small_network().eval()
    tokens, _ = pairs()
    torch.testing.assert_close(network.embed_images(tokens), network.embed_images(tokens.flip(1)))


def test_a_hidden_token_has_no_say():
    network = small_network().eval()
    tokens, expression = pairs()
    keep = torch.ones(5, TOKENS, 16, dtype=torch.bool)
    keep[:, 2] = False
    changed = tokens.clone()
    changed[:, 2] += 10
    first, second = (network(each, expression, keep=keep) for each in (tokens, changed))
    torch.testing.assert_close(first.reconstruction, second.reconstruction)
    keep[:, 2] = True
    assert not torch.allclose(network(changed, expression, keep=keep).reconstruction, first.reconstruction, atol=1e-3)


def test_dropout_acts_in_training_and_not_in_evaluation():
    network = small_network()
    tokens, expression = pairs()

    def twice():
        return [network(tokens, expression, generator=seeded()) for _ in range(2)]

    network.train()
    first, second = twice()
    assert not torch.allclose(first.image, second.image)
    assert not torch.allclose(first.gene, second.gene)
    assert not torch.allclose(first.reconstruction, second.reconstruction)
    network.eval()
    first, second = twice()
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.reconstruction, second.reconstruction)


def test_masks_come_from_the_generator_in_evaluation_too():
    network = small_network().eval()
    tokens, expression = pairs()
    one, again, other = (network(tokens, expression, generator=seeded(s)).reconstruction for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_detached_target_is_not_moved_by_the_reconstruction():
    tokens, expression = pairs()
    for detach in (True, False):
        network = small_network(detach_target=detach).eval()
        network.losses(network(tokens, expression)).reconstruction.backward()
        assert (network.image_head.project.weight.grad is None) == detach


def test_statistics_standardise_the_tokens_and_leave_constant_features_in_peace():
    network = small_network().eval()
    plain = small_network(standardize_tokens=False).eval()
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("token_")})
    tokens, _ = pairs()
    mean, deviation = torch.arange(float(DIM)), torch.linspace(0.0, 3.0, DIM)
    network.set_token_statistics(mean, deviation)
    deviation[0] = 1.0  # it was zero: that feature is only shifted
    torch.testing.assert_close(network.embed_images(tokens), plain.embed_images((tokens - mean) / deviation))


def test_statistics_are_refused_in_another_shape_and_where_they_are_not_used():
    with pytest.raises(ShapeMismatch, match="mean has shape"):
        small_network().set_token_statistics(torch.zeros(3), torch.ones(3))
    for changes in ({"standardize_tokens": False}, {"train_encoder": True}):
        with pytest.raises(BadOption, match="standardize_tokens"):
            small_network(**changes).set_token_statistics(torch.zeros(DIM), torch.ones(DIM))


def test_half_precision_tokens_are_taken_as_they_come_from_the_cache():
    network = small_network().eval()
    tokens, _ = pairs()
    torch.testing.assert_close(network.embed_images(tokens.half()), network.embed_images(tokens.half().float()))


def test_losses_are_float32_under_mixed_precision():
    network = small_network(temperature=0.07)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = network(*pairs())
        losses = network.losses(outputs)
    assert losses.total.dtype == losses.contrastive.dtype == torch.float32
    alone = network.losses(outputs)
    torch.testing.assert_close(losses.total, alone.total)


def test_a_fusion_of_another_width_is_brought_to_the_embeddings():
    network = small_network(fusion_dim=8, fusion_heads=2)
    assert network(*pairs()).reconstruction.shape == (5, 16)


def test_a_network_needs_genes_and_features():
    with pytest.raises(BadOption, match="n_genes is 0"):
        CMRCNet(small_config(), n_genes=0, token_dim=4)


def test_gene_tokens_keep_mean_and_variance_as_a_self_normalising_network_should():
    torch.manual_seed(0)
    layer = GeneTokens(400, 8, 64, dropout=0.25).train()
    wide = layer(torch.randn(64, 400)).detach()
    assert wide.shape == (64, 8, 64)
    assert float(wide.mean()) == pytest.approx(0.16, abs=0.15)  # ELU of a standard normal has mean 0.16
    assert float(wide.std()) == pytest.approx(1, abs=0.3)


def test_what_is_not_a_batch_of_tokens_is_refused_while_testing():
    """The shapes in the signatures are enforced by jaxtyping's hook (pyproject.toml, addopts)."""
    tokens, expression = pairs()
    with pytest.raises(TypeCheckError, match="'tokens'"):
        small_network().embed_images(tokens[0])
    with pytest.raises(TypeCheckError, match="'expression'"):
        small_network()(tokens, expression[:3])


@settings(max_examples=40, deadline=None)
@given(
    rate=st.floats(0, 1), tokens=st.integers(1, 60), batch=st.integers(1, 4), counts=st.sampled_from(["hidden", "kept"])
)
def test_whole_tokens_are_hidden_and_their_share_is_exact_in_every_row(rate, tokens, batch, counts):
    keep = keep_mask(batch, tokens, 3, rate=rate, rate_is=counts, generator=seeded())
    assert (keep.all(dim=2) == keep.any(dim=2)).all()
    counted = math.floor(rate * tokens + 0.5)
    assert (keep[:, :, 0].sum(dim=1) == (counted if counts == "kept" else tokens - counted)).all()


def test_half_of_vit_b32s_tokens():
    assert (~keep_mask(64, 50, 256, rate=0.5)[:, :, 0]).sum(dim=1).tolist() == [25] * 64


def test_the_rate_is_the_share_hidden_unless_it_is_said_to_be_kept():
    hidden = keep_mask(2, 10, 4, rate=0.3, generator=seeded())
    kept = keep_mask(2, 10, 4, rate=0.3, rate_is="kept", generator=seeded())
    assert (float(hidden.float().mean()), float(kept.float().mean())) == pytest.approx((0.7, 0.3))


@pytest.mark.parametrize(("counts", "visible"), [("hidden", 0.8), ("kept", 0.2)])
def test_single_features_are_hidden_by_their_own_coins(counts, visible):
    keep = keep_mask(40, 50, 60, rate=0.2, rate_is=counts, unit="scalar", generator=seeded())
    assert float(keep.float().mean()) == pytest.approx(visible, abs=0.005)
    assert not (keep.all(dim=2) == keep.any(dim=2)).any()  # no token is wholly visible or wholly hidden


@pytest.mark.parametrize("unit", ["token", "scalar"])
@pytest.mark.parametrize(("rate", "visible"), [(0.0, 1.0), (1.0, 0.0)])
def test_nothing_and_everything_can_be_hidden(unit, rate, visible):
    assert float(keep_mask(3, 5, 4, rate=rate, unit=unit).float().mean()) == visible


@pytest.mark.parametrize("unit", ["token", "scalar"])
def test_a_seed_gives_one_mask_and_another_seed_another(unit):
    first, again, other = (keep_mask(8, 20, 4, rate=0.5, unit=unit, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_generator_moves_on_between_two_masks():
    generator = seeded()
    masks = [keep_mask(8, 20, 4, rate=0.5, generator=generator) for _ in range(2)]
    assert not torch.equal(*masks)


def test_rows_differ_and_each_token_is_hidden_equally_often():
    keep = keep_mask(4000, 10, 1, rate=0.3, generator=seeded())[:, :, 0]
    assert len(keep.unique(dim=0)) == 120  # all the ways of choosing 3 of 10
    assert keep.float().mean(dim=0).tolist() == pytest.approx([0.7] * 10, abs=0.03)


def test_reconstructed_tokens_reach_the_image_head_and_expression_reaches_the_encoder():
    tokens, expression = pairs()
    network = small_network(reconstruct="tokens", detach_target=True).eval()
    outputs = network(tokens, expression)
    assert outputs.reconstruction.shape == outputs.target.shape == (5, TOKENS * 16)
    network.losses(outputs).reconstruction.backward()
    assert network.image_head.project.weight.grad is not None
    network = small_network(reconstruct="expression").eval()
    leaf = tokens.requires_grad_()
    outputs = network(leaf, expression)
    network.losses(outputs).reconstruction.backward()
    assert leaf.grad.abs().sum() > 0 and network.gene_head.project.weight.grad is None


def test_every_gene_counts_alike_in_reconstructed_expression():
    network = small_network(reconstruct="expression").eval()
    tokens, expression = pairs()
    scale = torch.linspace(0.5, 50, GENES)
    one, other = (network.losses(network(tokens, e)).reconstruction for e in (expression, expression * scale + 3))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    flat = expression.clone()
    flat[:, 0] = 2.0  # does not vary
    assert torch.isfinite(network.losses(network(tokens, flat)).reconstruction)
