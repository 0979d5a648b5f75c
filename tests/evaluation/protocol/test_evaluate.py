"""The protocol as a whole: what a run holds, resuming, stamps, and a method of one's own."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest

from cmrcnet.datasets.synthetic import synthetic_cohort
from cmrcnet.errors import BadOption, UnknownName
from cmrcnet.evaluation.methods.method import FoldData, Location, Method, Prediction
from cmrcnet.evaluation.metrics.gene_metrics import METRICS, over_genes
from cmrcnet.evaluation.metrics.scoring import SET_METRICS
from cmrcnet.evaluation.protocol import evaluate as protocol
from cmrcnet.evaluation.protocol.evaluate import EvaluationRun, evaluate
from cmrcnet.evaluation.protocol.run_folder import RunFolder
from cmrcnet.genes.gene_sets import gene_sets
from cmrcnet.genes.scaling import normalize
from cmrcnet.genes.spatial_stats import pearson_per_gene
from cmrcnet.slides.section import Cohort, Section
from tests.evaluation.conftest import SMALL_METHODS

# A hundred spots and a few epochs: the collapse meter rightly doubts what these networks have learnt.
pytestmark = pytest.mark.filterwarnings("ignore::cmrcnet.errors.CmrcnetWarning")


@dataclass
class Watching:
    """A user's own method: predicts a gradient, and keeps what it was given."""

    name: str = "watching"
    about: str = "a test's own method"
    seen: list[FoldData] = field(default_factory=list)
    locations: list[Location] = field(default_factory=list)

    def fit(self, training: FoldData) -> Watching:
        self.seen.append(training)
        self.record = {"spots": training.expression.shape[0]}
        return self

    def predict(self, location: Location) -> Prediction:
        self.locations.append(location)
        gradient = location.spots.centre_px[:, :1] * np.ones(len(self.seen[-1].genes))
        return Prediction(self.seen[-1].genes, gradient.astype(np.float32))


class Refusing(Watching):
    """Must not be run again."""

    def fit(self, training):
        raise AssertionError("a finished part was run again")


def evaluated(cohort, config, cache, **options) -> EvaluationRun:
    return evaluate(cohort, config, cache=cache, **options)


def test_every_method_is_scored_in_every_fold_on_every_set(small_run):
    scores = small_run.run.scores
    assert list(scores.columns) == [
        "method", "fold", "section", "patient", "gene_set", "metric", "value", "n_genes", "n_undefined", "seed",
    ]  # fmt: skip
    assert set(scores.gene_set) == {"HEG", "HVG", "SVG", "all"}
    assert set(scores.metric) == {*METRICS, *SET_METRICS}
    assert (scores.groupby(["method", "fold", "gene_set", "metric"]).size() == 1).all()
    assert set(scores.groupby("metric").method.nunique()) == {len(SMALL_METHODS)}
    assert (scores[scores.gene_set == "HVG"].n_genes == 12).all()


def test_a_score_is_what_the_saved_prediction_and_the_truth_give(small_run):
    """The number on the page, worked out again from the files alone."""
    run = small_run.run
    section, table = small_run.cohort.read("P2S1"), small_run.folder.prediction("P2S1")
    assert list(table.obs_names) == list(section.spots.barcodes)
    hvg = gene_sets(small_run.cohort.only(["P1S1", "P3S1"]), size=12)["HVG"]
    truth = normalize(section.counts, small_run.config.panel.target_sum).toarray()
    truth = truth[:, [section.genes.index(gene) for gene in hvg]]
    value, n_genes, n_undefined = over_genes(pearson_per_gene(truth, np.asarray(table[:, list(hvg)].X)))
    row = run.scores.query(
        "method == 'cmrcnet' and section == 'P2S1' and gene_set == 'HVG' and metric == 'pearson'"
    ).iloc[0]
    assert row.value == pytest.approx(value, abs=1e-5)
    assert (row.n_genes, row.n_undefined, row.fold, row.patient) == (n_genes, n_undefined, "P2", "P2")


