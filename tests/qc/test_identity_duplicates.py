"""The same counts in any order, the same picture in any turn; and what is no duplicate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cmrcnet.qc.cohort_check import summarize_section
from cmrcnet.qc.identity import ALIKE, duplicate_findings, equal_rows, picture_likeness
from cmrcnet.slides.section import Section


def reordered(section: Section, spots: np.ndarray, genes: np.ndarray) -> Section:
    taken = section.take(spots)
    return replace(taken, name="copy", counts=taken.counts[:, genes], genes=tuple(taken.genes[g] for g in genes))


def test_sound_sections_have_no_findings(summaries):
    assert duplicate_findings(summaries) == []


@pytest.mark.parametrize("part", [1.0, 0.4])
def test_counts_in_another_order_and_a_part_of_them_are_found(sections, summaries, part):
    random = np.random.default_rng(0)
    spots = random.permutation(len(sections[0].spots))[: int(part * 100)]
    genes = random.permutation(len(sections[0].genes))[: int(60 * max(part, 0.6))]
    copy = reordered(sections[0], spots, genes)
    seen = summarize_section(copy)
    assert equal_rows(summaries[0], seen) == pytest.approx(1.0)
    assert equal_rows(summaries[1], seen) == 0


def test_a_pair_says_what_is_equal(summaries):
    twin = replace(summaries[0], name="twin", slide="another", picture=summaries[1].picture[::-1])
    kinds = {finding.kind: finding for finding in duplicate_findings([summaries[0], twin])}
    assert set(kinds) == {"duplicated counts"}
    assert kinds["duplicated counts"].certain and kinds["duplicated counts"].sections == (summaries[0].name, "twin")
    assert "the same counts in 100%" in kinds["duplicated counts"].sentence


def test_two_or_fewer_equal_rows_are_chance(summaries):
    other = replace(summaries[1], top=summaries[0].top, rows=summaries[1].rows.copy())
    other.rows[:2] = summaries[0].rows[:2]
    assert equal_rows(summaries[0], other) == 0
    other.rows[:3] = summaries[0].rows[:3]
    assert equal_rows(summaries[0], other) == pytest.approx(0.03)


def test_rows_that_say_little_are_not_compared(summaries):
    empty = replace(summaries[0], rows=np.zeros_like(summaries[0].rows))
    assert equal_rows(empty, replace(empty, name="other")) == 0


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(np.random.default_rng(1).normal(size=(60, 50)), 1.2).astype(np.float32)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("quarter", [0, 1, 2, 3])
def test_a_turned_mirrored_cropped_restained_picture_is_recognised(scene, mirrored, quarter):
    copy = np.rot90(scene[::-1] if mirrored else scene, quarter)[4:, :-6] * 1.4 + 0.2
    assert picture_likeness(scene, copy) > 0.9
    assert picture_likeness(copy, scene) == pytest.approx(picture_likeness(scene, copy), abs=1e-6)


def test_another_picture_is_not(scene):
    from scipy.ndimage import gaussian_filter

    other = gaussian_filter(np.random.default_rng(2).normal(size=(60, 50)), 1.2)
    assert picture_likeness(scene, other) < ALIKE - 0.2
    assert picture_likeness(scene, np.ones((40, 40), np.float32)) == 0


def test_the_shift_is_scored_by_the_plain_correlation(scene):
    from cmrcnet.qc.identity import _best_shift

    noisy = scene[5:, 3:] + np.random.default_rng(0).normal(0, 0.05, (55, 47))
    by_hand = np.corrcoef(scene[5:, 3:].ravel(), noisy.ravel())[0, 1]
    assert _best_shift(scene, noisy) == pytest.approx(by_hand, abs=1e-6)


def test_two_sections_on_one_picture(summaries):
    beside = replace(summaries[1], slide=summaries[0].slide, centre_px=summaries[0].centre_px + np.array([0, 5e3]))
    (apart,) = duplicate_findings([summaries[0], beside])
    assert apart.kind == "shared picture" and not apart.certain
    upon = replace(beside, centre_px=summaries[0].centre_px + 2.0)
    (same,) = duplicate_findings([summaries[0], upon])
    assert same.kind == "duplicated picture" and same.certain and "100% of their spots" in same.sentence
