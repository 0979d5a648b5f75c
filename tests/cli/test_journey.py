"""The whole journey by command: what a newcomer types, and what happens when something is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata
import numpy as np
import pytest

from cmrcnet.cli import app
from cmrcnet.datasets.synthetic import synthetic_cohort, write_cohort
from cmrcnet.evaluation.protocol.runner import limited_threads

QUICK = ["--config", "tiny", "--set", "train.epochs=2", "panel.n_hvg=40", "head.k=10"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a cohort of three small sections, a model, and its bank."""
    folder = tmp_path_factory.mktemp("journey")
    before = os.environ.get("CMRCNET_CACHE")
    os.environ["CMRCNET_CACHE"] = str(folder / "cache")
    write_cohort(synthetic_cohort(patients=3, spots=40, genes=80, seed=1), folder / "cohort")
    csv = str(folder / "cohort" / "cohort.csv")
    assert app.main(["train", csv, "--out", str(folder / "model"), "--without", "P3", *QUICK]) == 0
    assert app.main(["index", str(folder / "model"), csv, "--out", str(folder / "bank"), "--without", "P3"]) == 0
    if before is None:
        del os.environ["CMRCNET_CACHE"]
    else:
        os.environ["CMRCNET_CACHE"] = before
    return folder


def _refused(words: list[str], capsys) -> str:
    """The sentence of a refusal."""
    capsys.readouterr()
    assert app.main([str(word) for word in words]) == app.USER_ERROR
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_a_plain_picture_becomes_a_table_that_scanpy_plots(place, tmp_path):
    import matplotlib

    matplotlib.use("Agg")
    import scanpy

    out = tmp_path / "prediction.h5ad"
    picture = place / "cohort" / "P3S1.jpg"
    words = ["predict", place / "model", picture, "--bank", place / "bank", "--out", out, "--mpp", 1.0]
    assert app.main([str(word) for word in words]) == 0
    table = scanpy.read_h5ad(out)
    assert table.n_vars == 80 and table.n_obs > 40
    assert np.isfinite(table.X).all() and (table.layers["neighbour_std"] >= 0).all()
    scanpy.pl.spatial(table, color=table.var_names[0], show=False)


def test_a_section_of_a_cohort_is_predicted_at_its_spots_and_its_counts_are_not_read(place, tmp_path):
    cohort = tmp_path / "cohort"
    shutil.copytree(place / "cohort", cohort)
    words = ["--bank", place / "bank", "--section", "P3S1", "--genes", "TUMOUR001"]
    csv = cohort / "cohort.csv"
    first, second = tmp_path / "first.h5ad", tmp_path / "second.h5ad"
    assert app.main([str(w) for w in ["predict", place / "model", csv, "--out", first, *words]]) == 0
    assert anndata.read_h5ad(first).shape == (40, 1)
    spots = ["--spots", cohort / "P3S1_spots.tsv", "--mpp", 1.0, "--genes", "TUMOUR001"]
    words = ["predict", place / "model", cohort / "P3S1.jpg", "--bank", place / "bank", "--out", second, *spots]
    assert app.main([str(w) for w in words]) == 0
    np.testing.assert_allclose(anndata.read_h5ad(first).X, anndata.read_h5ad(second).X, rtol=1e-5)


def test_genes_may_stand_with_commas_between_them(place, tmp_path):
    out, csv = tmp_path / "p.h5ad", place / "cohort" / "cohort.csv"
    words = ["predict", place / "model", csv, "--section", "P3S1", "--bank", place / "bank", "--out", out, "--genes"]
    assert app.main([str(word) for word in [*words, "TUMOUR001,TUMOUR002", "TUMOUR003"]]) == 0
    assert list(anndata.read_h5ad(out).var_names) == ["TUMOUR001", "TUMOUR002", "TUMOUR003"]


