"""Predictors: columns of genes, the sum of rows, attribution weights, and options that are refused."""

from __future__ import annotations

import numpy as np
import pytest

from cmrcnet.errors import TooFew, UnknownName
from cmrcnet.inference.predictor import gene_columns

KNOWN = ("TP53", "GENE3", "NEW1", "ACTB", "GAPDH", "EPCAM")


def test_columns_come_in_the_order_asked_and_once():
    np.testing.assert_array_equal(gene_columns(None, KNOWN), np.arange(6))
    np.testing.assert_array_equal(gene_columns(["NEW1", "TP53", "NEW1"], KNOWN), [2, 0])
    np.testing.assert_array_equal(gene_columns("GAPDH", KNOWN), [4])


def test_no_genes_at_all_are_refused():
    with pytest.raises(TooFew, match="0 genes to predict, but at least 1 are needed; name some, or leave them out"):
        gene_columns([], KNOWN)


def test_an_unknown_gene_is_named_beside_those_like_it():
    with pytest.raises(UnknownName, match=r"There is no gene in the bank 'gene3'; known: GENE3\.$"):
        gene_columns(["TP53", "gene3"], KNOWN)
    with pytest.raises(UnknownName, match=r"There is no gene in the bank 'EPCM'; known: EPCAM\.$"):
        gene_columns(["EPCM", "TP53"], KNOWN)


@pytest.mark.parametrize(
    ("gene", "why"), [("ENSG00000141510", "The first uses human Ensembl ids"), ("Actb", "names match when upper")]
)
def test_when_no_gene_is_known_it_is_said_why(gene, why):
    with pytest.raises(UnknownName, match=rf"There is no gene in the bank '{gene}'; .*{why}"):
        gene_columns([gene], KNOWN)
