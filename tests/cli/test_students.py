"""`cmrcnet distil` and `cmrcnet predict STUDENT`, end to end by command, and what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import anndata
import numpy as np
import pytest

from cmrcnet import Student
from cmrcnet.cli import app
from cmrcnet.datasets.synthetic import synthetic_cohort, write_cohort
from cmrcnet.testing import assert_prediction_table

QUICK = ["--config", "tiny", "--set", "train.epochs=8", "panel.n_hvg=60", "evaluation.set_size=10"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A cohort of four sections; model, bank and student of the first three."""
    folder = tmp_path_factory.mktemp("students")
    patch = pytest.MonkeyPatch()
    patch.setenv("CMRCNET_CACHE", str(folder / "cache"))
    write_cohort(synthetic_cohort(patients=4, spots=40, genes=100, seed=1), folder / "cohort")
    csv = str(folder / "cohort" / "cohort.csv")
    rows = Path(csv).read_text().splitlines()
    (folder / "cohort" / "unseen.csv").write_text("\n".join([rows[0], *(row for row in rows if ",P4," in row)]) + "\n")
    assert app.main(["train", csv, "--out", str(folder / "model"), "--without", "P4", *QUICK]) == 0
    assert app.main(["index", str(folder / "model"), csv, "--out", str(folder / "bank"), "--without", "P4"]) == 0
    words = [*taught(folder), "--grid-um", 150, "--test", folder / "cohort" / "unseen.csv", "--out", folder / "student"]
    assert run(*words) == 0
    patch.undo()
    return folder


@pytest.fixture(autouse=True)
def _cache(place, monkeypatch):
    monkeypatch.setenv("CMRCNET_CACHE", str(place / "cache"))


def run(*words: object) -> int:
    return app.main([str(word) for word in words])


def taught(place: Path) -> list[object]:
    return ["distil", place / "model", place / "bank", "--cohort", place / "cohort" / "cohort.csv"]


def refused(capsys, *words: object) -> str:
    capsys.readouterr()
    assert run(*words) == app.USER_ERROR
    said = capsys.readouterr().err
    assert "Traceback" not in said and len(said.strip().splitlines()) == 1
    return said


def test_the_student_has_a_report_and_remembers_its_teachers(place):
    student = Student.from_pretrained(place / "student")
    model = json.loads((place / "model" / "model.json").read_text())
    assert student.lineage.model_fingerprint == model["fingerprint"]
    assert student.lineage.patients == ("P1", "P2", "P3") and len(student.lineage.slides) == 3
    for name, sections in (("left_out", 3), ("test", 1)):
        found = student.report[name]
        assert len(found["sections"]) == sections
        assert found["mean"]["student_with_teacher"] > 0.7 and abs(found["mean"]["loss"]) < 0.15
    assert student.report["head"]["validation_variance"] > 0.4


def test_the_bank_remembers_the_cohort_that_it_was_built_from(place, tmp_path, capsys):
    """The same student with --cohort and without; and a sentence once the cohort has moved."""
    words = ["distil", place / "model", place / "bank", "--grid-um", 0]
    assert run(*words, "--out", tmp_path / "short") == 0
    assert run(*words, "--cohort", place / "cohort" / "cohort.csv", "--out", tmp_path / "long") == 0
    short, long = (Student.from_pretrained(tmp_path / name) for name in ("short", "long"))
    assert short.fingerprint == long.fingerprint
    csv = place / "cohort" / "cohort.csv"
    csv.rename(csv.with_suffix(".moved"))
    try:
        said = refused(capsys, *words, "--out", tmp_path / "gone")
    finally:
        csv.with_suffix(".moved").rename(csv)
    assert f"{csv} does not exist; name the cohort.csv that it was built from: --cohort FILE." in said
    assert not (tmp_path / "gone").exists()


