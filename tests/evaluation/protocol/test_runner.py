"""Tasks in several processes: the same numbers, the same errors, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cmrcnet.datasets.synthetic import synthetic_cohort, write_cohort
from cmrcnet.errors import TooFew, WorkerDied
from cmrcnet.evaluation.methods import chosen_methods
from cmrcnet.evaluation.methods.controls import GeneMean
from cmrcnet.evaluation.protocol.evaluate import evaluate
from cmrcnet.evaluation.protocol.experiment import Experiment, FoldPlanner, TaskList
from cmrcnet.evaluation.protocol.folds import folds
from cmrcnet.evaluation.protocol.run_folder import RunFolder
from cmrcnet.workers import why_not_picklable

pytestmark = pytest.mark.filterwarnings("ignore::cmrcnet.errors.CmrcnetWarning")


class Failing(GeneMean):
    """Raises one of our errors inside a worker."""

    name = "failing"

    def fit(self, training):
        raise TooFew("spots in the test", 1, 2, "add one")


class Dying(GeneMean):
    """Ends its process, as the system does for want of memory."""

    name = "dying"

    def fit(self, training):
        os._exit(9)


def test_results_are_bit_identical_whatever_the_number_of_workers(tmp_path, small_run, small_config, small_cache):
    methods = ["cmrcnet", "ridge", "random-k"]
    folder = RunFolder(tmp_path / "run")
    before = set(small_cache.folder.iterdir())
    run = evaluate(small_run.cohort, small_config, methods=methods, cache=small_cache, folder=folder, workers=2)
    assert set(small_cache.folder.iterdir()) <= before, "a worker left its last bank behind"
    one = small_run.run.scores
    pd.testing.assert_frame_equal(run.scores, one[one.method.isin(methods)].reset_index(drop=True), check_exact=True)
    genes = small_run.run.genes
    pd.testing.assert_frame_equal(run.genes, genes[genes.method.isin(methods)].reset_index(drop=True), check_exact=True)
    for section, table in small_run.run.predictions.items():
        np.testing.assert_array_equal(run.predictions[section].X, table.X)
    assert list(run.metadata["time"]["methods"]) == methods
    assert sum(each["share"] for each in run.metadata["time"]["methods"].values()) == pytest.approx(1, abs=0.001)


def test_an_error_in_a_worker_arrives_as_itself(small_cohort, small_config, small_cache):
    with pytest.raises(TooFew, match="1 spots in the test, but at least 2 are needed; add one") as caught:
        evaluate(small_cohort, small_config, methods=[Failing(), "gene-mean"], cache=small_cache, workers=2)
    assert "in fit" in "".join(caught.value.__notes__)


def test_a_worker_that_dies_is_told_in_a_sentence(small_cohort, small_config, small_cache):
    with pytest.raises(WorkerDied, match=r"dying in fold P[12], seed 0 ended without a result \(exit code 9\)"):
        evaluate(small_cohort, small_config, methods=[Dying()], only=["P1", "P2"], cache=small_cache, workers=2)


def test_a_method_that_cannot_be_pickled_runs_here(small_cohort, small_config, small_cache):
    class Local(GeneMean):
        name = "local"

    assert "Local" in why_not_picklable(Local())
    run = evaluate(small_cohort, small_config, methods=[Local()], cache=small_cache, workers=2)
    assert set(run.scores.method) == {"local"}


def test_a_cohort_in_memory_can_be_pickled(small_cohort, small_cache):
    assert why_not_picklable(small_cohort, small_cache) == ""


def test_a_task_is_one_fold_and_seed_and_is_split_by_training_when_workers_would_be_idle(small_cohort, small_config):
    names = ["cmrcnet", "ridge", "cmrcnet-ridge", "permuted-pairs", "gene-mean"]
    these = folds(small_cohort)[:2]
    experiment = Experiment(small_config, tuple(chosen_methods(names)), these, (0, 1))

    def methods(done, workers):
        tasks = TaskList([experiment], [done], workers).planned(FoldPlanner(small_cohort))
        return [(task[0].plan.fold.name, task[0].seed, [run.method.name for run in task]) for task in tasks]

    whole = [("P1", 0, names), ("P1", 1, names), ("P2", 0, names), ("P2", 1, names)]
    assert methods({}, 4) == whole
    assert methods({("P1", "ridge", 0): None}, 2)[0] == ("P1", 0, [name for name in names if name != "ridge"])
    split = [["cmrcnet", "cmrcnet-ridge"], ["ridge", "gene-mean"], ["permuted-pairs"]]
    assert [named for _, _, named in methods({}, 5)] == 4 * split


@pytest.mark.timeout(600)
def test_a_killed_evaluation_leaves_no_worker_and_goes_on_where_it_was(tmp_path, capsys):
    """kill -9 of the parent: workers end by themselves; --resume runs the rest; the scores are those of a whole run."""
    from cmrcnet.cli import app

    write_cohort(synthetic_cohort(patients=3, spots=40, genes=60, seed=1), tmp_path / "cohort")
    command = ["evaluate", str(tmp_path / "cohort" / "cohort.csv"), "--config", "tiny", "--seeds", "2", "--methods"]
    command += ["gene-mean", "random-k", "ridge", "--set", "panel.n_hvg=20", "evaluation.set_size=10"]
    out, partial = tmp_path / "run", tmp_path / "run.partial"
    process = subprocess.Popen(
        [sys.executable, "-m", "cmrcnet", *command, "--out", str(out), "--workers", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    patience = time.monotonic() + 280
    while not list(partial.glob("results/*/*/*/result.json")):
        assert process.poll() is None and time.monotonic() < patience, "no part was finished"
        time.sleep(0.05)
    children = _children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(Path(f"/proc/{child}/cmdline").exists() and "spawn" in _command(child) for child in children):
        assert time.monotonic() < patience, "a worker outlived its parent"
        time.sleep(0.1)
    assert not out.exists()
    kept = {path.parent: path.stat().st_mtime_ns for path in partial.glob("results/*/*/*/result.json")}
    assert app.main([*command, "--out", str(out)]) == app.USER_ERROR
    assert "--resume" in capsys.readouterr().err
    assert kept and app.main([*command, "--out", str(out), "--resume"]) == 0
    assert "Time: features" in capsys.readouterr().out
    assert app.main([*command, "--out", str(tmp_path / "whole"), "--workers", "1"]) == 0
    assert (out / "scores.csv").read_bytes() == (tmp_path / "whole" / "scores.csv").read_bytes()
    assert (out / "genes.csv").read_bytes() == (tmp_path / "whole" / "genes.csv").read_bytes()


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
