from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from cmrcnet.errors import BadOption, ShapeMismatch
from cmrcnet.models.encoders import create_image_encoder
from cmrcnet.models.image_encoder import ImageEncoder, blocks_of
from tests.models.builders import noise_patches

# One of each way in which timm gives features: (b, c, h, w), (b, h, w, c), (b, t, c) with and without registers,
# stages of blocks, and a mix of tokens and maps.
NETWORKS = [
    "test_resnet",
    "test_convnext",
    "test_efficientnet",
    "test_mambaout",
    "test_vit",
    "test_vit3",
    "test_maxvit",
]


def made(name: str, **settings) -> ImageEncoder:
    return create_image_encoder(f"timm:{name}", weights="random", **settings)


def encode(encoder: ImageEncoder, pixels=None) -> torch.Tensor:
    with torch.inference_mode():
        return encoder(encoder.prepare(noise_patches(2, encoder.config.patch_px) if pixels is None else pixels))


@pytest.mark.parametrize("name", NETWORKS)
def test_any_timm_network_gives_tokens_of_its_last_output_and_of_its_blocks(name):
    whole = made(name)
    assert encode(whole).shape == (2, whole.n_tokens, whole.dim)
    last = len(whole.config.blocks) - 1
    assert last >= 1
    alone = {block: encode(made(name, blocks=(block,))) for block in (0, last)}
    joined = made(name, blocks=(last, 0))
    tokens = encode(joined)
    assert tokens.shape == (2, joined.n_tokens, joined.dim)
    torch.testing.assert_close(tokens, torch.cat([alone[last], alone[0]], dim=2))


