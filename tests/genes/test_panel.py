"""The gene panel: who chooses it, in which order, and how a section is read through it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from cmrcnet.config import PanelConfig
from cmrcnet.errors import BadOption, SectionError, TooFew
from cmrcnet.genes.gene_sets import GenePanel, choose_panel, most_variable
from cmrcnet.genes.scaling import Scaling, normalize
from cmrcnet.slides.section import Cohort, CohortEntry
from tests.genes.sections import section_of

HUMAN = [f"GENE{number}A" for number in range(12)]


def random_section(name, genes, seed=0, spots=30, **options):
    random = np.random.default_rng(seed)
    return section_of(random.poisson(random.gamma(1.0, 3.0, (spots, len(genes)))), genes, name, **options)


def test_selecting_uses_the_library_of_all_genes_and_the_panels_order():
    section = section_of([[3, 0, 1], [0, 0, 0], [5, 5, 10]], ["A", "B", "C"])
    picked = GenePanel(("C", "A"), Scaling(target_sum=100.0)).select(section)
    np.testing.assert_allclose(picked.toarray()[0], np.log1p([25.0, 75.0]), rtol=1e-6)
    np.testing.assert_array_equal(picked.toarray(), normalize(section.counts, 100.0).toarray()[:, [2, 0]])
    assert picked.dtype == np.float32
    assert picked.has_sorted_indices


@pytest.mark.parametrize("target", [10_000.0, "median"])
def test_selecting_equals_normalising_and_then_picking(target):
    section = random_section("A1", HUMAN)
    wanted = ("GENE7A", "GENE0A", "GENE3A")
    columns = [HUMAN.index(gene) for gene in wanted]
    found = GenePanel(wanted, Scaling(target_sum=target)).select(section).toarray()
    np.testing.assert_array_equal(found, normalize(section.counts, target).toarray()[:, columns])


def test_a_gene_that_is_not_listed_is_zero_or_an_error_as_the_assay_says():
    panel = GenePanel(("A", "Z"))
    whole = section_of([[3, 1]], ["A", "B"], absent_genes="zero")
    assert panel.select(whole).toarray()[0, 1] == 0
    with pytest.raises(SectionError, match=r"A1 lacks 1 of the 2 genes asked for \(Z\)"):
        panel.select(section_of([[3, 1]], ["A", "B"]))


@pytest.mark.parametrize("absent", ["zero", "unmeasured"])
def test_a_section_that_names_its_genes_otherwise_is_refused_with_the_reason(absent):
    ids = [f"ENSG{number:011d}" for number in range(12)]
    with pytest.raises(SectionError, match="Ensembl"):
        GenePanel(tuple(HUMAN)).select(random_section("A1", ids, absent_genes=absent))


def test_a_panel_survives_json():
    panel = choose_panel(Cohort.of([random_section("A1", HUMAN)]), PanelConfig(n_hvg=4))
    again = GenePanel.from_dict(json.loads(json.dumps(panel.to_dict())))
    assert again == panel
    assert again.origin == panel.origin
    assert (
        GenePanel.from_dict(
            json.loads(json.dumps(GenePanel(("A",), Scaling(target_sum="median")).to_dict()))
        ).scaling.target_sum
        == "median"
    )


def test_a_panel_names_each_gene_once_and_at_least_one():
    with pytest.raises(BadOption, match="is 'B'; wanted each gene named once"):
        GenePanel(("A", "B", "B"))
    with pytest.raises(TooFew, match="genes in the panel"):
        GenePanel(())


def test_the_variable_genes_are_scanpys():
    import anndata
    import scanpy

    section = random_section("A1", [f"G{n}" for n in range(60)], seed=4)
    table = anndata.AnnData(normalize(section.counts, 1e4))
    theirs = scanpy.pp.highly_variable_genes(table, flavor="seurat", n_top_genes=9, inplace=False)
    wanted = {section.genes[column] for column in np.flatnonzero(theirs["highly_variable"].to_numpy())}
    ours = most_variable(section, 1e4)
    assert set(ours[:9]) <= wanted  # scanpy keeps all that tie with the ninth; we take the first
    scores = theirs["dispersions_norm"].to_numpy()
    ninth = scores[section.genes.index(ours[8])]
    assert all(scores[section.genes.index(gene)] == ninth for gene in wanted - set(ours[:9]))


def test_a_gene_that_never_varies_and_an_empty_spot_count_for_nothing():
    random = np.random.default_rng(0)
    counts = random.poisson(4, (25, 6))
    counts[:, 2] = 0
    with_empty = np.vstack([counts, np.zeros((3, 6), int)])
    genes = list("ABCDEF")
    assert "C" not in most_variable(section_of(counts, genes), 1e4)
    assert most_variable(section_of(counts, genes), 1e4) == most_variable(section_of(with_empty, genes), 1e4)
    assert most_variable(section_of([[1, 2]], ["A", "B"]), 1e4) == ()


def test_hvg_is_the_union_over_sections_in_the_sections_order_of_genes():
    sections = [random_section("A1", HUMAN, seed=1), random_section("A2", HUMAN[::-1], seed=2)]
    panel = choose_panel(Cohort.of(sections), PanelConfig(n_hvg=4))
    wanted = set(most_variable(sections[0], 1e4)[:4]) | set(most_variable(sections[1], 1e4)[:4])
    assert panel.genes == tuple(gene for gene in HUMAN if gene in wanted)
    assert panel.origin["sections"] == ["A1", "A2"]


def test_only_genes_that_every_assay_measures_enter_and_each_section_still_gives_its_number():
    left, right = random_section("A1", HUMAN, seed=1), random_section("A2", HUMAN[3:], seed=2)
    panel = choose_panel(Cohort.of([left, right]), PanelConfig(n_hvg=2))
    assert not set(panel.genes) & set(HUMAN[:3])
    best_left = [gene for gene in most_variable(left, 1e4) if gene in HUMAN[3:]][:2]
    assert set(best_left) <= set(panel.genes)


def test_an_assay_that_reads_every_transcript_measures_what_it_does_not_list():
    fixed = random_section("A1", HUMAN, seed=1)
    whole = random_section("A2", [*HUMAN[3:], "NEW"], seed=2, absent_genes="zero")
    panel = choose_panel(Cohort.of([fixed, whole]), PanelConfig(kind="shared"))
    assert panel.genes == tuple(HUMAN)  # NEW is not in the fixed assay; HUMAN[:3] were not found in A2
    both = choose_panel(
        Cohort.of([whole, random_section("A3", HUMAN, absent_genes="zero")]), PanelConfig(kind="shared")
    )
    assert set(both.genes) == {*HUMAN, "NEW"}


def test_the_released_code_takes_genes_that_every_section_lists():
    sections = [random_section("A", "PQR", absent_genes="zero"), random_section("B", "QRS", 1, absent_genes="zero")]
    cohort = Cohort.of(sections)
    assert choose_panel(cohort, PanelConfig(kind="shared")).genes == ("P", "Q", "R", "S")
    assert choose_panel(cohort, PanelConfig(kind="shared", candidates="listed")).genes == ("Q", "R")


def test_a_list_is_kept_as_given_and_unknown_genes_are_named():
    cohort = Cohort.of([random_section("A1", HUMAN)], name="mine")
    wanted = (HUMAN[5], HUMAN[1])
    panel = choose_panel(cohort, PanelConfig(kind="list", genes=wanted, target_sum=500.0))
    assert (panel.genes, panel.scaling.target_sum) == (wanted, 500.0)
    with pytest.raises(SectionError, match=r"mine lacks 1 of the 2 genes asked for \(NOPE\)"):
        choose_panel(cohort, PanelConfig(kind="list", genes=(HUMAN[5], "NOPE")))


@pytest.mark.parametrize("kind", ["hvg", "shared"])
@pytest.mark.parametrize("absent", ["zero", "unmeasured"])
def test_sections_without_shared_genes_are_refused_with_the_reason(kind, absent):
    mouse = [gene.capitalize() for gene in HUMAN]
    sections = [random_section("A1", HUMAN, absent_genes=absent), random_section("A2", mouse, absent_genes=absent)]
    with pytest.raises(SectionError, match=r"A1 and A2 share no genes\. .+"):
        choose_panel(Cohort.of(sections), PanelConfig(kind=kind))


@pytest.mark.parametrize("absent", ["zero", "unmeasured"])
def test_two_species_that_write_one_gene_alike_are_refused_too(absent):
    human, mouse = ([name, *(f"{name}{n}" for n in range(40)), "C3"] for name in ("ABCD", "Abcd"))
    sections = [random_section("A1", human, absent_genes=absent), random_section("A2", mouse, absent_genes=absent)]
    with pytest.raises(SectionError, match=r"A1 and A2 share only 1 gene\. .*human and mouse"):
        choose_panel(Cohort.of(sections), PanelConfig(kind="shared"))
    with pytest.raises(SectionError, match="human and mouse"):
        GenePanel(tuple(human)).select(sections[1])


def test_assays_that_meet_in_pairs_but_not_all_together_are_refused():
    pairs = (["A", "B"], ["B", "C"], ["C", "A"])
    sections = [random_section(f"S{n}", genes) for n, genes in enumerate(pairs)]
    with pytest.raises(SectionError, match="measured in all"):
        choose_panel(Cohort.of(sections), PanelConfig(kind="shared"))


def test_one_spot_is_too_little_to_call_a_gene_variable():
    with pytest.raises(TooFew, match="variable genes"):
        choose_panel(Cohort.of([section_of([[3, 1]], ["A", "B"])]), PanelConfig())


def test_each_section_is_read_once_and_one_at_a_time():
    reads = []

    def entry(number):
        def load():
            reads.append(number)
            return random_section(f"A{number}", HUMAN, seed=number)

        return CohortEntry(f"A{number}", "P", load)

    choose_panel(Cohort("lazy", tuple(entry(number) for number in range(3))), PanelConfig(n_hvg=3))
    assert reads == [0, 1, 2]


def test_a_held_out_section_cannot_touch_the_panel():
    sections = [random_section(f"A{number}", HUMAN, seed=number) for number in range(3)]
    training = Cohort.of(sections).without(["A2"])
    scrambled = Cohort.of([*sections[:2], random_section("A2", HUMAN[::-1], seed=99)]).without(["A2"])
    assert choose_panel(training, PanelConfig(n_hvg=3)) == choose_panel(scrambled, PanelConfig(n_hvg=3))


@pytest.mark.shared
def test_real_sections_give_the_union_of_their_variable_genes(als_csv):
    from cmrcnet.readers.cohort import read_cohort

    cohort = read_cohort(als_csv)
    cohort = cohort.only(cohort.sections[:2])
    panel = choose_panel(cohort, PanelConfig(n_hvg=200))
    assert 200 < len(panel) <= 400
    for section in cohort:
        expression = panel.select(section)
        assert expression.shape == (len(section.spots), len(panel))
        assert np.isfinite(expression.data).all()
        assert (expression.data > 0).all()


def test_choosing_genes_leaves_the_thread_count_of_the_process_alone():
    code = (
        "import torch\n"
        "from cmrcnet.datasets.synthetic import synthetic_cohort\n"
        "from cmrcnet.genes.gene_sets import choose_panel\n"
        "from cmrcnet.config import PanelConfig\n"
        "choose_panel(synthetic_cohort(patients=1, spots=12, genes=40, seed=1), PanelConfig(n_hvg=10))\n"
        "print(torch.get_num_threads())\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]
