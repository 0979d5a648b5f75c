"""The run folder: whole or not at all, resumable, and never mistaken for another run."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from cmrcnet.errors import Damaged, Incompatible, OutputExists
from cmrcnet.evaluation.protocol.run_folder import FoldResult, RunFolder

IDENTITY = {"config": {"a": 1}, "cohort": "x"}
FOLDS = pd.DataFrame({"fold": ["P1", "P1"], "section": ["A", "B"], "patient": ["P1", "P2"], "label": ["test", "train"]})
SCORES = pd.DataFrame(
    {
        "method": ["m", "m"],
        "fold": ["794", "794"],
        "section": ["NA", "s"],
        "patient": ["794", "007"],
        "gene_set": ["HVG", "HVG"],
        "metric": ["pearson", "pearson"],
        "value": [0.1 + 0.2, np.nan],
        "n_genes": [50, 50],
        "n_undefined": [0, 50],
    }
)
GENES = pd.DataFrame({"method": ["m"], "section": ["NA"], "gene": ["NAN"], "pearson": [0.25], "sets": [""]})


def part(**tables) -> FoldResult:
    return FoldResult(SCORES, GENES, {"penalty": 10.0}, 1.5, tables)


def begun(path, **options) -> RunFolder:
    folder = RunFolder(path, **options)
    folder.begin(IDENTITY)
    return folder


def finished(path, **options) -> RunFolder:
    folder = begun(path, **options)
    folder.keep("794", "m", 0, part(s=ad.AnnData(np.ones((2, 1), np.float32))))
    folder.write_tables(SCORES, GENES, {"seed": 0}, FOLDS)
    (folder.working / "report.html").write_text("report")
    folder.finish()
    return folder


def test_a_part_comes_back_as_it_was_with_names_still_text(tmp_path):
    kept = begun(tmp_path / "run").keep("fold/1", "m", 0, part())
    pd.testing.assert_frame_equal(kept.scores, SCORES)
    pd.testing.assert_frame_equal(kept.genes, GENES)
    assert (kept.record, kept.seconds) == ({"penalty": 10.0}, 1.5)


def test_nothing_stands_at_the_path_until_it_is_finished(tmp_path):
    folder = begun(tmp_path / "run")
    folder.keep("f", "m", 0, part())
    assert not (tmp_path / "run").exists() and folder.working == tmp_path / "run.partial"
    folder.write_tables(SCORES, GENES, {}, FOLDS)
    folder.finish()
    assert folder.working == tmp_path / "run"
    assert not (tmp_path / "run.partial").exists()


def test_the_finished_folder_holds_the_contract_and_nothing_else(tmp_path):
    folder = finished(tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        ".cmrcnet.json",
        "folds.csv",
        "genes.csv",
        "predictions",
        "report.html",
        "run.json",
        "scores.csv",
    ]
    assert folder.prediction("s").shape == (2, 1)


def test_predictions_are_found_before_and_after_the_folder_moves(tmp_path):
    folder = begun(tmp_path / "run")
    folder.keep("f", "m", 0, part(**{"a/b": ad.AnnData(np.ones((3, 1), np.float32))}))
    tables = folder.predictions()
    assert list(tables) == ["a/b"] and tables["a/b"].n_obs == 3
    folder.write_tables(SCORES, GENES, {}, FOLDS)
    folder.finish()
    assert tables["a/b"].n_obs == 3


def test_resuming_finds_the_finished_parts_only(tmp_path):
    begun(tmp_path / "run").keep("f", "m", 0, part())
    again = begun(tmp_path / "run", resume=True)
    assert again.result("f", "m").record == {"penalty": 10.0}
    assert again.result("f", "other") is None and again.result("g", "m") is None


def test_resuming_where_nothing_was_begun_starts(tmp_path):
    assert begun(tmp_path / "run", resume=True).result("f", "m") is None


@pytest.mark.parametrize(("changed", "named"), [({"config": {"a": 2}}, "config"), ({"cohort": "y"}, "cohort")])
def test_another_run_is_not_gone_on_with(tmp_path, changed, named):
    begun(tmp_path / "run")
    with pytest.raises(Incompatible, match=f"its {named} changed since it was started; pass --overwrite"):
        RunFolder(tmp_path / "run", resume=True).begin(IDENTITY | changed)


def test_results_that_do_not_say_what_they_are_of_are_not_gone_on_with(tmp_path):
    folder = begun(tmp_path / "run")
    folder.keep("f", "m", 0, part())
    (folder.working / "identity.json").unlink()
    with pytest.raises(
        Incompatible, match=r"identity.json, which says what it was started with, is missing.*overwrite"
    ):
        RunFolder(tmp_path / "run", resume=True).begin(IDENTITY)


def test_an_interrupted_run_is_neither_forgotten_nor_continued_silently(tmp_path):
    begun(tmp_path / "run").keep("f", "m", 0, part())
    with pytest.raises(OutputExists, match="an interrupted run; pass --resume to go on with it, or --overwrite"):
        RunFolder(tmp_path / "run")
    assert begun(tmp_path / "run", overwrite=True).result("f", "m") is None


def test_a_finished_run_is_only_replaced_when_asked_and_at_the_last_moment(tmp_path):
    finished(tmp_path / "run")
    for options in ({}, {"resume": True}):
        with pytest.raises(OutputExists, match="run exists already"):
            RunFolder(tmp_path / "run", **options)
    second = begun(tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "report.html").read_text() == "report"
    second.write_tables(SCORES, GENES, {}, FOLDS)
    second.finish()
    assert not (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("name", ["run", "run.partial"])
@pytest.mark.parametrize("options", [{"overwrite": True}, {"overwrite": True, "resume": True}])
def test_a_folder_of_the_users_is_never_removed(tmp_path, name, options):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("mine")
    with pytest.raises(OutputExists, match="a folder that cmrcnet did not write"):
        RunFolder(tmp_path / "run", **options)
    assert (tmp_path / name / "thesis.txt").read_text() == "mine"


def test_a_run_that_is_not_done_cannot_be_finished(tmp_path):
    with pytest.raises(Damaged, match="the run is not finished"):
        begun(tmp_path / "run").finish()


@pytest.mark.parametrize("name", ["result.json", "scores.csv", "genes.csv", "s.h5ad"])
def test_a_damaged_part_is_made_again(tmp_path, name):
    folder = begun(tmp_path / "run")
    folder.keep("f", "m", 0, part(s=ad.AnnData(np.ones((3, 1), np.float32))))
    assert folder.result("f", "m") is not None
    (file,) = folder.working.rglob(name)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert folder.result("f", "m") is None
    folder.keep("f", "m", 0, part(s=ad.AnnData(np.ones((3, 1), np.float32))))
    assert folder.result("f", "m") is not None


@pytest.mark.parametrize("name", ["run.json", "scores.csv"])
def test_a_finished_run_that_was_changed_is_refused(tmp_path, name):
    finished(tmp_path / "run")
    assert RunFolder.read_finished(tmp_path / "run") is not None
    whole = (tmp_path / "run" / name).read_bytes()
    for place in range(0, len(whole), 7):
        content = bytearray(whole)
        content[place] ^= 1
        (tmp_path / "run" / name).write_bytes(content)
        with pytest.raises((Damaged, Incompatible)):
            RunFolder.read_finished(tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / name).mkdir()
    with pytest.raises(Damaged, match=r"it is no plain file|scores.csv is missing or not what was written"):
        RunFolder.read_finished(tmp_path / "run")


def test_a_changed_prediction_of_a_finished_run_is_refused(tmp_path):
    folder = finished(tmp_path / "run")
    (file,) = folder.working.rglob("s.h5ad")
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    with pytest.raises(Damaged, match=r"predictions/s.h5ad is missing or not what was written; run the evaluation"):
        folder.prediction("s")


def test_a_run_of_an_older_version_is_refused(tmp_path):
    finished(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text('{"format": 3}')
    with pytest.raises(Incompatible, match=r"has format 3, and this version reads 4; run the evaluation again"):
        RunFolder.read_finished(tmp_path / "run")


def test_names_that_look_like_formulas_are_quoted_in_the_tables_and_come_back(tmp_path):
    folder = begun(tmp_path / "run")
    result = part()
    scores = result.scores.assign(section="=HYPERLINK()", patient="-1")
    folder.write_tables(scores, result.genes, {}, FOLDS)
    folder.finish()
    assert "'=HYPERLINK()" in (tmp_path / "run" / "scores.csv").read_text()
    again, _ = RunFolder.read_finished(tmp_path / "run")
    assert set(again["section"]) == {"=HYPERLINK()"} and set(again["patient"]) == {"-1"}
