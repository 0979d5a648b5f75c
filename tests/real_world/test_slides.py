"""Pixels as stored, or a refusal: every way to write one picture."""

from __future__ import annotations

import numpy as np
import pytest

from cmrcnet import open_slide
from cmrcnet.errors import BadInput
from tests.real_world.slide_makers import HEIGHT, WIDTH, Case, cases, picture

CASES = cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_pixels_are_as_stored_or_refused(case: Case, tmp_path):
    """All pixels, read in one region and in two that overlap."""
    path = tmp_path / f"slide{case.suffix}"
    case.write(path)
    if case.expected == "refused":
        with pytest.raises(BadInput):
            open_slide(path, mpp=0.5).read(0, 0, 8, 8)
        return
    expected = {"grey": np.repeat(picture()[..., 1:2], 3, axis=2), "few": picture() // 64 * 64}.get(
        case.expected, picture()
    )
    with open_slide(path, mpp=0.5) as slide:
        assert (slide.width_px, slide.height_px) == (WIDTH, HEIGHT)
        whole = slide.read(0, 0, WIDTH, HEIGHT)
        assert np.array_equal(slide.read(21, 13, 70, 60), whole[13:73, 21:91])
    difference = np.abs(whole.astype(int) - expected)
    assert difference.mean() <= (4 if case.expected == "close" else 0), f"mean difference {difference.mean():.2f}"


def test_the_table_is_as_long_as_it_says():
    """No two combinations are the same."""
    assert len({case.name for case in CASES}) == len(CASES) >= 250
