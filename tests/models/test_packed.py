"""A model in one file: the same model, whole or not at all, and nothing of a hostile file is believed or extracted."""

from __future__ import annotations

import zipfile

import pytest

from cmrcnet.cli.app import main
from cmrcnet.errors import Damaged, MissingInput, OutputExists
from cmrcnet.models.artefact import join_licences
from cmrcnet.models.trained_model import TrainedModel
from tests.models.builders import small_model


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture
def packed(model, tmp_path):
    model.save_pretrained(tmp_path / "model.zip")
    return tmp_path / "model.zip"


def rewrite(path, change, compression=zipfile.ZIP_STORED):
    """Write the parts again, as `change` gives them of their names and contents."""
    with zipfile.ZipFile(path) as old:
        parts = [(name, old.read(name)) for name in old.namelist()]
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, content in change(parts):
            new.writestr(name, content)


def test_one_file_holds_the_same_model_in_the_same_bytes(model, packed, tmp_path):
    assert TrainedModel.from_pretrained(packed).fingerprint == model.fingerprint
    model.save_pretrained(tmp_path / "again.zip")
    assert packed.read_bytes() == (tmp_path / "again.zip").read_bytes()
    with pytest.raises(OutputExists):
        model.save_pretrained(packed)


def test_pack_and_unpack_need_no_encoder_and_change_nothing(model, packed, tmp_path, capsys):
    assert main(["pack", str(packed), "--out", str(tmp_path / "folder")]) == 0
    assert "names what it was trained on" in capsys.readouterr().out
    assert main(["pack", str(tmp_path / "folder"), "--out", str(tmp_path / "b.zip")]) == 0
    assert TrainedModel.from_pretrained(tmp_path / "folder").fingerprint == model.fingerprint
    assert sorted(zipfile.ZipFile(tmp_path / "b.zip").namelist()) == sorted(zipfile.ZipFile(packed).namelist())
    assert main(["pack", str(packed), "--out", str(tmp_path / "b.zip")]) == 2
    assert main(["pack", str(tmp_path / "nothing"), "--out", str(tmp_path / "c.zip")]) == 2
    assert not (tmp_path / "c.zip").exists()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda parts: [part for part in parts if part[0] != "weights.safetensors"], "weights.safetensors is missing"),
        (lambda parts: [*parts, ("model.json", b"{}")], "holds model.json 2 times"),
        (lambda parts: [(name, content[:-1] + b"!") for name, content in parts], "cannot be read"),
        (
            lambda parts: [(n, c if n.endswith("json") else c[:-1] + bytes([c[-1] ^ 1])) for n, c in parts],
            "damaged or were changed",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_parts_that_were_changed_are_refused(packed, change, why):
    rewrite(packed, change)
    with pytest.raises(Damaged, match=why):
        TrainedModel.from_pretrained(packed)


def test_what_was_compressed_is_refused_so_that_nothing_can_blow_up(packed):
    rewrite(packed, lambda parts: parts, zipfile.ZIP_DEFLATED)
    with pytest.raises(Damaged, match="compressed or encrypted"):
        TrainedModel.from_pretrained(packed)


def test_other_names_are_never_extracted(packed, tmp_path):
    rewrite(packed, lambda parts: [*parts, ("../escaped", b"!"), ("/etc/escaped", b"!")])
    TrainedModel.from_pretrained(packed)
    assert main(["pack", str(packed), "--out", str(tmp_path / "folder")]) == 0
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == ["folder", "model.zip"]
    assert not any("escaped" in p.name for p in (tmp_path / "folder").iterdir())


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip at all"])
def test_a_file_that_is_no_zip_is_refused(tmp_path, content):
    (tmp_path / "model.zip").write_bytes(content)
    with pytest.raises(Damaged, match=r"no sound \.zip"):
        TrainedModel.from_pretrained(tmp_path / "model.zip")
    with pytest.raises(MissingInput):
        TrainedModel.from_pretrained(tmp_path / "other.zip")


def test_licences_are_told_in_words(model):
    assert join_licences(["", "CC BY 4.0", "CC BY 4.0"]) == "CC BY 4.0 (2 sections), not stated (1 section)"
    assert model.encoder.licence.endswith("random weights")
