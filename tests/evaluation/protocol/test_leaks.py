"""Nothing that is learnt may depend on a held-out count: scramble them, and everything stays bit-identical."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from cmrcnet.errors import Leakage
from cmrcnet.evaluation.methods import chosen_methods, shipped_methods
from cmrcnet.evaluation.methods.frozen_features import PooledFeatures
from cmrcnet.evaluation.methods.method import FoldData, location_of
from cmrcnet.evaluation.methods.trained_cmrcnet import TrainedCMRCNet
from cmrcnet.evaluation.protocol.evaluate import evaluate
from cmrcnet.evaluation.protocol.experiment import Experiment, FoldPlanner, TaskList
from cmrcnet.evaluation.protocol.fold_runner import FoldRunner
from cmrcnet.evaluation.protocol.folds import Fold, folds, only_folds
from cmrcnet.genes.gene_sets import choose_panel, gene_sets
from cmrcnet.slides.section import Cohort, Section

# A hundred spots and a few epochs: the collapse meter rightly doubts what these networks have learnt.
pytestmark = pytest.mark.filterwarnings("ignore::cmrcnet.errors.CmrcnetWarning")

HELD_OUT = "P1S1"


def scrambled(cohort: Cohort) -> Cohort:
    """The same cohort, with other counts in the held-out section."""

    def other(section: Section) -> Section:
        if section.name != HELD_OUT:
            return section
        counts = sparse.csr_matrix(np.random.default_rng(9).poisson(3.0, section.counts.shape).astype(np.int64))
        return Section(
            section.name, section.patient, section.slide, section.spots, counts, section.genes, section.absent_genes
        )

    return Cohort.of((other(section) for section in cohort), name=cohort.name)


def test_panel_weights_bank_and_predictions_do_not_depend_on_held_out_counts(small_run, small_config, small_cache):
    """Scores of the scrambled section change; whatever was learnt for it, and predicted for it, does not."""
    run = evaluate(scrambled(small_run.cohort), small_config, methods=["cmrcnet", "ridge"], cache=small_cache)
    before, after = small_run.run.predictions[HELD_OUT], run.predictions[HELD_OUT]
    np.testing.assert_array_equal(before.X, after.X)
    np.testing.assert_array_equal(before.layers["neighbour_std"], after.layers["neighbour_std"])
    np.testing.assert_array_equal(before.obsm["neighbour_ids"], after.obsm["neighbour_ids"])

    def learnt(facts: dict) -> list[dict]:
        """Fingerprints of panel, model and bank; the history; the penalties tried; the evaluation's gene sets."""
        parts = [p for p in facts["results"] if p["fold"] == "P1" and p["method"] in ("cmrcnet", "ridge")]
        (fold,) = (fold for fold in facts["folds"] if fold["name"] == "P1")
        return [*(part["record"] for part in parts), fold]

    assert {"panel", "model", "bank", "history"} <= set(learnt(run.metadata)[0])
    assert learnt(run.metadata) == learnt(small_run.run.metadata)
    for method in ("cmrcnet", "ridge"):
        mine = f"method == '{method}' and section == 'P1S1' and gene_set == 'all' and metric == 'pearson'"
        assert run.scores.query(mine)["value"].item() != small_run.run.scores.query(mine)["value"].item()


def test_one_method_alone_may_see_held_out_depth():
    assert [each.name for each in chosen_methods(None) if getattr(each, "diagnostic", False)] == ["depth-null"]


@pytest.mark.parametrize("method", [name for name in shipped_methods() if name != "depth-null"])
def test_no_method_predicts_otherwise_when_held_out_counts_change(method, small_cohort, small_config, small_cache):
    """Panel, gene sets, features, record and prediction of every method that ships: bit for bit the same."""
    quick = small_config.override({"train.epochs": 1})
    seen = []
    for cohort in (small_cohort, scrambled(small_cohort)):
        runner = FoldRunner(cohort, small_cache)
        experiment = Experiment(quick, tuple(chosen_methods([method])), only_folds(folds(cohort), ["P1"]), (0,))
        ((run,),) = TaskList([experiment], [{}], 1).planned(FoldPlanner(runner.cohort))
        data = runner.fold_data(run)
        predictor = run.method.fit(data)
        prediction = predictor.predict(location_of(cohort.read(HELD_OUT), data.features))
        seen.append((run.plan.panel, run.plan.sets, predictor.record, prediction.genes, prediction.mean, data.pooled))
    for before, after in zip(*seen, strict=True):
        if isinstance(before, np.ndarray):
            np.testing.assert_array_equal(before, after)
        else:
            assert before == after


def test_other_folds_do_learn_from_it(small_run, small_config, small_cache):
    """So that the test above can fail: where the scrambled section is trained on, everything differs."""
    run = evaluate(scrambled(small_run.cohort), small_config, methods=["ridge"], cache=small_cache)
    records = [
        part["record"]
        for facts in (run.metadata, small_run.run.metadata)
        for part in facts["results"]
        if part["method"] == "ridge" and part["fold"] == "P2"
    ]
    assert records[0] != records[1]


def test_a_model_that_has_seen_the_test_section_is_refused(small_cohort, small_config, small_cache):
    """Even when a fold is put together wrongly, the artefact's own provenance stops the evaluation."""
    wrong = Fold("P1", ("P1S1", "P2S1", "P3S1"), ("P1S1",), ("P1",), patient_disjoint=True)
    panel = choose_panel(small_cohort, small_config.panel)
    sets = gene_sets(small_cohort, panel.scaling, size=12)
    features = PooledFeatures(small_config, small_cache)
    data = FoldData(small_cohort, wrong, small_config, panel, sets, features, small_cache)
    with pytest.raises(Leakage, match="The model of fold P1 has seen section P1S1, patient P1 in training"):
        TrainedCMRCNet().fit(data)
