"""Controls are dropped, duplicates are summed, and no real gene is lost."""

from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cmrcnet.errors import BadOption, ShapeMismatch
from cmrcnet.genes.naming import clean_features, kind_of_control

CONTROLS = {
    "__ambiguous.Dst.AC123072.1": "ambiguous",
    "__ambiguous[Fntb+Churc1]": "ambiguous",
    "__no_feature": "ambiguous",
    "BLANK_0006": "blank",
    "Blank-12": "blank",
    "NegControlProbe_00042": "negative control",
    "NegControlCodeword_0500": "negative control",
    "NegPrb3": "negative control",
    "Negative12": "negative control",
    "NegProbe-WTX": "negative control",
    "antisense_PROKR2": "antisense",
    "UnassignedCodeword_0018": "unassigned",
    "DeprecatedCodeword_0018": "unassigned",
    "DEPRECATED_ENSG00000198888": "unassigned",
    "Intergenic_Region_1001": "intergenic",
    "SystemControl45": "system control",
    "ERCC-00002": "spike-in",
}
GENES = (
    "FO538757.1",
    "NEGR1",
    "Negr1",
    "ERCC1",
    "Ercc6l2",
    "ERCC-6L2",
    "BLNK",
    "BLANK",
    "H2.M10.1",
    "H2-Q1",
    "HLA-DRB1",
    "2810021J22Rik",
    "ENSG00000141510",
    "ENSMUSG00000107169.2",
    "MT-CO1",
    "AC243756.1",
    "NKX2-5",
    "Deprecated1",
    "ANTISENSE1",
    "1-Mar",
)


@pytest.mark.parametrize(("name", "kind"), CONTROLS.items())
def test_controls_are_known_by_kind(name, kind):
    assert kind_of_control(name) == kind


@pytest.mark.parametrize("name", GENES)
def test_no_real_gene_is_taken_for_a_control(name):
    assert kind_of_control(name) is None


def test_by_hand():
    counts = sparse.csr_matrix(np.array([[1, 2, 4, 8, 16], [0, 3, 5, 7, 9]]))
    genes, cleaned, notes = clean_features(["B", "BLANK_1", "A", "B", " "], counts)
    assert genes == ("B", "A")
    assert cleaned.toarray().tolist() == [[9, 4], [7, 5]]
    assert len(notes) == 3
    assert "1 feature without a name: dropped." in notes
    assert "1 feature is not a gene (1 blank): dropped." in notes
    assert "1 gene name(s) on several columns (B): counts added up." in notes


def test_controls_kept_as_the_released_code_does():
    counts = sparse.csr_matrix(np.array([[1, 2, 4]]))
    genes, cleaned, notes = clean_features(["A", "BLANK_1", "A"], counts, controls="keep")
    assert genes == ("A", "BLANK_1")
    assert cleaned.toarray().tolist() == [[5, 2]]
    assert any("kept" in note for note in notes)


def test_nothing_to_do_changes_nothing_and_says_nothing():
    counts = sparse.csr_matrix(np.arange(6).reshape(2, 3))
    genes, cleaned, notes = clean_features(GENES[:3], counts)
    assert (genes, notes) == (GENES[:3], ())
    assert (cleaned != counts).nnz == 0


@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(st.sampled_from(["A", "B", "C", "BLANK_1", "", "__ambiguous.x"]), min_size=1, max_size=12),
    seed=st.integers(0, 99),
)
def test_counts_of_real_genes_are_neither_lost_nor_made(names, seed):
    dense = np.random.default_rng(seed).integers(0, 4, (3, len(names)))
    genes, cleaned, _ = clean_features(names, sparse.csr_matrix(dense))
    assert len(set(genes)) == len(genes)
    wanted = {name: dense[:, [n == name for n in names]].sum(axis=1) for name in names if name in "ABC" and name}
    assert set(genes) == set(wanted)
    for column, gene in enumerate(genes):
        np.testing.assert_array_equal(cleaned.toarray()[:, column], wanted[gene])
    again, same, notes = clean_features(genes, cleaned)
    assert again == genes and notes == () and (same != cleaned).nnz == 0


@pytest.mark.parametrize("section", ["CN51_C2_1", "L6CN51_E1_2"])
def test_a_real_section_of_als_against_pandas(als_csv, section):
    path = als_csv.parent / f"{section}_counts.tsv.gz"
    with gzip.open(path, "rt") as file:
        names = file.readline().rstrip("\n").split("\t")[1:]
    dense = pd.read_csv(path, sep="\t", header=None, skiprows=1, index_col=0).to_numpy()
    genes, counts, notes = clean_features(names, sparse.csr_matrix(dense))
    wanted = pd.DataFrame(dense.T).groupby(np.array(names)).sum()
    wanted = wanted[~wanted.index.str.startswith("__ambiguous")]
    np.testing.assert_array_equal(counts.toarray().T, wanted.loc[list(genes)].to_numpy())
    assert len(genes) == len(wanted)
    ambiguous = sum(name.startswith("__ambiguous") for name in names)
    assert any(f"({ambiguous} ambiguous)" in note for note in notes)


def test_no_gene_of_her2st_is_lost(her2st_csv):
    with gzip.open(her2st_csv.parent / "C6_counts.tsv.gz", "rt") as file:
        names = file.readline().rstrip("\n").split("\t")[1:]
    genes, _, notes = clean_features(names, sparse.csr_matrix((1, len(names))))
    assert genes == tuple(names) and genes[0] == "FO538757.1" and notes == ()


def test_bad_input():
    with pytest.raises(BadOption, match=r'controls is .maybe.; wanted "drop" or "keep"'):
        clean_features(["A"], sparse.csr_matrix((1, 1)), controls="maybe")
    with pytest.raises(ShapeMismatch, match=r"counts has shape"):
        clean_features(["A"], sparse.csr_matrix((1, 2)))
