from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from cmrcnet.errors import BadOption, Damaged, DownloadFailed, UnknownName
from cmrcnet.models import encoders
from cmrcnet.models.encoders import _build, create_image_encoder, image_encoders, pretrained_config
from cmrcnet.models.image_encoder import ImageEncoder, block_outputs, blocks_of
from cmrcnet.models.pretrained import NOT_INCLUDED, PRETRAINED
from tests.models.builders import noise_patches

DINOV2 = Path(__file__).resolve().parents[3] / "shared" / "weights" / "dinov2_vits14_224.safetensors"


def test_the_promised_encoders_have_cards():
    assert image_encoders()[0] == "efficientnet-lite0"
    wanted = {"dinov2-s", "vit-b32", "uni", "uni2-h", "virchow2", "h-optimus-0", "h-optimus-1", "prov-gigapath"}
    assert wanted | {"phikon-v2"} <= set(image_encoders())
    assert set(NOT_INCLUDED) == {"conch", "ctranspath"}


@pytest.mark.parametrize("name", image_encoders())
def test_a_card_says_everything(name):
    card = pretrained_config(name)
    assert card.name == name
    assert card.licence and card.source and card.note
    assert 0.2 <= card.mpp <= 1
    assert all(0 < mean < 1 for mean in card.mean) and all(0 < std < 1 for std in card.std)
    assert card.gated <= card.source.startswith("hf-hub:")


@pytest.mark.parametrize("name", image_encoders())
def test_each_network_keeps_its_cards_promise(name):
    """Built without memory or weights (on torch's meta device), the largest ones too."""
    card = PRETRAINED[name]
    with torch.device("meta"):
        backbone = _build(card.architecture, dict(card.settings), name).eval()
        patches = torch.zeros(2, 3, card.patch_px, card.patch_px)
    encoder = ImageEncoder(backbone, card)
    assert encoder(patches).shape == (2, card.n_tokens, card.dim)
    prefix = getattr(backbone, "num_prefix_tokens", 0)
    assert card.class_tokens + card.register_tokens == prefix
    outputs = block_outputs(backbone, range(len(card.blocks)), patches)
    assert len(blocks_of(backbone)) == len(card.blocks)
    assert tuple(output.shape[1 if output.ndim == 4 else 2] for output in outputs) == card.blocks


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("uno", "timm:NAME for any timm network"),
        ("vit_base_patch32_224", "timm:NAME for any timm network"),
        ("CONCH", "CC-BY-NC-ND-4.0"),
        ("ctranspath", "modified copy of timm"),
        ("timm:vit_bse_patch32_224", "vit_base_patch32_224"),
    ],
)
def test_an_unknown_name_is_refused_with_what_to_do(name, sentence):
    with pytest.raises(UnknownName, match=sentence):
        create_image_encoder(name)
    with pytest.raises(UnknownName, match=sentence):
        pretrained_config(name)


def test_random_weights_follow_their_seed_and_leave_torchs_own_chance_alone():
    torch.manual_seed(5)
    untouched = torch.rand(1)
    torch.manual_seed(5)
    first = create_image_encoder("timm:test_vit", weights="random", seed=1)
    assert torch.equal(torch.rand(1), untouched)
    again = create_image_encoder("timm:test_vit", weights="random", seed=1)
    assert first.fingerprint() == again.fingerprint()
    assert not first.training


def test_depth_and_heads_are_built_as_asked():
    encoder = create_image_encoder("timm:test_vit", weights="random", depth=2, heads=4)
    assert len(blocks_of(encoder.backbone)) == len(encoder.config.blocks) == 2
    assert blocks_of(encoder.backbone)[0].attn.num_heads == 4


def test_the_released_encoder_is_vit_b32_with_eight_blocks_of_eight_heads():
    with torch.device("meta"):
        released = _build("vit_base_patch32_224", {"depth": 8, "num_heads": 8}, "released")
        whole = _build("vit_base_patch32_224", {}, "paper")
    assert (len(released.blocks), released.blocks[0].attn.num_heads) == (8, 8)
    assert (len(whole.blocks), whole.blocks[0].attn.num_heads) == (12, 12)


@pytest.mark.parametrize(
    ("name", "settings", "option"),
    [
        ("timm:test_resnet", {"depth": 2}, "encoder_depth"),
        ("efficientnet-lite0", {"heads": 2}, "encoder_heads"),
        ("timm:test_vit", {"heads": 7}, "encoder_heads"),
        ("timm:test_vit", {"depth": 0}, "encoder_depth"),
    ],
)
def test_depth_and_heads_that_cannot_be_are_refused(name, settings, option):
    with pytest.raises(BadOption, match=option):
        create_image_encoder(name, weights="random", **settings)


