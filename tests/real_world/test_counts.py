"""Counts, names and places as in the source, or a refusal: every way to write one section."""

from __future__ import annotations

import numpy as np
import pytest

from cmrcnet import read_section
from cmrcnet.errors import BadInput, CmrcnetError, SectionError
from tests.real_world.count_makers import BARCODES, GENES, LEGACY, Case, cases, centres, counts

CASES = cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_counts_are_equal_or_refused(case: Case, tmp_path):
    """Each spot's counts and place; or a `BadInput` or `SectionError` of one line."""
    stated = case.write(tmp_path)
    if case.expected == "refused":
        with pytest.raises((BadInput, SectionError)) as error:
            read_section(**stated, name="a", patient="p")
        assert "\n" not in str(error.value)
        return
    section = read_section(**stated, name="a", patient="p")
    row_of = {name: i for i, name in enumerate(BARCODES)} | {name: i for i, name in enumerate(LEGACY)}
    rows = [row_of[_plain(name)] for name in section.spots.barcodes]
    assert sorted(rows) == list(range(36))
    columns = [section.genes.index(gene) for gene in GENES]
    assert np.array_equal(section.counts.toarray()[:, columns], counts()[rows])
    assert np.allclose(section.spots.centre_px, centres()[rows])


def _plain(name: str) -> str:
    """``X10.000x20.000`` as ``10x20``."""
    if "x" not in name:
        return name
    return "x".join(f"{float(part):g}" for part in name.removeprefix("X").split("x"))


def test_the_table_is_as_long_as_it_says():
    """No two combinations are the same; a refusal is one of ours."""
    assert len({case.name for case in CASES}) == len(CASES) >= 200
    assert issubclass(BadInput, CmrcnetError) and issubclass(SectionError, CmrcnetError)
