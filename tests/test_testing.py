"""The public assertions accept what is right and refuse what is not."""

from __future__ import annotations

import numpy as np
import pytest

from cmrcnet.errors import SectionError
from cmrcnet.slides.slide import ArraySlide
from cmrcnet.testing import assert_section, assert_slide
from tests.genes.sections import section_of

PIXELS = np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8)


class BlackBorders(ArraySlide):
    def read(self, x, y, width, height, level=0):
        region = super().read(x, y, width, height, level)
        if x < 0:
            region[:, :-x] = 0
        return region


class Sideways(ArraySlide):
    def read(self, x, y, width, height, level=0):
        return super().read(x, y, height, width, level)


class Restless(ArraySlide):
    def fingerprint(self):
        return str(np.random.default_rng().integers(1 << 60))


class Shifted(ArraySlide):
    def read(self, x, y, width, height, level=0):
        return super().read(x + (width < 20), y, width, height, level)


def test_an_array_slide_keeps_the_promise_however_small():
    assert_slide(ArraySlide(PIXELS, 0.5))
    assert_slide(ArraySlide(PIXELS[:30, :20], 0.5))


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [(BlackBorders, "white"), (Sideways, "height, width"), (Restless, "fingerprint"), (Shifted, "part differs")],
)
def test_a_slide_that_breaks_the_promise_is_caught(kind, sentence):
    with pytest.raises(AssertionError, match=sentence):
        assert_slide(kind(PIXELS, 0.5))


def test_a_section_is_checked_for_counts_genes_and_places():
    assert_section(section_of([[1, 2], [0, 4]], "AB"))
    with pytest.raises(SectionError, match="fractional"):
        assert_section(section_of([[0.5, 2]], "AB"))
    with pytest.raises(AssertionError, match="twice"):
        assert_section(section_of([[1, 2]], "AA"))