def test_other_heads_cannot_be_had_with_pretrained_weights():
    with pytest.raises(BadOption, match="encoder_heads is 8"):
        create_image_encoder("vit-b32", heads=8)


def test_a_transformer_made_for_another_size_is_built_for_224():
    card = pretrained_config("timm:vit_tiny_patch16_384")
    assert (card.patch_px, card.n_tokens) == (224, 197)


@pytest.mark.parametrize("name", ["uni", "vit-b32", "timm:test_vit", "hf-hub:someone/something"])
def test_without_a_hub_the_remedy_is_named(name, monkeypatch, tmp_path):
    def nowhere(*_args, **_kwargs):
        raise OSError("no such host")

    import huggingface_hub

    for proxy in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setattr("socket.getaddrinfo", nowhere)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DownloadFailed, match="local safetensors file") as refused:
        create_image_encoder(name)
    assert "cannot be reached" in str(refused.value)


def test_a_gated_model_says_whose_licence_to_accept(monkeypatch):
    from huggingface_hub.errors import GatedRepoError

    class Gated(GatedRepoError):
        def __init__(self) -> None:
            Exception.__init__(self, "restricted")

    def gated(*_args, **_kwargs):
        raise Gated

    monkeypatch.setattr("cmrcnet.models.encoder_weights.require_hub", lambda *_: None)
    monkeypatch.setattr("timm.models.load_state_dict_from_hf", gated)
    with pytest.raises(DownloadFailed, match=r"huggingface.co/MahmoodLab/UNI.*HF_TOKEN"):
        create_image_encoder("uni")


def test_weights_of_the_hub_are_fitted_like_any_other(monkeypatch):
    """A stand-in for the download: right weights load, wrong ones are refused."""
    source = create_image_encoder("timm:test_vit", weights="random", seed=9)
    state = source.backbone.state_dict()
    card = dataclasses.replace(source.config, name="stand-in", source="hf-hub:a/b", settings=())
    monkeypatch.setitem(PRETRAINED, "stand-in", card)
    monkeypatch.setattr(encoders, "fetch_from_hub", lambda *_: dict(state))
    assert create_image_encoder("stand-in").fingerprint() == source.fingerprint()
    shallow = create_image_encoder("stand-in", depth=2, blocks=(1,))
    assert torch.equal(blocks_of(shallow.backbone)[1].norm1.weight, blocks_of(source.backbone)[1].norm1.weight)
    del state["norm.bias"]
    with pytest.raises(Damaged, match=r"1 missing \(norm.bias\)"):
        create_image_encoder("stand-in")


@pytest.mark.shared
@pytest.mark.skipif(not DINOV2.exists(), reason="the DINOv2 weights are not beside this checkout")
def test_a_real_transformer_from_a_local_file():
    encoder = create_image_encoder("dinov2-s", weights=str(DINOV2), blocks=(5, 11))
    pixels = noise_patches(1)
    with torch.inference_mode():
        tokens = encoder(encoder.prepare(pixels))
        flow = encoder.backbone._pos_embed(encoder.backbone.patch_embed(encoder.prepare(pixels)))
        for number, block in enumerate(encoder.backbone.blocks):
            flow = block(flow)
            if number in (5, 11):
                share = tokens[:, :, :384] if number == 5 else tokens[:, :, 384:]
                torch.testing.assert_close(share, flow, rtol=1e-4, atol=1e-4)
    assert tokens.shape == (1, 257, 768)
    with pytest.raises(Damaged, match="do not fit"):
        create_image_encoder("vit-b32", weights=str(DINOV2))


def test_random_weights_as_the_released_code_draws_them():
    encoder = create_image_encoder("timm:test_vit", weights="random-released", seed=3)
    blocks = torch.cat(
        [m.weight.flatten() for m in encoder.backbone.blocks.modules() if isinstance(m, torch.nn.Linear)]
    )
    assert float(blocks.std()) == pytest.approx(0.01, rel=0.05) and float(blocks.mean()) == pytest.approx(0, abs=1e-3)
    assert float(encoder.backbone.patch_embed.proj.weight.std()) == pytest.approx(0.0016, rel=0.05)
    assert float(encoder.backbone.cls_token.abs().max()) > 0
    again = create_image_encoder("timm:test_vit", weights="random-released", seed=3)
    assert encoder.fingerprint() == again.fingerprint()
    with pytest.raises(BadOption, match="is no vision transformer"):
        create_image_encoder("timm:test_efficientnet", weights="random-released")
