"""`cmrcnet predict` and `export` on slides: resumed, in a batch, and refused, all by command."""

from __future__ import annotations

import csv
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
import tifffile
from PIL import Image

from cmrcnet.cli import app
from cmrcnet.retrieval.bank import build_bank
from tests.inference.small_model import noise_slide, small_cohort, small_model
from tests.slides.slide_making import write_aperio

GRID = ["--grid-um", "66", "--mpp", "0.5"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a model, its bank and two pictures."""
    folder = tmp_path_factory.mktemp("slides")
    model = small_model()
    model.save_pretrained(folder / "model")
    build_bank(model, small_cohort()).save(folder / "bank")
    (folder / "pictures").mkdir()
    for seed, name in enumerate(("one", "two")):
        Image.fromarray(noise_slide(seed, 500).read(0, 0, 500, 500)).save(folder / "pictures" / f"{name}.png")
    return folder


def run(place: Path, *words: object) -> int:
    return app.main(["predict", str(place / "model"), *map(str, words), "--bank", str(place / "bank"), *GRID])


def refused(capsys, place: Path, *words: object) -> str:
    capsys.readouterr()
    assert run(place, *words) == app.USER_ERROR
    said = capsys.readouterr().err
    assert "Traceback" not in said and len(said.strip().splitlines()) == 1
    return said


def test_a_batch_skips_what_is_done_and_isolates_what_is_broken(place, tmp_path, capsys):
    slides, out = tmp_path / "slides", tmp_path / "out"
    shutil.copytree(place / "pictures", slides)
    (slides / "notes.txt").write_text("no slide")
    (slides / "broken.png").write_bytes((slides / "one.png").read_bytes()[:3000])
    Image.fromarray(np.full((400, 400, 3), 250, np.uint8)).save(slides / "empty.png")
    assert run(place, slides, "--out", out) == app.PROBLEMS_FOUND
    said = capsys.readouterr().out
    assert "4 slides: 2 predicted, 0 done before, 2 broken." in said and "No tissue was found on empty" in said
    assert sorted(path.name for path in out.iterdir()) == ["one.h5ad", "summary.csv", "two.h5ad"]
    rows = {Path(row["slide"]).stem: row for row in csv.DictReader((out / "summary.csv").open())}
    assert {name: row["status"] for name, row in rows.items()} == {
        "broken": "broken",
        "empty": "broken",
        "one": "predicted",
        "two": "predicted",
    }
    assert "truncated" in rows["broken"]["problem"] and rows["one"]["genes"] == "13"
    before = (out / "one.h5ad").stat().st_mtime_ns
    for name in ("broken", "empty"):
        (slides / f"{name}.png").unlink()
    assert run(place, slides, "--out", out) == 0
    assert "2 slides: 0 predicted, 2 done before, 0 broken." in capsys.readouterr().out
    assert (out / "one.h5ad").stat().st_mtime_ns == before
    single = tmp_path / "one.h5ad"
    assert run(place, slides / "one.png", "--out", single) == 0
    np.testing.assert_array_equal(anndata.read_h5ad(single).X, anndata.read_h5ad(out / "one.h5ad").X)


def test_what_cannot_be_opened_is_named_and_the_others_are_predicted(place, tmp_path, capsys):
    slides, out = tmp_path / "slides", tmp_path / "out"
    shutil.copytree(place / "pictures", slides)
    (slides / "._one.png").write_bytes(b"\0\5\26\7")
    (slides / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(slides / "pipe.png")
    whole = write_aperio(slides / "zero.svs", noise_slide(0, 300).read(0, 0, 300, 300), mpp=0.5)
    content = bytearray(whole.read_bytes())
    with tifffile.TiffFile(whole) as tiff:
        tile_width = tiff.pages[0].tags[322].valueoffset
    content[tile_width : tile_width + 2] = b"\0\0"
    whole.write_bytes(content)
    assert run(place, slides, "--out", out) == app.PROBLEMS_FOUND
    assert "5 slides: 2 predicted, 0 done before, 3 broken." in capsys.readouterr().out
    rows = {Path(row["slide"]).name: row for row in csv.DictReader((out / "summary.csv").open())}
    assert list(rows) == ["gone.png", "one.png", "pipe.png", "two.png", "zero.svs"]
    assert "is a link to" in rows["gone.png"]["problem"] and "pipe, socket or device" in rows["pipe.png"]["problem"]
    assert "tile width is 0" in rows["zero.svs"]["problem"] and rows["two.png"]["status"] == "predicted"
    assert "is a link to" in refused(capsys, place, slides / "gone.png", "--out", tmp_path / "one.h5ad")


def test_an_error_that_was_not_foreseen_is_that_slides_own(place, tmp_path, capsys, monkeypatch):
    from cmrcnet.inference import predict

    whole = predict.predict_to_file

    def fails(predictor, slide, out, **options):
        if slide.name == "one":
            raise ZeroDivisionError("somewhere")
        return whole(predictor, slide, out, **options)

    monkeypatch.setattr(predict, "predict_to_file", fails)
    assert run(place, place / "pictures", "--out", tmp_path / "out") == app.PROBLEMS_FOUND
    said = capsys.readouterr()
    assert "1 predicted, 0 done before, 1 broken." in said.out and "ZeroDivisionError: somewhere" in said.out
    assert "Traceback" not in said.err


def test_a_pattern_is_a_batch_and_a_table_of_other_settings_is_not_taken_for_done(place, tmp_path, capsys):
    pattern, out = place / "pictures" / "o*.png", tmp_path / "out"
    assert run(place, pattern, "--out", out) == 0
    assert run(place, pattern, "--out", out, "--k", 2) == app.PROBLEMS_FOUND
    assert "it differs in k; choose another folder or pass --overwrite" in capsys.readouterr().out
    assert run(place, pattern, "--out", out, "--k", 2, "--overwrite") == 0
    assert anndata.read_h5ad(out / "one.h5ad").obsm["neighbour_ids"].shape[1] == 2


def test_what_is_wrong_with_every_slide_is_said_once(place, tmp_path, capsys):
    out = tmp_path / "out"
    assert "There is no gene in the bank 'NOGENE'" in refused(
        capsys, place, place / "pictures", "--out", out, "--genes", "NOGENE"
    )
    assert "k is 99; wanted 1 to 24" in refused(capsys, place, place / "pictures", "--out", out, "--k", 99)
    assert "wanted nothing together with many slides" in refused(
        capsys, place, place / "pictures", "--out", out, "--mask", "m.png"
    )
    assert "A slide like" in refused(capsys, place, place / "pictures" / "*.svs", "--out", out)
    assert not out.exists()


def test_a_mask_says_where(place, tmp_path, capsys):
    mask = np.zeros((50, 50), np.uint8)
    mask[:, :25] = 255
    Image.fromarray(mask).save(tmp_path / "left.png")
    picture = place / "pictures" / "one.png"
    assert run(place, picture, "--out", tmp_path / "p.h5ad", "--mask", tmp_path / "left.png") == 0
    x = anndata.read_h5ad(tmp_path / "p.h5ad").obsm["spatial"][:, 0]
    assert len(x) == 2 * 4 and x.max() < 250
    for name, size, value, why in (
        ("other", (50, 80), 255, "its proportions are not the slide's"),
        ("black", (50, 50), 0, "nothing of it is brighter than mid-grey"),
        ("large", (1000, 1000), 255, "it is too large"),
    ):
        Image.fromarray(np.full(size, value, np.uint8)).save(tmp_path / f"{name}.png")
        said = refused(capsys, place, picture, "--out", tmp_path / "q.h5ad", "--mask", tmp_path / f"{name}.png")
        assert f"{name}.png does not fit: {why}" in said
    assert "The mask none.png does not exist" in refused(
        capsys, place, picture, "--out", tmp_path / "q.h5ad", "--mask", "none.png"
    )
    assert not list(tmp_path.glob("q*"))


def test_bad_input_is_one_sentence_and_leaves_nothing(place, tmp_path, capsys):
    picture, out = place / "pictures" / "one.png", tmp_path / "out" / "p.h5ad"
    slide = write_aperio(tmp_path / "whole.svs", noise_slide(0, 500).read(0, 0, 500, 500), mpp=0.5)
    cut = tmp_path / "cut.svs"
    cut.write_bytes(slide.read_bytes()[:-20_000])
    assert "truncated" in refused(capsys, place, cut, "--out", out)
    Image.fromarray(np.full((400, 400, 3), 250, np.uint8)).save(tmp_path / "empty.png")
    assert "No tissue was found on empty" in refused(capsys, place, tmp_path / "empty.png", "--out", out)
    (tmp_path / "genes.txt").write_text("\n")
    assert "0 genes to predict, but at least 1 are needed" in refused(
        capsys, place, picture, "--out", out, "--genes", tmp_path / "genes.txt"
    )
    assert "batch is 0; wanted 1 patch or more, or auto" in refused(capsys, place, picture, "--out", out, "--batch", 0)
    (tmp_path / "file").write_text("no folder")
    assert "cannot be written" in refused(capsys, place, picture, "--out", tmp_path / "file" / "p.h5ad")
    assert "ends in .h5ad or .zarr" in refused(capsys, place, picture, "--out", tmp_path / "p.csv")
    assert not out.parent.exists() or not list(out.parent.iterdir())
    out.parent.mkdir(exist_ok=True)
    out.write_text("mine")
    assert "exists already" in refused(capsys, place, picture, "--out", out)
    assert out.read_text() == "mine" and len(list(out.parent.iterdir())) == 1


def test_killed_while_encoding_and_killed_while_writing_it_ends_with_the_same_table(place, tmp_path):
    """kill -9, twice, at real processes."""
    picture = tmp_path / "large.png"
    Image.fromarray(noise_slide(5, 1200).read(0, 0, 1200, 1200)).save(picture)
    whole, out = tmp_path / "whole.h5ad", tmp_path / "killed.h5ad"
    words = ["predict", place / "model", picture, "--bank", place / "bank", "--grid-um", 33, "--mpp", 0.5]
    assert app.main([str(word) for word in [*words, "--out", whole]]) == 0
    work = tmp_path / "killed.h5ad.partial"
    for sign in ("features/features.json", "table.written"):
        killed([*words, "--out", out], work / sign, tmp_path / "cache")
        assert not out.exists()
    assert app.main([str(word) for word in [*words, "--out", out]]) == 0
    one, other = anndata.read_h5ad(whole), anndata.read_h5ad(out)
    np.testing.assert_allclose(one.X, other.X, rtol=1e-5)  # blocks of another size round otherwise
    np.testing.assert_allclose(one.obsm["neighbour_similarity"], other.obsm["neighbour_similarity"], atol=1e-6)
    assert list(one.obs_names) == list(other.obs_names) and not work.exists()


def killed(words: list[object], sign: Path, cache: Path) -> None:
    """Run a command and kill -9 it as soon as a file appears; its tables are written 16 locations at a time."""
    code = (
        "import sys; from cmrcnet.cli import app; from cmrcnet.inference import predict;"
        "predict.chunk_size = lambda genes: 16; sys.exit(app.main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        env={**os.environ, "CMRCNET_CACHE": str(cache)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and not sign.exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, process.stderr.read()


def test_a_store_can_be_predicted_at_once_and_tables_exported(place, tmp_path):
    spatialdata = pytest.importorskip("spatialdata")
    picture, out = place / "pictures" / "one.png", tmp_path / "p.zarr"
    assert run(place, picture, "--out", out) == 0
    assert run(place, picture, "--out", tmp_path / "p.h5ad") == 0
    table = anndata.read_h5ad(tmp_path / "p.h5ad")
    np.testing.assert_array_equal(spatialdata.read_zarr(out).tables["cmrcnet_tiles"].X, table.X)
    for name in ("p.geojson", "p.png", "p.ome.tiff", "q.zarr"):
        assert app.main(["export", str(tmp_path / "p.h5ad"), "--to", str(tmp_path / name)]) == 0
    names = {"p.zarr", "p.h5ad", "p.geojson", "p.png", "p.ome.tiff", "q.zarr"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_slides_of_two_scanners_are_each_predicted_at_their_own_scale(place, tmp_path, capsys):
    slides, out = tmp_path / "slides", tmp_path / "out"
    slides.mkdir()
    pixels = noise_slide(0, 500).read(0, 0, 500, 500)
    write_aperio(slides / "fine.svs", pixels, mpp=0.5)
    write_aperio(slides / "coarse.svs", pixels, mpp=0.7)
    Image.fromarray(pixels).save(slides / "unstated.png")
    arguments = ["predict", str(place / "model"), str(slides), "--bank", str(place / "bank"), "--out", str(out)]
    assert app.main([*arguments, "--grid-um", "66"]) == app.PROBLEMS_FOUND
    assert "2 predicted, 0 done before, 1 broken" in capsys.readouterr().out
    tables = {name: anndata.read_h5ad(out / f"{name}.h5ad") for name in ("fine", "coarse")}
    assert [table.uns["cmrcnet"]["mpp"] for table in tables.values()] == [0.5, 0.7]
    for table in tables.values():
        apart = np.diff(np.unique(table.obs["x_um"]))
        np.testing.assert_allclose(apart, 66, rtol=1e-6)