def test_a_place_is_explained_on_a_sheet_and_as_a_list(place, tmp_path, capsys):
    import pandas as pd

    table, csv = tmp_path / "p.h5ad", place / "cohort" / "cohort.csv"
    words = ["predict", place / "model", csv, "--section", "P3S1", "--bank", place / "bank", "--out", table]
    assert app.main([str(word) for word in words]) == 0
    spot = anndata.read_h5ad(table).obs_names[3]
    sheet, bare = tmp_path / "sheet.png", tmp_path / "list.csv"
    explain = ["explain", table, "--spot", spot, "--out"]
    capsys.readouterr()
    assert app.main([str(w) for w in [*explain, sheet, "--cohort", csv, "--genes", "TUMOUR001", "TUMOUR002"]]) == 0
    assert "The prediction is the weighted mean of these spots." in capsys.readouterr().out
    assert sheet.read_bytes().startswith(b"\x89PNG")
    assert app.main([str(w) for w in [*explain, bare]]) == 0
    listed = pd.read_csv(bare)
    assert len(listed) == 10 and listed["weight"].sum() == pytest.approx(1)
    assert "There is no location in the prediction 'nowhere'" in _refused(
        ["explain", table, "--spot", "nowhere", "--out", tmp_path / "x.png"], capsys
    )
    assert "a file name that ends in .png, .pdf, .svg or .csv" in _refused([*explain, tmp_path / "x.txt"], capsys)
    picture = [*explain, tmp_path / "x.png", "--slide", place / "cohort" / "P3S1.jpg"]
    said = _refused([*picture, "--mpp", 1.02], capsys)
    assert "P3S1 is said to show 1.02 um per px, but it was predicted at 1; correct --mpp." in said
    assert not (tmp_path / "x.png").exists()
    shown = []
    for words in ([], ["--mpp", 1.0]):
        assert app.main([str(w) for w in [*picture, "--overwrite", *words]]) == 0
        shown.append((tmp_path / "x.png").read_bytes())
    assert shown[0] == shown[1]


def test_intervals_of_a_model_that_cannot_calibrate_are_refused_before_anything_is_encoded(place, tmp_path, capsys):
    words = ["predict", place / "model", place / "cohort" / "cohort.csv", "--section", "P3S1", "--bank", place / "bank"]
    said = _refused([*words, "--out", tmp_path / "p.h5ad", "--intervals"], capsys)
    assert "There are no calibrated intervals: its config does not leave out each group in turn" in said
    assert list(tmp_path.iterdir()) == []


def test_evaluate_leaves_a_run_folder_and_a_report(place, tmp_path):
    out = tmp_path / "run"
    words = ["evaluate", place / "cohort" / "cohort.csv", "--out", out, *QUICK, "--methods", "cmrcnet,ridge"]
    assert app.main([str(word) for word in words]) == 0
    assert {"scores.csv", "genes.csv", "run.json", "report.html", "predictions"} <= {p.name for p in out.iterdir()}
    assert sorted(p.name for p in (out / "predictions").iterdir()) == ["P1S1.h5ad", "P2S1.h5ad", "P3S1.h5ad"]
    assert "<html" in (out / "report.html").read_text()
    assert not out.with_name("run.partial").exists()


def test_inspect_says_what_it_is(place, capsys):
    assert app.main(["inspect", str(place / "cohort" / "cohort.csv")]) == 0
    said = capsys.readouterr().out
    assert "P3S1" in said and "Problems: none" in said


def test_doctor_and_encoders_answer(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CMRCNET_CACHE", str(tmp_path / "cache[old]"))
    assert app.main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "embedded encoder" in said and "[old]" in "".join(said.split())  # brackets are text, not markup
    assert app.main(["encoders"]) == 0
    assert "efficientnet-lite0" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["train", "index", "predict", "evaluate"])
def test_an_existing_output_is_kept(place, tmp_path, capsys, verb):
    out = tmp_path / "out.h5ad"
    out.write_text("mine")
    csv = place / "cohort" / "cohort.csv"
    words = {
        "train": ["train", csv],
        "index": ["index", place / "model", csv],
        "predict": ["predict", place / "model", place / "cohort" / "P3S1.jpg", "--bank", place / "bank"],
        "evaluate": ["evaluate", csv],
    }[verb]
    assert "exists already" in _refused([*words, "--out", out], capsys)
    assert out.read_text() == "mine"


def test_overwrite_never_replaces_a_folder_of_the_users(place, tmp_path, capsys):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    csv = place / "cohort" / "cohort.csv"
    said = _refused(["train", csv, "--out", tmp_path / "home", "--overwrite", *QUICK], capsys)
    assert "did not write" in said
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"


