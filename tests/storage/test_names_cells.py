"""Names in our CSV files: no formula for a spreadsheet, and the same name when it is read."""

from __future__ import annotations

import io

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cmrcnet.storage.names import bare_cell, guard_cell, guard_table


@given(st.text())
@example("'=x")
@example("''-1")
def test_every_name_comes_back_and_none_is_a_formula(name):
    assert bare_cell(guard_cell(name)) == name
    assert guard_cell(name)[:1] not in ("=", "+", "-", "@", "\t", "\r")


def test_numbers_stay_numbers():
    table = pd.DataFrame({"section": ["=cmd()", "-1", "S1"], "pearson": [-0.25, 0.5, float("nan")], "n": [-1, 2, 3]})
    written = guard_table(table).to_csv(index=False)
    assert written == "section,pearson,n\n'=cmd(),-0.25,-1\n'-1,0.5,2\nS1,,3\n"
    again = pd.read_csv(io.StringIO(written), dtype={"section": str})
    pd.testing.assert_frame_equal(again.assign(section=again["section"].map(bare_cell)), table, check_dtype=False)


@pytest.mark.parametrize("name", ["S24/01187", "Müller, A", "007", "NA", "'quoted'"])
def test_ordinary_names_are_written_as_they_are(name):
    assert guard_cell(name) == name