def test_a_feature_map_becomes_its_places_in_reading_order():
    encoder = made("test_resnet")
    pixels = noise_patches(1, encoder.config.patch_px)
    with torch.inference_mode():
        wanted = encoder.backbone.forward_features(encoder.prepare(pixels))
    rows, columns = encoder.config.grid
    tokens = encode(encoder, pixels)
    for place in range(rows * columns):
        torch.testing.assert_close(tokens[0, place], wanted[0, :, place // columns, place % columns])


def test_class_tokens_stay_and_register_tokens_go():
    encoder = create_image_encoder("timm:vit_wee_patch16_reg1_gap_256", weights="random", depth=1)
    assert (encoder.config.class_tokens, encoder.config.register_tokens) == (0, 1)
    assert encoder.n_tokens == (encoder.config.patch_px // 16) ** 2
    pixels = noise_patches(1, encoder.config.patch_px)
    with torch.inference_mode():
        all_of_them = encoder.backbone.forward_features(encoder.prepare(pixels))
    torch.testing.assert_close(encode(encoder, pixels), all_of_them[:, 1:])
    plain = made("test_vit")
    assert (plain.config.class_tokens, plain.config.register_tokens) == (1, 0)
    assert plain.n_tokens == 101  # 100 locations and the class token


def test_what_comes_after_the_last_wanted_block_is_not_computed():
    encoder = made("test_vit", blocks=(2,))
    ran = []
    for number, block in enumerate(blocks_of(encoder.backbone)):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    encode(encoder)
    assert ran == [0, 1, 2]


def test_no_hook_stays_behind_and_a_copy_is_a_copy():
    encoder = made("test_vit", blocks=(1, 3))
    tokens = encode(encoder)
    assert all(not module._forward_hooks for module in encoder.modules())
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        next(encoder.backbone.parameters()).add_(1)
    torch.testing.assert_close(encode(other), tokens)


def test_gradients_reach_the_blocks_that_are_used_and_only_those():
    encoder = made("test_vit", blocks=(2,)).train()
    encoder(encoder.prepare(noise_patches(1, 160))).sum().backward()
    blocks = blocks_of(encoder.backbone)
    assert [next(block.parameters()).grad is not None for block in blocks] == [n <= 2 for n in range(len(blocks))]


def test_a_patch_of_another_size_is_refused_by_a_transformer_and_taken_by_a_convolution():
    encoder = made("test_vit")
    with pytest.raises(ShapeMismatch, match=r"\('batch', 3, 160, 160\)"):
        encode(encoder, noise_patches(1, 128))
    convolution = create_image_encoder("efficientnet-lite0", weights="random")
    assert encode(convolution, noise_patches(1, 96)).shape == (1, 49, 1280)


@pytest.mark.parametrize("blocks", [(6,), (-1,), (1, 1)])
def test_blocks_that_are_not_there_are_refused(blocks):
    with pytest.raises(BadOption, match=r"model\.blocks"):
        made("test_vit", blocks=blocks)


def test_pixels_are_scaled_by_the_card():
    encoder = made("test_vit")
    pixels = noise_patches(1, 160)
    wanted = (pixels / 255 - np.array(encoder.config.mean)) / np.array(encoder.config.std)
    np.testing.assert_allclose(encoder.prepare(pixels).numpy(), wanted.transpose(0, 3, 1, 2), atol=1e-5)
    frozen = pixels.copy()
    frozen.setflags(write=False)  # as a memory-mapped file is
    torch.testing.assert_close(encoder.prepare(frozen), encoder.prepare(torch.from_numpy(pixels)))
    assert np.array_equal(pixels, noise_patches(1, 160))  # they were not scaled in place


@settings(max_examples=5, deadline=None)
@given(count=st.integers(1, 5), seed=st.integers(0, 99))
def test_a_patchs_tokens_do_not_depend_on_its_company(count, seed):
    encoder = made("test_resnet", blocks=(0, 1))
    pixels = noise_patches(count, 64, seed)
    together = encode(encoder, pixels)
    torch.testing.assert_close(together[:1], encode(encoder, pixels[:1]), rtol=1e-4, atol=1e-5)


def test_the_fingerprint_names_weights_blocks_and_shape():
    plain = made("test_vit")
    assert plain.fingerprint() == made("test_vit").fingerprint()
    others = [
        made("test_vit", seed=1),
        made("test_vit", blocks=(5,)),
        made("test_vit", blocks=(4, 5)),
        made("test_vit", blocks=(5, 4)),
        made("test_vit", depth=3),
        made("test_vit", heads=4),
        made("test_vit2"),
    ]
    names = [encoder.fingerprint() for encoder in (plain, *others)]
    assert len(set(names)) == len(names)
    with torch.no_grad():
        list(plain.backbone.parameters())[-1].view(-1)[0] += 1e-4
    assert plain.fingerprint() != names[0]


@pytest.mark.parametrize(
    ("name", "blocks", "side"),
    [
        ("timm:test_vit", (), 160),
        ("timm:test_vit", (5, 4), 160),
        ("timm:test_vit3", (), 160),  # its register tokens take part in the blocks
        ("efficientnet-lite0", (), 96),
        ("efficientnet-lite0", (15, 14), 96),
    ],
)
def test_the_last_blocks_finish_what_is_below_them(name, blocks, side):
    encoder = create_image_encoder(name, weights="random", blocks=blocks)
    patches = encoder.prepare(noise_patches(2, side))
    with torch.inference_mode():
        tokens = encoder.below(2, side)(patches)
        torch.testing.assert_close(encoder.finish(tokens, 2), encoder(patches))


def test_last_blocks_that_cannot_be_trained_alone_are_refused():
    encoder = made("test_vit", blocks=(1, 5))
    for trained_blocks, sentence in ((2, "blocks that are trained, 4 or more"), (6, "1 to 5 of timm:test_vit's 6")):
        with pytest.raises(BadOption, match=sentence):
            encoder.below(trained_blocks, 160)
    with pytest.raises(BadOption, match="no vision transformer or EfficientNet"):
        made("test_resnet").below(1, 160)


def test_a_transformer_is_built_for_the_side_of_its_patches(tmp_path):
    whole = create_image_encoder("timm:vit_tiny_patch16_224", weights="random", depth=1)
    save_file(whole.backbone.state_dict(), tmp_path / "weights.safetensors")
    settings = {"weights": tmp_path / "weights.safetensors", "depth": 1}
    small = create_image_encoder("timm:vit_tiny_patch16_224", patch_px=64, **settings)
    assert (small.n_tokens, small.config.patch_px, small.origin.patch_px) == (17, 64, 64)
    assert encode(small, noise_patches(1, 64)).shape == (1, 17, 192)
    odd = create_image_encoder("timm:vit_tiny_patch16_224", patch_px=70, **settings)
    assert odd.fingerprint() == whole.fingerprint()
