"""Nothing that is learnt may depend on a held-out count: scramble them, and everything stays bit-identical."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from cmrcnet.errors import SeenInTraining
from cmrcnet.evaluation.features import PooledFeatures
from cmrcnet.evaluation.methods import TrainingData, place_of
from cmrcnet.evaluation.protocol import evaluate
from cmrcnet.evaluation.retrieval import TrainedCMRCNet
from cmrcnet.evaluation.splits import Fold, folds
from cmrcnet.expression.gene_sets import gene_sets
from cmrcnet.expression.panel import choose_panel
from cmrcnet.tissue.section import Cohort, Section

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


def test_panel_weights_bank_and_predictions_do_not_depend_on_held_out_counts(small_cohort, small_recipe, small_cache):
    def learnt(cohort: Cohort):
        fold = folds(cohort)[0]
        inside = cohort.only(fold.train)
        panel = choose_panel(inside, small_recipe.panel)
        sets = gene_sets(inside, panel.target_sum, size=12)
        features = PooledFeatures(small_recipe, small_cache)
        fitted = TrainedCMRCNet().fit(TrainingData(inside, fold, small_recipe, panel, sets, features, small_cache))
        return panel, sets, fitted, fitted.predict(place_of(cohort.read(HELD_OUT), features))

    panel, sets, fitted, said = learnt(small_cohort)
    other_panel, other_sets, other_fitted, other_said = learnt(scrambled(small_cohort))
    assert panel.genes == other_panel.genes and sets == other_sets
    assert fitted.model.fingerprint == other_fitted.model.fingerprint
    np.testing.assert_array_equal(fitted.bank.vectors, other_fitted.bank.vectors)
    np.testing.assert_array_equal(fitted.bank.expression.toarray(), other_fitted.bank.expression.toarray())
    np.testing.assert_array_equal(said.mean, other_said.mean)


def test_the_whole_protocol_predicts_a_section_alike_whatever_was_counted_there(small_run, small_recipe, small_cache):
    """Scores of the scrambled section change; what was predicted for it, and learnt for it, does not."""
    run = evaluate(scrambled(small_run.cohort), small_recipe, methods=["cmrcnet", "ridge"], cache=small_cache)
    np.testing.assert_array_equal(run.predictions[HELD_OUT].X, small_run.run.predictions[HELD_OUT].X)

    def records(facts):
        wanted = [p for p in facts["parts"] if p["fold"] == "P1" and p["method"] in ("cmrcnet", "ridge")]
        return [part["record"] for part in wanted]

    assert records(run.facts) == records(small_run.run.facts)
    mine = "method == 'ridge' and section == 'P1S1' and gene_set == 'all' and metric == 'pearson'"
    assert run.scores.query(mine)["value"].item() != small_run.run.scores.query(mine)["value"].item()


def test_a_model_that_has_seen_the_test_section_is_refused(small_cohort, small_recipe, small_cache):
    """Even when a fold is put together wrongly, the artefact's own provenance stops the evaluation."""
    wrong = Fold("P1", ("P1S1", "P2S1", "P3S1"), ("P1S1",), ("P1",), patient_disjoint=True)
    panel = choose_panel(small_cohort, small_recipe.panel)
    sets = gene_sets(small_cohort, panel.target_sum, size=12)
    features = PooledFeatures(small_recipe, small_cache)
    data = TrainingData(small_cohort, wrong, small_recipe, panel, sets, features, small_cache)
    with pytest.raises(SeenInTraining, match="The model of fold P1 has seen section P1S1, patient P1 in training"):
        TrainedCMRCNet().fit(data)
