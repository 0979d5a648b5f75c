"""A small cohort of made-up tissue, sketched once."""

from __future__ import annotations

import pytest

from cmrcnet.datasets.synthetic import synthetic_cohort
from cmrcnet.quality.sketch import Sketch, sketch
from cmrcnet.tissue.section import Section


@pytest.fixture(scope="session")
def sections() -> list[Section]:
    """Four patients, a section each."""
    return list(synthetic_cohort(patients=4, spots=100, genes=60, seed=3))


@pytest.fixture(scope="session")
def sketches(sections) -> list[Sketch]:
    return [sketch(section) for section in sections]