def test_an_output_that_cannot_be_written(place, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    csv = place / "cohort" / "cohort.csv"
    assert "cannot be written" in _refused(["train", csv, "--out", tmp_path / "file" / "model", *QUICK], capsys)


def test_a_bank_of_another_model(place, tmp_path, capsys):
    model = tmp_path / "other"
    csv = place / "cohort" / "cohort.csv"
    words = ["train", csv, "--out", model, *QUICK, "train.seed=5", "--without", "P3"]
    assert app.main([str(word) for word in words]) == 0
    picture = place / "cohort" / "P3S1.jpg"
    words = ["predict", model, picture, "--bank", place / "bank", "--out", tmp_path / "p.h5ad", "--mpp", 1.0]
    assert "was made by model" in _refused(words, capsys)
    assert not (tmp_path / "p.h5ad").exists()


def test_a_bank_is_edited_and_predicts_as_one_built_afresh(place, tmp_path, capsys):
    csv, model, bank = place / "cohort" / "cohort.csv", place / "model", tmp_path / "bank"

    def run(*words: object) -> str:
        capsys.readouterr()
        assert app.main([str(word) for word in words]) == 0
        return capsys.readouterr().out

    run("index", model, csv, "--out", bank, "--without", "P3", "--search", "ivf", "--recall", "0.9")
    said = run("bank", "list", bank)
    assert "P1S1" in said and "searched by ivf, which found" in said and "held-out queries among 80 spots" in said
    assert "Dropped from" in run("bank", "drop", bank, "P1")
    assert "P1" not in run("bank", "list", bank).replace(str(bank), "")
    assert "Added to" in run("bank", "add", bank, model, csv, "--only", "P1")
    run("bank", "drop", bank, "P2S1")
    run("bank", "add", bank, model, csv, "--only", "P2S1")
    assert "searched exactly" in run("bank", "rebuild-index", bank, "--search", "exact")
    tables = {}
    for name, folder in (("edited", bank), ("fresh", place / "bank")):
        out = tmp_path / f"{name}.h5ad"
        run("predict", model, csv, "--section", "P3S1", "--bank", folder, "--out", out)
        tables[name] = anndata.read_h5ad(out)
    np.testing.assert_array_equal(tables["edited"].X, tables["fresh"].X)
    run("bank", "merge", bank, place / "bank", "--out", tmp_path / "both", "--search", "exact")
    assert "80 spots" in run("bank", "list", tmp_path / "both")


def test_what_a_bank_cannot_do_is_said_in_one_sentence(place, tmp_path, capsys):
    csv, model, bank = place / "cohort" / "cohort.csv", place / "model", tmp_path / "bank"
    shutil.copytree(place / "bank", bank)
    predict = ["predict", model, csv, "--section", "P3S1", "--bank", bank, "--out", tmp_path / "p.h5ad"]
    assert "k is 81; wanted 1 to 80, the number of spots in" in _refused([*predict, "--k", 81], capsys)
    (tmp_path / "none.txt").write_text("")
    assert "0 genes to predict" in _refused([*predict, "--genes", tmp_path / "none.txt"], capsys)
    words = ["index", model, csv, "--out", tmp_path / "b", "--search", "ivf", "--nprobe", 1, "--recall", 1]
    said = _refused(words, capsys)
    assert "raise --nprobe" in said and not (tmp_path / "b").exists()
    assert "no section or patient in the bank 'P9'; known: P1" in _refused(["bank", "drop", bank, "P9"], capsys)
    assert "only is 'P9'; wanted a section" in _refused(["bank", "add", bank, model, csv, "--only", "P9"], capsys)
    assert "section is 'P1S1'" in _refused(["bank", "add", bank, model, csv, "--only", "P1"], capsys)
    [block, *_] = sorted((bank / "sections").glob("*/expression_data.npy"))
    content = block.read_bytes()
    block.write_bytes(content[:-14] + bytes([content[-14] ^ 1]) + content[-13:])
    said = _refused(predict, capsys)
    assert "the expression of gene" in said and "is corrupt; take the section out (cmrcnet bank drop" in said
    assert not (tmp_path / "p.h5ad").exists()


def test_unknown_scale_and_unknown_gene_and_no_picture(place, tmp_path, capsys):
    picture = place / "cohort" / "P3S1.jpg"
    words = ["predict", place / "model", picture, "--bank", place / "bank", "--out", tmp_path / "p.h5ad"]
    assert "--mpp" in _refused(words, capsys)
    assert "NOGENE" in _refused([*words, "--mpp", "1.0", "--genes", "NOGENE"], capsys)
    words[2] = place / "cohort" / "cohort.csv"
    assert "--section" in _refused(words, capsys)
    words[2] = place / "cohort" / "P3S1_spots.tsv"
    assert "P3S1_spots.tsv" in _refused([*words, "--mpp", "1.0"], capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_section_brings_its_own_scale_and_spots(place, tmp_path, capsys):
    words = ["predict", place / "model", place / "cohort" / "cohort.csv", "--section", "P3S1", "--bank", place / "bank"]
    out = ["--out", tmp_path / "p.h5ad"]
    assert "mpp is '4.0'; wanted nothing together with --section" in _refused([*words, *out, "--mpp", 4], capsys)
    assert "spots is 'x.tsv'; wanted nothing" in _refused([*words, *out, "--spots", "x.tsv"], capsys)
    assert not (tmp_path / "p.h5ad").exists()


def test_tampered_weights_are_refused(place, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(place / "model", model)
    weights = bytearray((model / "weights.safetensors").read_bytes())
    weights[-3] ^= 0xFF
    (model / "weights.safetensors").write_bytes(weights)
    csv = place / "cohort" / "cohort.csv"
    assert "damaged or were changed" in _refused(["index", model, csv, "--out", tmp_path / "bank"], capsys)
    assert not (tmp_path / "bank").exists()


def _killed(words: list[object], folder: Path, sign: str) -> None:
    """Start a command and kill -9 it as soon as a file named `sign` appears."""
    environment = {
        **os.environ,
        "CMRCNET_CACHE": str(folder / "cache"),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "cmrcnet", *[str(word) for word in words]]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(folder.rglob(sign)):
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, process.stderr.read()


def test_a_killed_training_resumes_to_the_same_weights(place, tmp_path, monkeypatch):
    monkeypatch.setenv("CMRCNET_CACHE", str(tmp_path / "cache"))  # all three learn from the very same tokens
    csv = place / "cohort" / "cohort.csv"
    quick = ["--config", "tiny", "--set", "train.epochs=5", "panel.n_hvg=40", "head.k=10"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    _killed(["train", csv, "--out", killed, *quick], tmp_path, "killed.partial/*.safetensors")
    assert not killed.exists()
    with limited_threads(1):  # as the process that was killed: another number of them may differ in the last bit
        assert app.main([str(w) for w in ["train", csv, "--out", whole, *quick]]) == 0
        assert app.main([str(w) for w in ["train", csv, "--out", killed, *quick, "--resume"]]) == 0
    assert (killed / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


@pytest.mark.parametrize("seconds", [1.5, 3.0])
def test_a_killed_index_leaves_a_whole_bank_or_none(place, tmp_path, seconds):
    from cmrcnet.retrieval.bank import ReferenceBank

    out = tmp_path / "bank"
    words = [str(w) for w in ["index", place / "model", place / "cohort" / "cohort.csv", "--out", out]]
    process = subprocess.Popen([sys.executable, "-m", "cmrcnet", *words], stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    process.kill()
    process.wait()
    if not out.exists():
        assert app.main(words) == 0
    assert len(ReferenceBank.load(out)) == 120


def test_a_killed_prediction_leaves_no_output_and_can_run_again(place, tmp_path):
    out = tmp_path / "p.h5ad"
    words = ["predict", place / "model", place / "cohort" / "cohort.csv", "--section", "P3S1"]
    words += ["--bank", place / "bank", "--out", out]
    _killed(words, tmp_path, "cache/*")
    assert not out.exists()
    assert app.main([str(word) for word in words]) == 0
    assert out.exists()


def test_the_demo_ends_with_a_report(place, tmp_path, capsys):
    out = tmp_path / "demo"
    csv = place / "cohort" / "cohort.csv"
    config = tmp_path / "quick.yaml"
    config.write_text(
        "about: two epochs\npatch: {size_px: 112, mpp: 1.0}\n"
        "model: {blocks: [4], fusion_dim: 32, targets: identity}\ntrain: {epochs: 2}\n"
    )
    words = ["demo", "--out", out, "--data", csv, "--config", config]
    assert app.main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    assert f"Open {out / 'report.html'}" in said
    assert f"Model written to {out / 'model'} (" in said and ".tmp-" not in said
    assert json.loads((out / "demo.json").read_text())["format"] == 1
    assert anndata.read_h5ad(out / "unseen.h5ad").n_obs > 0
    assert "A slide without expression" in (out / "report.html").read_text()
