from __future__ import annotations

from dataclasses import replace

import pytest

from cmrcnet.datasets.synthetic import synthetic_cohort, write_cohort
from cmrcnet.errors import BadOption, MissingInput
from cmrcnet.readers.cohort import read_cohort
from cmrcnet.retrieval.bank import build_bank, cohort_of_bank
from cmrcnet.slides.section import Cohort
from tests.inference.small_model import small_model, small_section


def bank_from(*sources: str):
    sections = [small_section(f"S{number}", f"P{number}") for number in range(len(sources))]
    bank = build_bank(small_model(), Cohort.of(sections))
    parts = tuple(replace(part, source=source) for part, source in zip(bank.entries, sources, strict=True))
    return replace(bank, entries=parts)


def test_a_cohort_knows_the_file_that_names_each_section(tmp_path):
    write_cohort(synthetic_cohort(patients=2, spots=12, genes=24, seed=1), tmp_path / "c")
    csv = tmp_path / "c" / "cohort.csv"
    cohort = read_cohort(csv)
    assert {cohort.source_of(name) for name in cohort.sections} == {str(csv)}
    assert cohort.only(cohort.sections[1:]).source_of(cohort.sections[1]) == str(csv)


def test_the_sections_come_from_all_files_that_the_bank_was_built_from(tmp_path):
    made = {}
    for seed in (1, 2):
        write_cohort(synthetic_cohort(patients=2, spots=12, genes=24, seed=seed), tmp_path / str(seed))
        made[seed] = read_cohort(tmp_path / str(seed) / "cohort.csv")
    first, second = made[1].sections
    bank = bank_from(made[2].source_of(second), made[1].source_of(first))
    bank = replace(
        bank, entries=tuple(replace(p, section=n) for p, n in zip(bank.entries, (second, first), strict=True))
    )
    found = cohort_of_bank(bank)
    assert found.sections == (second, first)
    for name, seed in ((second, 2), (first, 1)):
        assert (found.read(name).counts != made[seed].read(name).counts).nnz == 0


def test_what_is_not_known_or_not_there_is_said(tmp_path):
    with pytest.raises(BadOption, match=r"--cohort is 'left out'; wanted the cohort.csv .* where section S0 is"):
        cohort_of_bank(bank_from(""))
    with pytest.raises(MissingInput, match=r"The cohort of section S0 .*gone.csv does not exist; .* --cohort FILE"):
        cohort_of_bank(bank_from(str(tmp_path / "gone.csv")))
    write_cohort(synthetic_cohort(patients=2, spots=12, genes=24, seed=1), tmp_path / "c")
    with pytest.raises(BadOption, match="wanted a file that names section S0"):
        cohort_of_bank(bank_from(str(tmp_path / "c" / "cohort.csv")))
