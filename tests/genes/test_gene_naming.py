"""Why two lists of genes do not meet, told so that it can be mended."""

from __future__ import annotations

import pytest

from cmrcnet.genes.naming import are_disjoint, explain_no_shared_genes, naming_of

HUMAN = ["TP53", "EGFR", "C1orf159", "MT-CO1", "KRT19", "HLA-A"]
MOUSE = ["Trp53", "Egfr", "2810021J22Rik", "mt-Co1", "Krt19", "Gm3095"]
IDS = ["ENSG00000141510", "ENSG00000146648", "ENSG00000171345"]
MOUSE_IDS = ["ENSMUSG00000059552", "ENSMUSG00000020122"]


@pytest.mark.parametrize(
    ("genes", "kind", "species"),
    [
        (HUMAN, "symbol", "human"),
        (MOUSE, "symbol", "mouse"),
        (IDS, "ensembl", "human"),
        (MOUSE_IDS, "ensembl", "mouse"),
        (["7157", "1956"], "number", None),
        ([], "symbol", None),
    ],
)
def test_namings(genes, kind, species):
    assert (naming_of(genes).kind, naming_of(genes).species) == (kind, species)


def test_a_few_ensembl_ids_among_symbols_do_not_make_ids_of_them():
    assert naming_of([*HUMAN, *IDS[:2]]).kind == "symbol"


@pytest.mark.parametrize(
    ("left", "right", "said"),
    [
        (IDS, HUMAN, "first uses human Ensembl ids, the second human gene symbols"),
        (MOUSE, IDS, "first uses mouse gene symbols, the second human Ensembl ids"),
        (IDS, MOUSE_IDS, "orthologues"),
        (IDS, [f"{gene}.17" for gene in IDS], "3 match without the version"),
        (HUMAN, MOUSE, "3 names match when upper and lower case are ignored"),
        (HUMAN, ["AAA1", "BBB2"], "same kind of assay"),
        (HUMAN, [], "second names no genes"),
    ],
)
def test_the_hint_names_the_cause(left, right, said):
    assert said in explain_no_shared_genes(left, right)


def test_human_against_mouse_names_both_species():
    hint = explain_no_shared_genes(HUMAN, MOUSE)
    assert "human and mouse" in hint and "one species" in hint


def test_a_few_symbols_that_two_species_write_alike_do_not_join_them():
    human = [f"GENE{n}" for n in range(60)]
    mouse = [f"Gene{n}" for n in range(60)]
    assert are_disjoint(human, mouse)
    assert are_disjoint(["C3", *human], ["C3", *mouse])
    assert not are_disjoint(["C3", "F5", "F8", "F3", *human], ["C3", "F5", "F8", "F3", *mouse])  # 4 of 64: over 5 %


def test_two_panels_of_one_species_may_share_a_single_gene():
    assert not are_disjoint(["TP53", *(f"GENE{n}" for n in range(60))], ["TP53", *(f"OTHER{n}" for n in range(60))])
    assert are_disjoint(["TP53"], ["EGFR"])


def test_real_sections_of_two_species(her2st_csv, als_csv):
    from cmrcnet.readers.tables import first_names

    human = first_names(her2st_csv.parent / "C6_counts.tsv.gz")[1]
    mouse = first_names(als_csv.parent / "CN63_E2_counts.tsv.gz")[1]
    assert str(naming_of(human)) == "human gene symbols"
    assert str(naming_of(mouse)) == "mouse gene symbols"
    assert set(human) & set(mouse) and are_disjoint(human, mouse)
