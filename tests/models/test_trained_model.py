from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from cmrcnet.errors import (
    BadInput,
    Damaged,
    DownloadFailed,
    Incompatible,
    MissingExtra,
    MissingInput,
    OutputExists,
    ShapeMismatch,
)
from cmrcnet.models.encoders import create_image_encoder
from cmrcnet.models.image_encoder import ImageEncoder
from cmrcnet.models.trained_model import FORMAT, Provenance, TrainedModel
from tests.models.builders import GENES, small_model


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def tokens_for(model, count=7, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 5, model.network.token_dim)).astype(np.float16)


def expression(count=9, seed=0):
    return np.random.default_rng(seed).poisson(0.7, size=(count, GENES)).astype(np.float32)


def edit(folder, change):
    path = folder / "model.json"
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))


# --- embedding -----------------------------------------------------------------------------------------------------


def test_embeddings_are_the_networks_own_at_unit_length(model):
    tokens, spots = tokens_for(model), expression()
    images, genes = model.embed_tokens(tokens), model.embed_expression(spots)
    assert (images.shape, images.dtype, genes.shape, genes.dtype) == ((7, 16), np.float32, (9, 16), np.float32)
    np.testing.assert_allclose(np.linalg.norm(np.vstack([images, genes]), axis=1), 1, rtol=1e-5)
    with torch.inference_mode():
        raw = model.network.embed_images(torch.from_numpy(tokens)).numpy()
    np.testing.assert_allclose(images, raw / np.linalg.norm(raw, axis=1, keepdims=True), rtol=1e-4, atol=1e-6)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(patches=st.integers(1, 6), spots=st.integers(1, 6))
def test_the_number_taken_at_a_time_changes_nothing(model, patches, spots):
    tokens, rows = tokens_for(model), expression()
    whole = model.embed_tokens(tokens), model.embed_expression(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cmrcnet.models.trained_model._PATCHES_AT_A_TIME", patches)
        patch.setattr("cmrcnet.models.trained_model._SPOTS_AT_A_TIME", spots)
        parts = model.embed_tokens(tokens), model.embed_expression(rows)
    for left, right in zip(whole, parts, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, sparse.coo_matrix])
def test_sparse_expression_gives_what_dense_gives(model, kind):
    rows = expression()
    np.testing.assert_array_equal(model.embed_expression(kind(rows)), model.embed_expression(rows))


def test_tokens_may_be_mapped_read_only_and_none_at_all(model, tmp_path):
    tokens = tokens_for(model)
    np.save(tmp_path / "tokens.npy", tokens)
    mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    np.testing.assert_array_equal(model.embed_tokens(mapped), model.embed_tokens(tokens))
    np.testing.assert_array_equal(model.embed_tokens(torch.from_numpy(tokens)), model.embed_tokens(tokens))
    assert model.embed_tokens(tokens[:0]).shape == (0, 16)


def test_another_width_is_refused(model):
    with pytest.raises(ShapeMismatch, match=r"tokens has shape \(2, 5, 3\)"):
        model.embed_tokens(np.zeros((2, 5, 3), np.float32))
    with pytest.raises(ShapeMismatch, match=r"wanted \('spots', 11\)"):
        model.embed_expression(np.zeros((2, 12), np.float32))


def test_the_parts_must_belong_together(model):
    other = create_image_encoder("timm:test_vit", weights="random", blocks=(0, 1))
    with pytest.raises(ShapeMismatch, match="token of the network"):
        TrainedModel(model.network, other, model.panel, model.config, model.provenance)


def test_a_model_rests_in_evaluation_and_moves_whole(model):
    assert not model.network.training and not model.encoder.training
    assert model.to("cpu") is model
    assert model.device == torch.device("cpu")


# --- saving and loading --------------------------------------------------------------------------------------------


def test_a_loaded_model_is_the_saved_one(model, folder):
    loaded = TrainedModel.from_pretrained(folder)
    assert loaded.fingerprint == model.fingerprint
    assert (loaded.panel, loaded.config, loaded.provenance) == (model.panel, model.config, model.provenance)
    np.testing.assert_array_equal(loaded.embed_tokens(tokens_for(model)), model.embed_tokens(tokens_for(model)))
    np.testing.assert_array_equal(loaded.embed_expression(expression()), model.embed_expression(expression()))
    assert {path.name for path in folder.iterdir()} == {".cmrcnet.json", "model.json", "weights.safetensors"}


