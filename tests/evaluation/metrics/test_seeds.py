"""Several seeds: run apart, averaged first."""

from __future__ import annotations

import pandas as pd
import pytest

from cmrcnet.errors import BadOption
from cmrcnet.evaluation.metrics.intervals import genes_over_seeds, over_patients, over_seeds
from cmrcnet.evaluation.protocol.evaluate import evaluate


def scores(rows) -> pd.DataFrame:
    head = {"method": "m", "fold": "f", "gene_set": "HVG", "metric": "pearson", "n_genes": 12}
    return pd.DataFrame([head | row for row in rows])


def test_seeds_are_averaged_within_a_section_before_anything_else():
    table = scores(
        [
            {"section": "a", "patient": "p", "value": 0.1, "n_undefined": 0, "seed": 0},
            {"section": "a", "patient": "p", "value": 0.3, "n_undefined": 2, "seed": 1},
            {"section": "b", "patient": "p", "value": float("nan"), "n_undefined": 12, "seed": 0},
            {"section": "b", "patient": "p", "value": 0.6, "n_undefined": 1, "seed": 1},
        ]
    )
    means = over_seeds(table)
    assert means["value"].tolist() == pytest.approx([0.2, 0.6])
    assert means["n_undefined"].tolist() == [2, 12] and "seed" not in means
    (whole,) = over_patients(table).itertuples()
    assert whole.value == pytest.approx(0.4) and whole.n_genes == 24


def test_one_seed_changes_no_number():
    table = scores([{"section": "a", "patient": "p", "value": 0.1, "n_undefined": 0, "seed": 7}])
    pd.testing.assert_frame_equal(over_seeds(table), table.drop(columns="seed"))


def test_genes_are_averaged_too():
    genes = pd.DataFrame(
        {"method": "m", "section": "a", "gene": ["x", "y", "x", "y"], "pearson": [0.1, 0.2, 0.3, 0.4], "sets": "HVG"}
    )
    assert genes_over_seeds(genes, 2)["pearson"].tolist() == pytest.approx([0.2, 0.3])
    assert genes_over_seeds(genes, 1) is genes


def test_every_method_is_run_with_each_seed(small_cohort, small_config, small_cache):
    options = {"cache": small_cache, "methods": ["random-k"], "only": ["P2"]}
    run = evaluate(small_cohort, small_config, seeds=2, **options)
    assert run.metadata["seeds"] == [0, 1] and sorted(set(run.scores["seed"])) == [0, 1]
    single = [
        evaluate(small_cohort, small_config.override({"train.seed": seed}), **options).mean("random-k")
        for seed in (0, 1)
    ]
    assert single[0] != single[1]
    assert run.mean("random-k") == pytest.approx(sum(single) / 2)
    assert "2 seeds" in run.protocol_info.to_text() and "only 1 of 3 folds" in run.protocol_info.warnings
    assert not run.genes.duplicated(["method", "section", "gene"]).any()


@pytest.mark.parametrize("seeds", [0, -1, True])
def test_a_number_of_seeds_below_one_is_refused(seeds, small_cohort, small_config, small_cache):
    with pytest.raises(BadOption, match="a number of seeds, 1 or more"):
        evaluate(small_cohort, small_config, seeds=seeds, cache=small_cache)
