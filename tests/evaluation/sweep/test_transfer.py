"""Train on one cohort, test on another: the same genes, no shared section, and names that do not collide."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from cmrcnet.datasets.synthetic import synthetic_cohort
from cmrcnet.errors import Leakage, SectionError, TooFew
from cmrcnet.evaluation.protocol.experiment import FoldPlanner
from cmrcnet.evaluation.protocol.folds import folds
from cmrcnet.evaluation.sweep.sweep_report import write_transfer
from cmrcnet.evaluation.sweep.transfer import TransferFolder, joined, shared_sets, transfer
from cmrcnet.slides.section import Cohort

pytestmark = pytest.mark.filterwarnings("ignore::cmrcnet.errors.CmrcnetWarning")


@pytest.fixture(scope="module")
def train() -> Cohort:
    return synthetic_cohort(patients=2, spots=40, genes=60, seed=3)


@pytest.fixture(scope="module")
def test() -> Cohort:
    """Other tissue under the same names, and fewer genes."""
    other = synthetic_cohort(patients=2, spots=40, genes=60, seed=8)
    return Cohort.of((dataclasses.replace(s, counts=s.counts[:, 10:], genes=s.genes[10:]) for s in other), name="other")


def test_a_transfer_stands_beside_the_scores_inside_each_cohort(tmp_path, train, test, small_config, small_cache):
    config = small_config.override({"train.epochs": 1, "train.validation": "none", "train.refit": False})
    folder = TransferFolder(tmp_path / "t")
    run = transfer(train, [test], config, folder, small_cache, methods=["ridge"])
    row = run.table.query("method == 'ridge' and gene_set == 'HVG' and metric == 'pearson'").iloc[0]
    assert row["drop"] == pytest.approx(row.inside_test - row.transfer)
    assert np.isfinite([row.transfer, row.inside_test, row.inside_train]).all() and row.patients == 2
    assert set(run.metadata["gene_sets"]["other"]["HVG"]) <= set(test.read("P1S1").genes)
    write_transfer(run, folder)
    assert json.loads((tmp_path / "t" / "transfer.json").read_text())["tests"] == ["other"]
    assert "other" in (tmp_path / "t" / "transfer.html").read_text()
    assert "inside other" in run.to_text()


def test_a_gene_that_no_training_section_of_a_fold_lists_is_not_scored_there(train, small_config):
    genes = tuple(train.read("P1S1").genes[:3])
    (fold, *_) = folds(train, "patient")
    plan = FoldPlanner(train).plan(small_config, fold, {"HVG": ("Zfp579", *genes), "all": (*genes, "Zfp579")})
    assert plan.scored == {"HVG": genes, "all": genes}


def test_sections_and_patients_of_the_same_name_are_kept_apart(train, test):
    cohort, members = joined(train, [test])
    assert members["other"] == ("other: P1S1", "other: P2S1")
    assert cohort.patients == ("P1", "P2", "other: P1", "other: P2")
    section = cohort.read("other: P1S1")
    assert (section.name, section.patient) == ("other: P1S1", "other: P1")
    np.testing.assert_array_equal(section.counts.toarray(), test.read("P1S1").counts.toarray())


def test_sets_are_ranked_by_the_training_cohort_among_the_shared_genes(train, test, small_config):
    from cmrcnet.genes.gene_sets import gene_sets

    sets = shared_sets(train, test, small_config)
    theirs = set(test.read("P1S1").genes)
    whole = gene_sets(train, size=60)
    assert sets["HVG"] == tuple(gene for gene in whole["HVG"] if gene in theirs)[:12]
    assert len(sets["all"]) == 50


def test_a_section_on_both_sides_is_refused_under_any_name(tmp_path, train, small_config, small_cache):
    twin = Cohort.of([dataclasses.replace(train.read("P1S1"), name="new", patient="new")], name="twin")
    with pytest.raises(Leakage, match="has seen section new in training"):
        transfer(train, [twin], small_config, TransferFolder(tmp_path / "t"), small_cache)


def test_other_names_of_genes_are_explained(train, small_config):
    ids = [f"ENSG{i:011d}" for i in range(60)]
    other = Cohort.of((dataclasses.replace(s, genes=tuple(ids)) for s in train), name="ids")
    with pytest.raises(SectionError, match="Ensembl ids"):
        shared_sets(train, other, small_config)


def test_two_species_are_refused_though_a_few_names_meet(train, small_config):
    def mouse(genes: tuple[str, ...]) -> tuple[str, ...]:
        return (genes[0], *(gene.capitalize() for gene in genes[1:]))

    other = Cohort.of((dataclasses.replace(s, genes=mouse(s.genes)) for s in train), name="mice")
    with pytest.raises(SectionError, match=r"share only 1 gene\. .*upper and lower case"):
        shared_sets(train, other, small_config)


def test_no_test_cohort_is_refused(tmp_path, train, small_config, small_cache):
    with pytest.raises(TooFew, match="0 test cohorts"):
        transfer(train, [], small_config, TransferFolder(tmp_path / "t"), small_cache)