def test_the_fingerprint_follows_what_embeddings_depend_on_and_nothing_else(model):
    def other(**parts):
        names = ("network", "encoder", "panel", "config", "provenance")
        return TrainedModel(**{name: parts.get(name, getattr(model, name)) for name in names}).fingerprint

    assert other(provenance=Provenance((), ())) == model.fingerprint
    assert other(config=model.config.override({"name": "renamed", "head.k": 3})) == model.fingerprint
    panel = type(model.panel)(tuple(reversed(model.panel.genes)))
    different = {
        other(panel=panel),
        other(config=model.config.override({"patch.mpp": 0.7})),
        other(encoder=create_image_encoder("timm:test_vit", weights="random", seed=1)),
        small_model(similarity="dot").fingerprint,
    }
    assert len(different | {model.fingerprint}) == 5


def test_a_frozen_encoder_is_named_not_stored_and_checked(tmp_path):
    source = create_image_encoder("timm:test_vit", weights="random", seed=8)
    from safetensors.torch import save_file

    file = tmp_path / "encoder.safetensors"
    save_file(source.backbone.state_dict(), file)
    model = small_model(weights=str(file))
    model.save_pretrained(tmp_path / "model")
    facts = json.loads((tmp_path / "model" / "model.json").read_text())
    assert facts["encoder"]["stored"] is False
    assert (tmp_path / "model" / "weights.safetensors").stat().st_size < file.stat().st_size / 2
    assert TrainedModel.from_pretrained(tmp_path / "model").fingerprint == model.fingerprint
    other = create_image_encoder("timm:test_vit", weights="random", seed=9)
    save_file(other.backbone.state_dict(), file)
    with pytest.raises(Incompatible, match="give back the weights that it was trained with"):
        TrainedModel.from_pretrained(tmp_path / "model")
    file.unlink()
    with pytest.raises(MissingInput, match=r"The weights file .* does not exist"):
        TrainedModel.from_pretrained(tmp_path / "model")
    assert TrainedModel.from_pretrained(tmp_path / "model", encoder=source).fingerprint == model.fingerprint


def test_a_trained_encoder_is_stored(tmp_path):
    model = small_model(train_encoder=True)
    with torch.no_grad():
        for value in model.encoder.backbone.parameters():
            value.add_(0.01)  # as training would
    model.save_pretrained(tmp_path / "model")
    loaded = TrainedModel.from_pretrained(tmp_path / "model")
    assert loaded.encoder.fingerprint() == model.encoder.fingerprint()
    assert loaded.fingerprint == model.fingerprint
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    assert TrainedModel.from_pretrained(again).fingerprint == model.fingerprint


def test_a_trained_embedded_encoder_survives_its_memory_layout(tmp_path):
    model = small_model("efficientnet-lite0", train_encoder=True, blocks=(1,))
    model.save_pretrained(tmp_path / "model")
    assert TrainedModel.from_pretrained(tmp_path / "model").fingerprint == model.fingerprint


def test_an_encoder_of_ones_own_must_be_passed(model, tmp_path):
    own = ImageEncoder(model.encoder.backbone, model.encoder.config)
    TrainedModel(model.network, own, model.panel, model.config, model.provenance).save_pretrained(tmp_path / "model")
    with pytest.raises(Incompatible, match="encoder="):
        TrainedModel.from_pretrained(tmp_path / "model")
    assert TrainedModel.from_pretrained(tmp_path / "model", encoder=own).panel == model.panel


def test_shared_blocks_can_be_stored(tmp_path):
    model = small_model(share_fusion_blocks=True)
    model.save_pretrained(tmp_path / "model")
    assert TrainedModel.from_pretrained(tmp_path / "model").fingerprint == model.fingerprint


def test_an_existing_model_is_replaced_only_when_asked(model, folder):
    with pytest.raises(OutputExists, match="--overwrite"):
        model.save_pretrained(folder)
    model.save_pretrained(folder, overwrite=True)
    assert TrainedModel.from_pretrained(folder).fingerprint == model.fingerprint


