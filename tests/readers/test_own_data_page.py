"""Each cohort line of the page on own data is read from files in the layout of its platform."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from cmrcnet.readers.inspection import inspect
from tests.readers.one_section import PLATFORMS, write_platform
from tests.readers.written_formats import made_up

for needed in ("pyarrow", "spatialdata"):
    pytest.importorskip(needed)
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "own-data.md"


@pytest.mark.filterwarnings("ignore")
def test_one_line_for_each_platform(tmp_path):
    found = re.search(r"## One line for each platform.*?```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    (tmp_path / "cohort.csv").write_text(found[1])
    lines = found[1].splitlines()[1:]
    made = made_up(columns=3, rows=2, mpp=0.688)
    for line, platform in zip(lines, PLATFORMS, strict=True):
        name, _, format, *_ = line.split(",")
        assert format == {"visium_cytassist": "visium", "curio": "slide_seq"}.get(platform, platform)
        row = write_platform(platform, tmp_path / name, made)
        if "affine.csv" in line:
            np.savetxt(tmp_path / name / "affine.csv", np.reshape(row["affine"].split(), (2, 3)).astype(float))
    inspected = inspect(tmp_path / "cohort.csv", pixels=False)
    assert inspected.problems == ()
    assert [section.section for section in inspected.sections] == [line.split(",")[0] for line in lines]
    no_format = re.sub(r"(?m)^(\w+,p\d+),\w+,", r"\1,,", found[1])
    (tmp_path / "cohort.csv").write_text(no_format)
    assert inspect(tmp_path / "cohort.csv", pixels=False).problems == ()