def test_the_constant_gene_mean_is_undefined_and_says_so(small_run):
    rows = small_run.run.scores.query("method == 'gene-mean' and metric == 'pearson'")
    assert rows["value"].isna().all() and (rows.n_undefined == rows.n_genes).all()
    assert "undefined" in small_run.run.to_text()


def test_undefined_as_zero_is_a_choice_of_the_config(small_cohort, small_config, small_cache):
    run = evaluated(
        small_cohort, small_config.override({"evaluation.undefined": "zero"}), small_cache, methods=["gene-mean"]
    )
    rows = run.scores.query("metric == 'pearson'")
    assert (rows["value"] == 0).all() and (rows.n_undefined == rows.n_genes).all()
    assert "counted as 0" in run.protocol_info.to_text()


def test_the_folder_holds_what_the_run_holds(small_run):
    place = small_run.folder.path
    pd.testing.assert_frame_equal(pd.read_csv(place / "scores.csv", float_precision="round_trip"), small_run.run.scores)
    facts = json.loads((place / "run.json").read_text())
    assert facts["format"] == 4 and facts["seed"] == small_run.config.train.seed
    assert facts["config"] == small_run.config.to_dict()
    assert [fold["test"] for fold in facts["folds"]] == [["P1S1"], ["P2S1"], ["P3S1"]]
    assert set(facts["versions"]) >= {"cmrcnet", "torch", "python"}
    assert sorted(p.name for p in (place / "predictions").iterdir()) == ["P1S1.h5ad", "P2S1.h5ad", "P3S1.h5ad"]


def test_learning_beats_the_nulls_on_tissue_that_can_be_learnt(small_run):
    run = small_run.run
    assert run.mean("ridge") > run.mean("random-k") + 0.1
    assert run.mean("cmrcnet") > run.mean("permuted-pairs")


def test_a_method_is_given_training_sections_and_places_without_counts(small_cohort, small_config, small_cache):
    method = Watching()
    assert isinstance(method, Method)
    evaluated(small_cohort, small_config, small_cache, methods=[method])
    assert [data.cohort.sections for data in method.seen] == [("P2S1", "P3S1"), ("P1S1", "P3S1"), ("P1S1", "P2S1")]
    for data, place in zip(method.seen, method.locations, strict=True):
        assert place.section in data.fold.test and place.section not in data.cohort.sections
        assert not any(isinstance(value, Section | Cohort) for value in vars(place).values())


def test_gene_sets_come_from_the_training_sections_of_each_fold(small_cohort, small_config, small_cache):
    method = Watching()
    run = evaluated(small_cohort, small_config, small_cache, methods=[method])
    for data, fold in zip(method.seen, run.metadata["folds"], strict=True):
        expected = gene_sets(small_cohort.only(data.fold.train), size=12)
        assert fold["gene_sets"] == {name: list(expected[name]) for name in ("HEG", "HVG", "SVG")}


def test_an_interrupted_run_goes_on_at_the_method_it_had_reached(tmp_path, small_cohort, small_config, small_cache):
    class Dying(Watching):
        def fit(self, training):
            if training.fold.name == "P2":
                raise KeyboardInterrupt
            return super().fit(training)

    with pytest.raises(KeyboardInterrupt):
        evaluated(
            small_cohort, small_config, small_cache, methods=["gene-mean", Dying()], folder=RunFolder(tmp_path / "run")
        )
    assert not (tmp_path / "run").exists()
    folder = RunFolder(tmp_path / "run", resume=True)
    again = Watching()
    resumed = evaluated(small_cohort, small_config, small_cache, methods=["gene-mean", again], folder=folder)
    assert [data.fold.name for data in again.seen] == ["P2", "P3"]  # P1 was finished
    whole = RunFolder(tmp_path / "whole")
    straight = evaluated(small_cohort, small_config, small_cache, methods=["gene-mean", Watching()], folder=whole)
    pd.testing.assert_frame_equal(resumed.scores, straight.scores)
    pd.testing.assert_frame_equal(resumed.genes, straight.genes)


