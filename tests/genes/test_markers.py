"""Marker lists: every file is whole, sources are named, genes are found whatever their case or age."""

from __future__ import annotations

import re

import pytest

from cmrcnet.errors import BadOption, UnknownName
from cmrcnet.genes.markers import (
    marker_organs,
    markers,
    organ_of,
    organ_of_cohort,
    source_lines,
)
from cmrcnet.readers.cohort import read_cohort
from cmrcnet.slides.section import Cohort, CohortEntry

PADDING = tuple(f"PAD{i}" for i in range(30))  # so that a list of few genes still shows its species
MOUSE_PADDING = tuple(f"Pad{i}" for i in range(30))


def test_the_promised_organs_ship():
    assert marker_organs() == ("breast", "colorectal", "liver", "skin", "spinal cord")


@pytest.mark.parametrize("organ", marker_organs())
def test_every_list_is_whole(organ):
    chosen = markers(organ)
    assert chosen.organ == organ and chosen.version >= 1 and len(chosen.signatures) >= 6
    for signature in chosen.signatures.values():
        assert len(signature.genes) >= 4, signature.name
        for genes in (signature.genes, signature.mouse):
            assert len(set(genes)) == len(genes), signature.name
        assert all(re.fullmatch(r"[A-Z][A-Z0-9-]+", gene) for gene in signature.genes), signature.name
        assert len(signature.about) > 8


@pytest.mark.parametrize("organ", marker_organs())
def test_every_signature_names_author_journal_and_year(organ):
    for signature in markers(organ).signatures.values():
        assert signature.sources, signature.name
        for source in signature.sources:
            assert re.match(r"[A-Z].+ et al\. .+ (19|20)\d\d$", source.cite), source.cite
            assert not source.doi or re.fullmatch(r"10\.\d{4,}/\S+", source.doi), source.doi


def test_an_alias_is_an_older_name_of_a_gene_in_the_list():
    for organ in marker_organs():
        chosen = markers(organ)
        listed = {gene for signature in chosen.signatures.values() for gene in signature.genes}
        for gene, old in chosen.aliases.items():
            assert not listed & set(old), f"{organ}: {gene} is listed under two names"


def test_the_mouse_list_of_the_spinal_cord_says_the_same_genes():
    signatures = markers("spinal cord").signatures
    for signature in signatures.values():
        assert len(signature.mouse) == len(signature.genes)
        assert all(gene[0].isupper() and gene[1:] == gene[1:].lower() for gene in signature.mouse)
    assert "Ugt8a" in signatures["oligodendrocytes"].mouse and "UGT8" in signatures["oligodendrocytes"].genes


def test_genes_are_found_in_the_cohorts_own_spelling():
    found = markers("breast").measured(["ERBB2", "C17orf37", "GRB7", *PADDING])
    assert found["her2_amplicon"] == ("ERBB2", "C17orf37", "GRB7")
    assert found["adipose"] == ()
    both = markers("breast").measured(["MIEN1", "C17orf37", *PADDING])
    assert both["her2_amplicon"] == ("MIEN1",)  # today's name wins; one gene is not counted twice
    assert markers("breast").measured(["Erbb2", "Grb7", *MOUSE_PADDING])["her2_amplicon"] == ("Erbb2", "Grb7")
    assert markers("spinal cord").measured(["Ugt8a", "Mog", *MOUSE_PADDING])["oligodendrocytes"] == ("Mog", "Ugt8a")
    assert markers("spinal cord").measured(["UGT8", "MOG", *PADDING])["oligodendrocytes"] == ("MOG", "UGT8")


def test_ensembl_ids_are_refused_with_the_reason():
    with pytest.raises(BadOption, match=r"human Ensembl ids.; wanted gene symbols"):
        markers("breast").measured(["ENSG00000141736", "ENSG00000141738"])


def test_signatures_and_their_genes_keep_the_order_of_the_list():
    found = markers("breast").measured(["GRB7", "CD3D", "EPCAM", "COL1A1", "KRT8", *PADDING])
    assert tuple(dict.fromkeys(gene for genes in found.values() for gene in genes)) == (
        "EPCAM", "KRT8", "GRB7", "CD3D", "COL1A1"
    )  # fmt: skip
    assert not any(markers("liver").measured(PADDING).values())


@pytest.mark.parametrize("name", ["spinal cord", "spinal_cord", "Spinal-Cord", " spinal  cord "])
def test_names_of_organs_are_forgiving(name):
    assert markers(name).organ == "spinal cord"


def test_an_unknown_organ_is_answered_with_those_that_there_are():
    with pytest.raises(UnknownName, match=r"'kidney'; known: breast, colorectal, liver, skin, spinal cord"):
        markers("kidney")


@pytest.mark.parametrize(
    ("words", "organ"),
    [
        ("HER2+ breast cancer", "breast"),
        ("amyotrophic lateral sclerosis model, mouse spinal cord", "spinal cord"),
        ("rectal adenocarcinoma (READ)", "colorectal"),
        ("metastatic melanoma", "skin"),
        ("primary sclerosing cholangitis", "liver"),
    ],
)
def test_the_organ_is_told_from_the_disease(words, organ):
    assert organ_of(words) == organ


def test_whole_words_only_and_one_organ_only():
    with pytest.raises(UnknownName, match=r"Say which one it is"):
        organ_of("false alarm")  # holds the letters of ALS
    with pytest.raises(UnknownName, match=r"It names breast and liver"):
        organ_of("breast cancer, metastasis in the liver")


def test_the_organ_of_a_cohort_is_told_without_reading_a_section():
    def never():
        raise AssertionError("a section was read")

    entries = (CohortEntry("A", "1", never, {"disease": "HER2+ breast cancer"}), CohortEntry("B", "2", never, {}))
    assert organ_of_cohort(Cohort("c", entries)) == "breast"


def test_regions_say_which_signatures_belong_there():
    chosen = markers("breast")
    assert "her2_amplicon" in chosen.expected_in("cancer 2") and "b_cells" not in chosen.expected_in("cancer 2")
    assert {"b_cells", "antigen_presentation"} <= set(chosen.expected_in("immune : APC, B-cell, T-cell"))
    assert chosen.expected_in("unknown") == ()


def test_source_lines_group_signatures_by_publication():
    lines = source_lines(markers("breast"), ["t_cells", "b_cells", "her2_amplicon"])
    assert len(lines) == 3
    assert lines[0].startswith("Danaher P et al.") and lines[0].endswith(
        "(doi:10.1186/s40425-017-0215-8): t_cells, b_cells"
    )


@pytest.mark.shared
def test_her2st_finds_its_markers(her2st_csv):
    cohort = read_cohort(her2st_csv)
    assert organ_of_cohort(cohort) == "breast"
    genes = cohort.read("C6").genes
    found = markers("breast").measured(genes)
    assert len(found["her2_amplicon"]) >= 7
    for name, signature in markers("breast").signatures.items():
        assert len(found[name]) >= 0.4 * len(signature.genes), name
    assert len({gene for each in found.values() for gene in each}) >= 100


@pytest.mark.shared
def test_als_finds_its_markers_as_mouse_genes(als_csv):
    cohort = read_cohort(als_csv)
    assert organ_of_cohort(cohort) == "spinal cord"
    genes = cohort.read("CN63_E2").genes
    found = markers("spinal cord").measured(genes)
    assert found["white_matter"][:2] == ("Mbp", "Plp1")
    for name, signature in markers("spinal cord").signatures.items():
        assert len(found[name]) >= 0.7 * len(signature.mouse), name
