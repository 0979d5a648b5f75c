"""A small cohort of made-up tissue, sketched once."""

from __future__ import annotations

import pytest

from cmrcnet.datasets.synthetic import synthetic_cohort
from cmrcnet.qc.cohort_check import summarize_section
from cmrcnet.qc.section_summary import SectionSummary
from cmrcnet.slides.section import Section


@pytest.fixture(scope="session")
def sections() -> list[Section]:
    """Four patients, a section each."""
    return list(synthetic_cohort(patients=4, spots=100, genes=60, seed=3))


@pytest.fixture(scope="session")
def summaries(sections) -> list[SectionSummary]:
    return [summarize_section(section) for section in sections]