def test_a_save_that_fails_leaves_nothing(model, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match="disk is full"):
        model.save_pretrained(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_provenance_is_plain_json():
    history = ({"epoch": np.int64(1), "loss": float("nan"), "recall": torch.tensor(0.5)},)
    provenance = Provenance(["a"], ["p"], history=history, facts={"k": (1, math.inf)})
    plain = json.loads(json.dumps(provenance.to_dict(), allow_nan=False))
    assert plain["history"] == [{"epoch": 1, "loss": None, "recall": 0.5}]
    assert plain["facts"] == {"k": [1, None]}
    assert Provenance(**plain).sections == ("a",)


# --- what is wrong is refused --------------------------------------------------------------------------------------


def test_no_model(tmp_path):
    with pytest.raises(MissingInput, match="cmrcnet train"):
        TrainedModel.from_pretrained(tmp_path / "nothing")


def test_truncated_weights(folder):
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Damaged, match="bytes where"):
        TrainedModel.from_pretrained(folder)


def test_one_changed_byte_in_the_weights(folder):
    path = folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(Damaged, match="not what was written"):
        TrainedModel.from_pretrained(folder)


def test_a_pickle_in_the_place_of_the_weights(folder):
    torch.save({"a": torch.zeros(1)}, folder / "weights.safetensors")
    with pytest.raises(BadInput, match="can run code"):
        TrainedModel.from_pretrained(folder)


def test_missing_weights(folder):
    (folder / "weights.safetensors").unlink()
    with pytest.raises(Damaged, match=r"weights\.safetensors is missing"):
        TrainedModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("number", "hint"), [(FORMAT - 1, "make it again: cmrcnet train"), (FORMAT + 1, "upgrade cmrcnet")]
)
def test_another_format_is_refused(folder, number, hint):
    edit(folder, lambda facts: facts.update(format=number))
    with pytest.raises(Incompatible, match=rf"has format {number}, and this version reads {FORMAT}; {hint}"):
        TrainedModel.from_pretrained(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "x"}', '{"format": 7}', '{"format": 7, "weights": 3}'])
def test_a_broken_model_json(folder, content):
    (folder / "model.json").write_text(content)
    with pytest.raises(Damaged, match=r"model\.json"):
        TrainedModel.from_pretrained(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts["panel"]["genes"].reverse(),
        lambda facts: facts["panel"]["scaling"].update(target_sum=1.0),
        lambda facts: facts["config"]["patch"].update(mpp=0.25),
        lambda facts: facts.update(fingerprint="0" * 32),
        lambda facts: facts["panel"]["genes"].append("one more"),
        lambda facts: facts.pop("provenance"),
        lambda facts: facts["config"]["model"].update(embedding_dim=32),
        lambda facts: facts["config"]["head"].update(k=3),
        lambda facts: facts["provenance"].update(patients=["nobody"]),
    ],
)
def test_a_changed_model_json(folder, change):
    edit(folder, change)
    with pytest.raises(Damaged, match="restore it from a copy"):
        TrainedModel.from_pretrained(folder)


# --- the model hub -------------------------------------------------------------------------------------------------


def test_a_model_is_loaded_from_the_hub_at_a_revision(model, folder, monkeypatch):
    asked = []

    def snapshot_download(repository, *, revision, allow_patterns):
        asked.append((repository, revision))
        assert "*.safetensors" in allow_patterns and "*.json" in allow_patterns
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert TrainedModel.from_pretrained("hf-hub:lab/model", revision="v1").fingerprint == model.fingerprint
    assert TrainedModel.from_pretrained("hf-hub:lab/model").fingerprint == model.fingerprint
    assert asked == [("lab/model", "v1"), ("lab/model", None)]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("GatedRepoError", "lab/model refused access.*HF_TOKEN"),
        ("RepositoryNotFoundError", "no such repository or revision v9"),
        ("RevisionNotFoundError", "no such repository or revision v9"),
        ("LocalEntryNotFoundError", "cannot be reached"),
        (ConnectionError, "cannot be reached"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_sentence(monkeypatch, error, said):
    from huggingface_hub import errors

    def refuse(*_, **__):
        if not isinstance(error, str):
            raise error("no route")
        kind = getattr(errors, error)
        raise kind.__new__(kind, "no")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(DownloadFailed, match=said):
        TrainedModel.from_pretrained("hf-hub:lab/model", revision="v9")


def test_without_the_hubs_client_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"Fetching lab/model needs huggingface_hub.*pip install 'cmrcnet\[fetch\]'"):
        TrainedModel.from_pretrained("hf-hub:lab/model")
