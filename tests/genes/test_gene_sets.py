"""HEG and HVG: by hand, pooled over sections, from measured genes only."""

from __future__ import annotations

import numpy as np
import pytest

from cmrcnet.errors import BadOption, SectionError
from cmrcnet.genes.gene_sets import gene_sets, sets_of_truth
from cmrcnet.genes.scaling import normalize
from cmrcnet.genes.spatial_stats import morans_i, spot_graph
from cmrcnet.slides.section import Cohort, Section, Spots
from tests.genes.sections import section_of

GENES = [f"G{number}" for number in range(20)]


def sections():
    random = np.random.default_rng(5)
    level = random.gamma(1.0, 5.0, 20)
    for number, spots in enumerate((12, 30)):
        yield section_of(random.poisson(random.gamma(2.0, level / 2, (spots, 20))), GENES, f"A{number}")


def test_they_are_the_highest_mean_and_the_highest_variance_within_sections():
    tables = [normalize(section.counts, 1e4).toarray().astype(np.float64) for section in sections()]
    mean = np.vstack(tables).mean(axis=0)
    within = np.vstack([table - table.mean(axis=0) for table in tables]).var(axis=0)
    found = gene_sets(Cohort.of(sections()), size=6)
    assert found["HEG"] == tuple(GENES[g] for g in np.argsort(-mean)[:6])
    assert found["HVG"] == tuple(GENES[g] for g in np.argsort(-within)[:6])
    assert found["all"] == tuple(GENES)


def test_a_difference_between_sections_makes_no_gene_variable():
    noisy = np.tile([[10, 0, 50], [0, 10, 50]], (5, 1))
    other = np.tile([[10, 0, 500], [0, 10, 500]], (5, 1))
    cohort = Cohort.of([section_of(noisy, "ABC", "A0"), section_of(other, "ABC", "A1")])
    assert set(gene_sets(cohort, size=2)["HVG"]) == {"A", "B"}


def test_only_genes_of_every_assay_take_part():
    first = section_of([[9, 1, 90], [1, 9, 90]], "ABZ", "A0")
    second = section_of([[9, 1], [1, 9]], "BA", "A1")
    assert gene_sets(Cohort.of([first, second]), size=3)["all"] == ("A", "B")
    whole = section_of([[9, 1], [1, 9]], "BA", "A1", absent_genes="zero")
    assert gene_sets(Cohort.of([first, whole]))["all"] == ("A", "B", "Z")


def test_an_empty_set_is_refused():
    with pytest.raises(BadOption, match="size is 0"):
        gene_sets(Cohort.of(sections()), size=0)


def on_a_grid(counts: np.ndarray, name: str, genes=GENES) -> Section:
    """Spots row by row on a 6 x 6 grid."""
    plain = section_of(counts, genes, name)
    centres = np.stack(np.meshgrid(np.arange(6), np.arange(6)), -1).reshape(-1, 2) * 20.0 + 10
    spots = Spots(plain.spots.barcodes, centres, 8.0)
    return Section(name, plain.patient, plain.slide, spots, plain.counts, plain.genes, plain.absent_genes)


def patterned(seed: int) -> np.ndarray:
    """Counts of 20 genes: G3 and G7 have a pattern, G0 varies most, G11 lies in four neighbouring spots."""
    random = np.random.default_rng(seed)
    counts = random.poisson(20, (36, 20))
    left = np.arange(36) % 6 < 3
    counts[:, 3] += 30 * left
    counts[:, 7] += 30 * ~left
    counts[:, 0] = random.permutation(np.arange(36)) * 9
    counts[:, 11] = np.isin(np.arange(36), [14, 15, 20])
    return counts


def test_svg_have_a_pattern_whatever_their_variance():
    cohort = Cohort.of([on_a_grid(patterned(0), "A0"), on_a_grid(patterned(1), "A1")])
    found = gene_sets(cohort, size=2)
    assert found["HVG"][0] == "G0" and set(found["SVG"]) == {"G3", "G7"}


def test_without_svg_the_other_sets_stay_and_morans_i_is_not_computed(monkeypatch):
    cohort = Cohort.of([on_a_grid(patterned(0), "A0"), on_a_grid(patterned(1), "A1")])
    every = gene_sets(cohort, size=4)
    monkeypatch.setattr("cmrcnet.genes.gene_sets.morans_i", None)
    assert gene_sets(cohort, size=4, svg=False) == {name: every[name] for name in ("HEG", "HVG", "all")}


def test_svg_are_the_highest_mean_of_morans_i_and_rare_genes_come_last():
    sections = [on_a_grid(patterned(seed), f"A{seed}") for seed in range(2)]
    i = np.mean(
        [morans_i(normalize(s.counts, 1e4).astype(float), spot_graph(s.spots.centre_px)) for s in sections],
        axis=0,
    )
    assert i[11] > np.median(i)
    i[11] = -np.inf  # 3 of 36 spots: below a tenth
    assert gene_sets(Cohort.of(sections), size=20)["SVG"] == tuple(GENES[g] for g in np.argsort(-i, kind="stable"))


def test_lists_of_ones_own_stand_beside_the_others_without_what_was_not_measured():
    found = gene_sets(Cohort.of(sections()), size=3, lists={"MG": ["G9", "unknown", "G2", "G9"]})
    assert found["MG"] == ("G9", "G2") and list(found) == ["HEG", "HVG", "SVG", "MG", "all"]


def test_a_list_that_takes_a_name_or_meets_no_gene_is_refused():
    with pytest.raises(BadOption, match="name of a gene list is 'HVG'"):
        gene_sets(Cohort.of(sections()), lists={"HVG": ["G1"]})
    with pytest.raises(SectionError, match="The gene list MG"):
        gene_sets(Cohort.of(sections()), lists={"MG": ["Gfap"]})


def test_the_sets_of_a_truth_are_its_highest_mean_and_variance():
    (section, _) = sections()
    expression = normalize(section.counts, 1e4)
    dense = expression.toarray().astype(np.float64)
    found = sets_of_truth(GENES, expression, size=4)
    assert found == {
        "HEG": tuple(GENES[g] for g in np.argsort(-dense.mean(axis=0))[:4]),
        "HVG": tuple(GENES[g] for g in np.argsort(-dense.var(axis=0))[:4]),
    }
