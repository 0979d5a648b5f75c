from __future__ import annotations

import pickle
import sys

import pytest
import torch
from safetensors.torch import save_file

from cmrcnet.errors import BadInput, Damaged, MissingInput
from cmrcnet.models.encoder_weights import from_transformers, read_safetensors
from cmrcnet.models.encoders import _build, create_image_encoder


@pytest.fixture
def source():
    return create_image_encoder("timm:test_vit", weights="random", seed=4)


@pytest.fixture
def file(source, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in source.backbone.state_dict().items()}, path)
    return path


def load(path, **settings):
    return create_image_encoder("timm:test_vit", weights=str(path), **settings)


def rewritten(file, change):
    state = read_safetensors(file)
    change(state)
    save_file(state, file)
    return file


def test_a_local_file_gives_its_weights_under_any_name_and_in_half_precision(source, file, tmp_path):
    other = file.rename(tmp_path / "anything.bin")
    assert load(other).fingerprint() == source.fingerprint()
    save_file({key: value.half() for key, value in read_safetensors(other).items()}, tmp_path / "half")
    got, wanted = (encoder.backbone.state_dict() for encoder in (load(tmp_path / "half"), source))
    for key, value in wanted.items():
        torch.testing.assert_close(got[key], value, rtol=1e-3, atol=1e-3)


def test_a_classifier_and_blocks_past_the_depth_are_left_out(source, file):
    rewritten(file, lambda state: state.update({"head.weight": torch.zeros(7, 64), "head.bias": torch.zeros(7)}))
    assert load(file).fingerprint() == source.fingerprint()
    assert len(load(file, depth=2).backbone.blocks) == 2


def test_a_position_embedding_of_another_size_is_resampled(tmp_path):
    larger = _build("vit_tiny_patch16_224", {"img_size": 384, "depth": 1}, "larger")
    save_file(larger.state_dict(), tmp_path / "larger")
    encoder = create_image_encoder("timm:vit_tiny_patch16_224", weights=str(tmp_path / "larger"), depth=1)
    assert encoder.backbone.pos_embed.shape[1] == 197
    assert torch.equal(encoder.backbone.blocks[0].norm1.weight, larger.blocks[0].norm1.weight)


def test_no_file():
    with pytest.raises(MissingInput, match=r"nowhere\.safetensors"):
        load("nowhere.safetensors")


class Dangerous:
    def __reduce__(self):
        return (sys.exit, ("code was run",))


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
@pytest.mark.parametrize("way", ["torch", "torch, old", "pickle"])
def test_a_pickle_is_refused_whatever_it_is_called_and_never_run(tmp_path, name, way):
    path = tmp_path / name
    if way == "pickle":
        path.write_bytes(pickle.dumps(Dangerous()))
    else:
        torch.save({"weights": Dangerous()}, path, _use_new_zipfile_serialization=way == "torch")
    with pytest.raises(BadInput, match="convert it to safetensors"):
        load(path)


@pytest.mark.parametrize("kept", [0, 5, 60, 2000, -1])
def test_a_truncated_file_is_damaged(file, kept):
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(Damaged, match="damaged or were changed"):
        load(file)


def test_what_is_no_weights_file_is_damaged(tmp_path):
    path = tmp_path / "notes.safetensors"
    path.write_text("these are notes, not weights, and quite a few of them")
    with pytest.raises(Damaged, match="not a safetensors file"):
        load(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.pop("norm.weight"), r"1 missing \(norm.weight\)"),
        (lambda s: s.update(strange=torch.zeros(1)), r"1 left over \(strange\)"),
        (lambda s: s.update({"norm.weight": torch.zeros(3)}), r"1 of another shape \(norm.weight\)"),
        (lambda s: s["norm.weight"].fill_(float("nan")), "norm.weight holds values that are not finite"),
    ],
)
def test_other_keys_shapes_and_values_are_refused_by_name(file, change, sentence):
    with pytest.raises(Damaged, match=sentence):
        load(rewritten(file, change))


def test_another_networks_weights_are_refused(file):
    with pytest.raises(Damaged, match="do not fit VisionTransformer"):
        create_image_encoder("timm:vit_tiny_patch16_224", weights=str(file))


def as_transformers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's weights under the names of transformers' Dinov2Model, as its public documentation spells them."""
    outside = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    found = {"embeddings.mask_token": torch.zeros(1, 1)}
    for key, value in state.items():
        if key in outside:
            found[outside[key]] = value
            continue
        _, number, rest = key.split(".", 2)
        if rest.startswith("attn.qkv."):
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[f"encoder.layer.{number}.attention.attention.{part}.{rest[9:]}"] = rows
        else:
            rest = rest.replace("attn.proj", "attention.output.dense").replace(".gamma", ".lambda1")
            found[f"encoder.layer.{number}.{rest.replace('ls', 'layer_scale')}"] = value
    return found


def test_phikons_names_become_timms_and_nothing_is_lost():
    network = _build("vit_tiny_patch16_224", {"init_values": 1.0, "depth": 2}, "small Phikon")
    state = network.state_dict()
    theirs = as_transformers(state)
    ours = from_transformers(theirs)
    assert set(ours) == set(state)
    assert all(torch.equal(ours[key], value) for key, value in state.items())
    assert from_transformers(state) == state  # timm's own names are left alone
    del theirs["encoder.layer.1.attention.attention.key.bias"]
    assert set(state) - set(from_transformers(theirs)) == {"blocks.1.attn.qkv.bias"}


def test_the_renamed_network_computes_what_transformers_computes(tmp_path):
    """Where that library is at hand; it is no dependency of ours. The names are those that it writes to disk."""
    transformers = pytest.importorskip("transformers")
    settings = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 4, "init_values": 1.0}
    ours = _build("vit_large_patch16_224", settings, "small Phikon").eval()
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64, "patch_size": 16}
    theirs = transformers.Dinov2Model(transformers.Dinov2Config(**shape, layerscale_value=0.5)).eval()
    theirs.save_pretrained(tmp_path)
    ours.load_state_dict(from_transformers(read_safetensors(tmp_path / "model.safetensors")), strict=True)
    patches = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        wanted = theirs(patches).last_hidden_state
        torch.testing.assert_close(ours.forward_features(patches), wanted, rtol=1e-4, atol=1e-4)
