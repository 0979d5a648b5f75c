"""What the protocols score on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cmrcnet.errors import BadOption, NoSharedGenes, UnknownName
from cmrcnet.evaluation.protocol import evaluate, under_protocol
from cmrcnet.evaluation.scoring import sets_of_truth, truth_of
from cmrcnet.expression.normalize import normalize
from cmrcnet.recipe import Recipe


def test_sets_of_the_truth_are_the_largest_means_and_variances():
    table = pd.DataFrame({"gene": ["a", "b", "c"], "mean": [1.0, 3.0, 2.0], "variance": [0.5, 0.1, 0.5]})
    assert sets_of_truth(table, 2) == {"HEG": ("b", "c"), "HVG": ("a", "c")}


def test_the_paper_protocol_scores_the_genes_that_the_test_truth_names(small_cohort, small_recipe, small_cache):
    strict, paper = (
        evaluate(
            small_cohort,
            small_recipe,
            methods=["ridge"],
            protocol=protocol,
            only=["P1S1"],
            unit="section",
            cache=small_cache,
        )
        for protocol in ("strict", "paper")
    )
    section = small_cohort.read("P1S1")
    truth = normalize(section.counts, small_recipe.panel.target_sum).toarray().astype(np.float64)
    hvg = {section.genes[i] for i in np.argsort(-truth.var(axis=0), kind="stable")[:12]}
    named = paper.genes[paper.genes["sets"].str.contains("HVG")]
    assert set(named["gene"]) == hvg
    assert paper.mean("ridge") == pytest.approx(named["pearson"].mean())
    assert set(strict.genes[strict.genes["sets"].str.contains("HVG")]["gene"]) != hvg
    said = paper.stamp.to_text().lower()
    assert "protocol paper" in said and "chosen by the measured truth of each test section" in said
    assert "scored genes chosen by the test truth" in said and "gene panel chosen on all sections" in said
    assert "protocol strict" in strict.stamp.to_text().lower()


def test_the_paper_protocol_leaves_out_sections_only():
    assert under_protocol(Recipe.load("default"), "paper").evaluation.unit == "section"
    with pytest.raises(BadOption, match="section, or nothing, with the protocol paper"):
        under_protocol(Recipe.load("default"), "paper", "patient")
    with pytest.raises(BadOption, match="strict or paper"):
        under_protocol(Recipe.load("default"), "loose")


def test_an_unknown_fold_is_refused(small_cohort, small_recipe, small_cache):
    with pytest.raises(UnknownName, match="There is no fold 'P9'; known: P1, P2, P3"):
        evaluate(small_cohort, small_recipe, only=["P9"], cache=small_cache)
    with pytest.raises(BadOption, match="at least one fold"):
        evaluate(small_cohort, small_recipe, only=[], cache=small_cache)


def test_genes_of_another_naming_are_explained(small_cohort):
    with pytest.raises(NoSharedGenes, match="Ensembl ids"):
        truth_of(small_cohort.read("P1S1"), [f"ENSG{i:011d}" for i in range(60)], 10_000.0)


def test_only_the_lead_method_keeps_every_gene(small_run):
    genes = small_run.run.genes
    assert genes[genes.method == "cmrcnet"].gene.nunique() == 60
    others = genes[genes.method != "cmrcnet"]
    assert (others["sets"] != "").all() and others.gene.nunique() < 60