def test_it_predicts_without_a_bank(place, tmp_path, capsys):
    csv, out = place / "cohort" / "cohort.csv", tmp_path / "p.h5ad"
    assert run("predict", place / "student", csv, "--section", "P4S1", "--out", out) == 0
    by_student = anndata.read_h5ad(out)
    assert_prediction_table(by_student)
    assert run("predict", place / "model", csv, "--section", "P4S1", "--bank", place / "bank", "--out", out,
               "--overwrite") == 0  # fmt: skip
    by_bank = anndata.read_h5ad(out)
    assert list(by_student.obs_names) == list(by_bank.obs_names)
    genes = [gene for gene in by_bank.var_names if by_bank[:, gene].X.std() > 0.05]
    alike = [np.corrcoef(by_student[:, g].X.ravel(), by_bank[:, g].X.ravel())[0, 1] for g in genes]
    assert len(genes) > 10 and np.mean(alike) > 0.7
    picture = place / "cohort" / "P4S1.jpg"
    assert run("predict", place / "student", picture, "--mpp", 1, "--out", tmp_path / "grid.h5ad") == 0


def test_what_only_a_bank_can_do_is_refused_in_one_sentence(place, tmp_path, capsys):
    csv, out = place / "cohort" / "cohort.csv", tmp_path / "p.h5ad"
    words = ["predict", place / "student", csv, "--section", "P4S1", "--out", out]
    for more in (["--bank", place / "bank"], ["--k", 5], ["--intervals"], ["--abstain", 0.3]):
        assert "which has no bank" in refused(capsys, *words, *more)
    assert not out.exists()
    assert "only a student needs none" in refused(capsys, "predict", place / "model", *words[2:])
    assert run(*words) == 0
    spot = anndata.read_h5ad(out).obs_names[0]
    for sheet in ("sheet.png", "list.csv"):
        said = refused(capsys, "explain", out, "--spot", spot, "--out", tmp_path / sheet)
        assert "a student, which has no attributions; predict with MODEL and --bank" in said
        assert not (tmp_path / sheet).exists()


def test_what_cannot_be_distilled_is_refused_and_leaves_nothing(place, tmp_path, capsys):
    out = tmp_path / "student"
    to = ["--out", out]
    csv = place / "cohort" / "cohort.csv"
    assert "exists already" in refused(capsys, *taught(place), "--out", place / "student")
    assert "has no section" in refused(capsys, *taught(place)[:3], "--cohort", place / "cohort" / "unseen.csv", *to)
    assert "no encoder 'nobody'" in refused(capsys, *taught(place), "--encoder", "nobody", *to)
    assert "augmentations" in refused(capsys, *taught(place), "--augmentations", 2, *to)
    assert "The slide" in refused(capsys, *taught(place), "--slides", tmp_path / "none.svs", *to)
    assert refused(capsys, "distil", tmp_path / "none", place / "bank", "--cohort", csv, *to)
    shutil.copytree(place / "cohort", tmp_path / "cohort")
    (tmp_path / "cohort" / "P2S1.jpg").unlink()
    said = refused(capsys, *taught(place)[:3], "--cohort", tmp_path / "cohort" / "cohort.csv", *to)
    assert "P2S1.jpg" in said
    assert not out.exists()


def test_contamination_is_refused(place, tmp_path, capsys):
    csv = place / "cohort" / "cohort.csv"
    said = refused(capsys, *taught(place), "--test", csv, "--out", tmp_path / "student")
    assert "has seen section P1S1" in said and "patient P1" in said


def test_an_interrupted_distillation_leaves_nothing(place, tmp_path, monkeypatch, capsys):
    def interrupted(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("cmrcnet.distill.student_report.measure_speed", interrupted)
    assert run(*taught(place), "--grid-um", 0, "--out", tmp_path / "student") == app.INTERRUPTED
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_slides_may_be_learnt_on(place, tmp_path, capsys):
    slides = tmp_path / "slides"
    slides.mkdir()
    shutil.copy(place / "cohort" / "P4S1.jpg", slides)
    words = ["--slides", slides, "--mpp", 1, "--grid-um", 200, "--out", tmp_path / "student"]
    assert run(*taught(place), *words) == 0
    said = capsys.readouterr().out
    assert "times faster" in said and "each left out" in said and "Student written to" in said
    assert len(Student.from_pretrained(tmp_path / "student").lineage.slides) == 4


def test_help_says_what_a_student_is_and_that_it_remembers(capsys):
    assert app.main(["distil", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "predicts without bank and search" in said and "the student still contains the patient" in said