def test_a_run_whose_first_fold_alone_is_missing_is_completed(tmp_path, small_cohort, small_config, small_cache):
    """The later folds, of which nothing is run, are described in run.json all the same."""
    options = {"cache": small_cache, "methods": ["gene-mean"]}
    evaluate(small_cohort, small_config, only=["P2", "P3"], folder=RunFolder(tmp_path / "run"), **options)
    run = evaluate(small_cohort, small_config, folder=RunFolder(tmp_path / "run", resume=True), **options)
    assert [fold["name"] for fold in run.metadata["folds"]] == ["P1", "P2", "P3"]
    assert all(len(fold["gene_sets"]["HVG"]) == 12 for fold in run.metadata["folds"])


def test_a_finished_part_is_not_run_again(tmp_path, small_cohort, small_config, small_cache):
    evaluated(small_cohort, small_config, small_cache, methods=[Watching()], folder=RunFolder(tmp_path / "run"))
    again = RunFolder(tmp_path / "run", resume=True)
    evaluated(small_cohort, small_config, small_cache, methods=[Refusing()], folder=again)


def test_sections_of_one_patient_on_both_sides_are_stamped_everywhere(small_config, small_cache):
    cohort = synthetic_cohort(patients=1, sections_per_patient=3, spots=30, genes=40, seed=5)
    run = evaluated(cohort, small_config, small_cache, methods=["gene-mean"], group_by="section")
    assert not run.protocol_info.patient_disjoint
    assert "not patient-disjoint" in run.to_text().lower()
    assert run.metadata["protocol_info"]["warnings"] == ["not patient-disjoint", "too few patients to rank"]


def test_a_panel_from_all_sections_is_given_to_the_folds_and_stamped(small_cohort, small_config, small_cache):
    from cmrcnet.genes.gene_sets import choose_panel

    leaking = small_config.override({"panel.sections": "all", "panel.n_hvg": 10})
    method = Watching()
    run = evaluated(small_cohort, leaking, small_cache, methods=[method])
    everything = choose_panel(small_cohort, leaking.panel).genes
    assert {data.panel.genes for data in method.seen} == {everything}
    assert "gene panel chosen on all sections" in run.protocol_info.to_text().lower()
    assert "The gene panel was chosen on the test sections too." in run.to_text()


def test_each_section_is_read_once(small_config, small_cache, small_cohort):
    reads: list[str] = []

    def counted(entry):
        def load():
            reads.append(entry.section)
            return entry.load()

        return type(entry)(entry.section, entry.patient, load, entry.metadata)

    cohort = Cohort("counted", tuple(counted(entry) for entry in small_cohort.entries))
    evaluated(cohort, small_config, small_cache, methods=["gene-mean", "random-k"])
    assert sorted(reads) == ["P1S1", "P2S1", "P3S1"]


def test_an_unknown_method_and_a_method_named_twice_are_refused(small_cohort, small_config, small_cache):
    with pytest.raises(UnknownName, match="There is no method 'magic'; known: cmrcnet, cmrcnet-retrieval"):
        evaluated(small_cohort, small_config, small_cache, methods=["magic"])
    with pytest.raises(BadOption, match="each named once"):
        evaluated(small_cohort, small_config, small_cache, methods=["ridge", "ridge"])


def test_counts_beyond_the_memory_budget_are_read_again(small_cohort):
    from cmrcnet.evaluation.protocol.fold_runner import remembered

    cohort = remembered(small_cohort, most_bytes=0)
    assert cohort.read("P1S1").counts.shape == small_cohort.read("P1S1").counts.shape
    assert protocol.remembered(small_cohort).read("P1S1") is protocol.remembered(small_cohort).read("P1S1")
