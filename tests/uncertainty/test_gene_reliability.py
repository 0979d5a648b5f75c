"""Gene reliability: graded as `predictability` grades, looked up by name, NaN for unknown genes."""

from __future__ import annotations

import numpy as np
import pytest

from cmrcnet.uncertainty.gene_reliability import fit_gene_reliability

FACTS = {"sections": 3, "groups": 3, "group_by": "patient"}


def reliability():
    pearson = np.array([[0.6, 0.7, 0.65], [0.0, 0.1, -0.1], [np.nan, 0.9, np.nan]])
    null = np.array([[0.01, 0.02, 0.0], [0.05, -0.02, 0.01], [0.0, 0.0, 0.0]])
    return fit_gene_reliability(["GOOD", "BAD", "RARE"], pearson, null, ["S1", "S2", "S3"], ["A", "B", "C"], FACTS)


def test_good_bad_and_rare():
    table = reliability().table(["RARE", "GOOD", "NEW", "BAD"])
    assert list(table["grade"]) == ["not measured", "A", "not measured", "D"]
    np.testing.assert_allclose(table["reliability"], [0.9, 0.65, np.nan, 0.0], atol=1e-6)
    assert list(table["reliability_sections"]) == [1, 3, 0, 3]
    good = table.loc["GOOD"]
    assert [good["reliability_low"], good["reliability_high"]] == pytest.approx(
        [0.65 - 0.12421, 0.65 + 0.12421], abs=1e-4
    )
    # The 95 % quantile over genes of the null's means: 0.01, 0.0133, 0.
    np.testing.assert_allclose(good["reliability_null"], np.quantile([0.01, 0.04 / 3, 0.0], 0.95), rtol=1e-5)


def test_the_sentence_names_the_data():
    assert reliability().sentence.startswith(
        "Validation Pearson over 3 sections of 3 training patients, each predicted by"
    )


def test_no_genes_no_rows():
    assert len(reliability().table([])) == 0
