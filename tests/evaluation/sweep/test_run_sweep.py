"""A sweep as a whole: trials on the same folds, one training for what differs in the head, tables and plots."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from cmrcnet.errors import Incompatible, OutputExists
from cmrcnet.evaluation.sweep.run_sweep import SweepFolder, sweep
from cmrcnet.evaluation.sweep.sweep_plan import plan_over
from cmrcnet.evaluation.sweep.sweep_report import plot, write_sweep
from cmrcnet.training import fit as training

pytestmark = pytest.mark.filterwarnings("ignore::cmrcnet.errors.CmrcnetWarning")


@pytest.fixture(scope="module")
def quick(small_config):
    return small_config.override({"train.epochs": 1, "train.validation": "none", "train.refit": False})


@pytest.fixture
def trainings(monkeypatch):
    """Configs of every training that was run."""
    seen = []
    real = training.fit

    def counted(cohort, config, **options):
        seen.append(config)
        return real(cohort, config, **options)

    monkeypatch.setattr(training, "fit", counted)
    return seen


def test_trials_that_differ_in_the_head_share_a_training_and_are_scored_as_if_alone(
    tmp_path, small_cohort, quick, small_cache, trainings
):
    from cmrcnet.evaluation.protocol.evaluate import evaluate

    plan = plan_over(quick, {"head.k": [10, 20]})
    options = {"only": ["P1", "P2"]}
    folder = SweepFolder(tmp_path / "sweep")
    run = sweep(lambda controls: small_cohort, plan, folder, small_cache, **options)
    assert len(trainings) == 2  # two folds, once each
    alone = evaluate(small_cohort, plan.trials[1].config, methods=["cmrcnet"], cache=small_cache, **options)
    assert run.value("k=20") == pytest.approx(alone.mean("cmrcnet"), abs=1e-9)
    assert run.value("base") != run.value("k=20")
    row = run.table.query("trial == 'k=20' and gene_set == 'HVG' and metric == 'pearson'").iloc[0]
    assert row.difference == pytest.approx(run.value("k=20") - run.value("base"))
    assert (row["head.k"], row.over, row.n) == ("20", "patients", 2)

    write_sweep(run, folder)
    place = tmp_path / "sweep"
    names = {path.name for path in place.iterdir()}
    assert names == {".cmrcnet.json", "sweep.csv", "sweep.json", "sweep.html", "HVG.png", "HEG.png", "trials"}
    assert len(pd.read_csv(place / "sweep.csv")) == len(run.table)
    assert json.loads((place / "sweep.json").read_text())["keys"] == ["head.k"]
    html = (place / "sweep.html").read_text()
    assert "k=20" in html and "Protocol strict" in html.replace("protocol strict", "Protocol strict")
    assert "http" not in html.replace("http://www.w3.org", "")
    with pytest.raises(OutputExists):
        SweepFolder(place)


def test_an_interrupted_sweep_goes_on_behind_its_finished_folds(
    tmp_path, small_cohort, quick, small_cache, trainings, monkeypatch
):
    plan = plan_over(quick, {"model.reconstruct": ["image", "none"]})
    options = {"only": ["P1", "P2"]}
    whole = sweep(lambda controls: small_cohort, plan, SweepFolder(tmp_path / "whole"), small_cache, **options)
    assert len(trainings) == 4

    counted = training.fit

    def stopping(cohort, config, **given):
        if len(trainings) == 4 + 3:
            raise KeyboardInterrupt
        return counted(cohort, config, **given)

    monkeypatch.setattr(training, "fit", stopping)
    with pytest.raises(KeyboardInterrupt):
        sweep(lambda controls: small_cohort, plan, SweepFolder(tmp_path / "s"), small_cache, **options)
    monkeypatch.setattr(training, "fit", counted)
    again = sweep(lambda controls: small_cohort, plan, SweepFolder(tmp_path / "s", resume=True), small_cache, **options)
    assert len(trainings) == 4 + 3 + 1
    pd.testing.assert_frame_equal(again.table, whole.table)


def test_another_sweep_is_not_gone_on_with(tmp_path, small_cohort, quick, small_cache):
    def begun(values, **options):
        plan = plan_over(quick, {"head.k": values})
        sweep(lambda controls: small_cohort, plan, SweepFolder(tmp_path / "s", resume=True), small_cache, **options)

    begun([10], only=["P1"])
    with pytest.raises(Incompatible, match="its trials changed since it was started"):
        begun([10, 20], only=["P1"])
    with pytest.raises(Incompatible, match="its settings changed"):
        begun([10], only=["P2"])


@pytest.mark.parametrize(
    ("keys", "grid"), [({"head.k": ["10", "500"]}, True), ({"model.targets": ["soft", "hard"]}, False)]
)
def test_a_plot_is_a_picture_whatever_varies(keys, grid):
    from cmrcnet.evaluation.sweep.run_sweep import SweepRun
    from cmrcnet.evaluation.sweep.sweep_plan import SweepPlan

    ((key, values),) = keys.items()
    rows = [
        {"trial": f"c{i}", key: v, "method": "cmrcnet", "gene_set": "HVG", "metric": "pearson", "value": 0.1 * i,
         "low": float("nan"), "high": 0.3, "over": "patients", "n": 2}
        for i, v in enumerate(values)
    ]  # fmt: skip
    run = SweepRun(SweepPlan(None, (), (key,), grid), "cohort", pd.DataFrame(rows), {}, {}, {})
    assert plot(run, "HVG").startswith(b"\x89PNG")
