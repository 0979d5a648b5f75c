"""HEG and HVG: by hand, pooled over sections, from measured genes only."""

from __future__ import annotations

import numpy as np
import pytest

from cmrcnet.errors import BadOption
from cmrcnet.expression.gene_sets import gene_sets
from cmrcnet.expression.normalize import normalize
from cmrcnet.expression.panel import GenePanel
from cmrcnet.tissue.section import Cohort
from tests.expression.sections import section_of

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
    found = gene_sets(Cohort.of(sections()), 1e4, size=6)
    assert found["HEG"] == tuple(GENES[g] for g in np.argsort(-mean)[:6])
    assert found["HVG"] == tuple(GENES[g] for g in np.argsort(-within)[:6])
    assert found["all"] == tuple(GENES)


def test_a_difference_between_sections_makes_no_gene_variable():
    noisy = np.tile([[10, 0, 50], [0, 10, 50]], (5, 1))
    other = np.tile([[10, 0, 500], [0, 10, 500]], (5, 1))
    cohort = Cohort.of([section_of(noisy, "ABC", "A0"), section_of(other, "ABC", "A1")])
    assert set(gene_sets(cohort, 1e4, size=2)["HVG"]) == {"A", "B"}


def test_only_genes_of_every_assay_take_part():
    first = section_of([[9, 1, 90], [1, 9, 90]], "ABZ", "A0")
    second = section_of([[9, 1], [1, 9]], "BA", "A1")
    assert gene_sets(Cohort.of([first, second]), size=3)["all"] == ("A", "B")
    whole = section_of([[9, 1], [1, 9]], "BA", "A1", absent_genes="zero")
    assert gene_sets(Cohort.of([first, whole]))["all"] == ("A", "B", "Z")


def test_the_panels_scaling_can_be_given_as_the_panel():
    cohort = Cohort.of(sections())
    assert gene_sets(cohort, GenePanel(("G1",), "median"), 5) == gene_sets(cohort, "median", 5)


def test_an_empty_set_is_refused():
    with pytest.raises(BadOption, match="size is 0"):
        gene_sets(Cohort.of(sections()), 1e4, size=0)
