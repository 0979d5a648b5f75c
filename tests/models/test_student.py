"""A student on disk: the same again, and never anything else."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch

from cmrcnet.config import Config
from cmrcnet.errors import BadInput, Damaged, Incompatible, MissingInput, OutputExists, ShapeMismatch
from cmrcnet.genes.scaling import COUNTS
from cmrcnet.heads.gene_decoder import GeneBasis
from cmrcnet.heads.pca import FeaturePCA
from cmrcnet.models.encoders import create_image_encoder
from cmrcnet.models.student import Lineage, Student, StudentHead
from cmrcnet.models.trained_model import TrainedModel
from tests.inference.small_model import SETTINGS, small_model

GENES = tuple(f"GENE{number}" for number in range(9))


def small_student(seed: int = 0, weights: str = "random") -> Student:
    """A student of nobody, its numbers drawn by `seed`."""
    rng = np.random.default_rng(seed)
    config = Config.load("tiny").override(SETTINGS)
    encoder = create_image_encoder("timm:test_vit", weights=weights)
    torch.manual_seed(seed)
    head = StudentHead(5, 3, 8)
    torch.nn.init.normal_(head.residual[2].weight)
    reduction = FeaturePCA(*(rng.normal(size=size).astype(np.float32) for size in [(encoder.dim,), (encoder.dim, 5)]))
    basis = GeneBasis(rng.normal(3, 1, 9).astype(np.float32), rng.normal(size=(3, 9)).astype(np.float32))
    lineage = Lineage("model", "bank", ("A1", "B1"), ("A", "B"), ("A1", "B1", "C1"), ("A", "B", "C"), ("slide",))
    return Student(encoder, config, reduction, head, basis, GENES, COUNTS, lineage, report={"notes": ["small"]})


@pytest.fixture(scope="module")
def student() -> Student:
    return small_student()


@pytest.fixture
def folder(student, tmp_path):
    student.save_pretrained(tmp_path / "student")
    return tmp_path / "student"


def test_saving_and_loading_changes_no_number(student, folder):
    again = Student.from_pretrained(folder)
    seen = np.random.default_rng(1).normal(size=(7, student.encoder.dim)).astype(np.float32)
    columns = np.array([4, 0, 8])
    np.testing.assert_array_equal(again.predict(seen, columns), student.predict(seen, columns))
    assert again.fingerprint == student.fingerprint and again.lineage == student.lineage
    assert again.report == student.report and again.genes == student.genes and again.calibration is None
    assert again.config == student.config and again.scaling == student.scaling


def test_its_prediction_is_the_formula(student):
    seen = np.random.default_rng(1).normal(size=(7, student.encoder.dim)).astype(np.float32)
    reduced = (seen - student.pca.mean) @ student.pca.directions
    scores = student.head(torch.from_numpy(reduced)).detach().numpy()
    by_hand = np.maximum(student.basis.level + scores @ student.basis.directions, 0)
    np.testing.assert_allclose(student.predict(seen, np.arange(9)), by_hand, atol=1e-4)


@pytest.mark.parametrize("step", [1, 3, 2000])
def test_places_do_not_depend_on_those_beside_them(student, step):
    seen = np.random.default_rng(1).normal(size=(2000, student.encoder.dim)).astype(np.float32)
    parts = [student.predict(seen[n : n + step], np.arange(9)) for n in range(0, 60, step)]
    np.testing.assert_allclose(np.concatenate(parts)[:60], student.predict(seen, np.arange(9))[:60], atol=1e-4)


def test_everything_that_counts_is_in_the_fingerprint(student):
    assert small_student().fingerprint == student.fingerprint
    assert small_student(seed=1).fingerprint != student.fingerprint


def test_an_existing_output_is_kept(student, folder, tmp_path):
    with pytest.raises(OutputExists):
        student.save_pretrained(folder)
    student.save_pretrained(folder, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def edit(folder, **changes):
    path = folder / "student.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_damage_is_seen(folder):
    weights = folder / "weights.safetensors"
    whole, facts = weights.read_bytes(), (folder / "student.json").read_text()
    weights.write_bytes(whole[:-4])
    with pytest.raises(Damaged, match="bytes"):
        Student.from_pretrained(folder)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(Damaged, match="content"):
        Student.from_pretrained(folder)
    weights.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(BadInput):
        Student.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(Damaged, match="missing"):
        Student.from_pretrained(folder)
    weights.write_bytes(whole)
    for broken in ("", "{", "[]", '{"format": "x"}'):
        (folder / "student.json").write_text(broken)
        with pytest.raises(Damaged):
            Student.from_pretrained(folder)
    (folder / "student.json").write_text(facts)
    Student.from_pretrained(folder)


def test_a_changed_report_or_lineage_is_seen(folder):
    """A report with better values, patients that were removed."""
    facts = json.loads((folder / "student.json").read_text())
    for changes in (
        {"report": {}},
        {"lineage": facts["lineage"] | {"patients": ["A"]}},
        {"genes": facts["genes"][::-1]},
    ):
        edit(folder, **changes)
        with pytest.raises(Damaged, match="changed"):
            Student.from_pretrained(folder)
        edit(folder, **facts)


def test_a_newer_format_asks_for_an_upgrade(folder):
    edit(folder, format=9)
    with pytest.raises(Incompatible, match="upgrade"):
        Student.from_pretrained(folder)


def test_a_model_is_no_student_and_a_student_no_model(folder, tmp_path):
    small_model().save_pretrained(tmp_path / "model")
    with pytest.raises(MissingInput, match="cmrcnet distil"):
        Student.from_pretrained(tmp_path / "model")
    with pytest.raises(MissingInput, match="cmrcnet train"):
        TrainedModel.from_pretrained(folder)


def test_another_encoder_is_refused(folder):
    with pytest.raises(Incompatible, match="encoder"):
        Student.from_pretrained(folder, encoder=create_image_encoder("timm:test_vit", weights="random", seed=5))


def test_parts_that_do_not_fit_are_refused(student):
    import dataclasses

    with pytest.raises(ShapeMismatch):
        dataclasses.replace(student, genes=GENES[:5])
    with pytest.raises(ShapeMismatch):
        dataclasses.replace(student, head=StudentHead(6, 3, 8))


def test_a_student_is_loaded_from_the_hub(student, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
    assert Student.from_pretrained("hf-hub:lab/student", revision="main").fingerprint == student.fingerprint
