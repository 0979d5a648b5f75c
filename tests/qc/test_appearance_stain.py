"""Colours that are not the cohort's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cmrcnet.qc.appearance import colour_angle, stain_findings
from cmrcnet.qc.section_summary import optical_density

HE = np.array([0.23, 0.28, 0.16])


@pytest.fixture
def cohort(summaries):
    random = np.random.default_rng(0)
    return [
        replace(
            summaries[0], name=f"S{i}", slide=str(i), colour=HE * random.uniform(0.8, 1.2) + random.normal(0, 0.004, 3)
        )
        for i in range(6)
    ]


def planted(cohort, colour):
    return stain_findings([*cohort[:5], replace(cohort[5], colour=colour)])


def test_sound_sections(cohort, summaries):
    assert stain_findings(cohort) == [] and stain_findings(summaries) == []


def test_angle_by_hand():
    assert colour_angle(np.array([1.0, 0, 0]), np.array([1.0, 1, 0])) == pytest.approx(45)
    assert colour_angle(HE, 3 * HE) == pytest.approx(0, abs=1e-4)


def test_density_by_hand():
    density = optical_density(np.array([[[255, 127, 0]]], np.uint8))
    np.testing.assert_allclose(density[0, 0], [0, np.log10(2), np.log10(256)], atol=1e-6)


@pytest.mark.parametrize(("order", "names"), [([2, 1, 0], "blue green red"), ([0, 2, 1], "red blue green")])
def test_exchanged_channels_are_named(cohort, order, names):
    (finding,) = planted(cohort, HE[order])
    assert finding.sections == ("S5",) and not finding.certain and f"in the order {names}" in finding.sentence


def test_another_stain_and_another_strength(cohort):
    (cast,) = planted(cohort, np.array([0.25, 0.25, 0.25]))
    assert "degrees from that of the other sections" in cast.sentence and cast.value > cast.threshold
    (strong,) = planted(cohort, 2.6 * HE)
    assert strong.value == pytest.approx(2.6, rel=0.2) and "times as strongly" in strong.sentence
    (faint,) = planted(cohort, 0.3 * HE)
    assert faint.value == pytest.approx(0.3, rel=0.2)


def test_a_cohort_of_many_stains_raises_no_false_findings(cohort):
    strengths = (0.4, 2.5, 0.5, 2.0, 0.45, 2.2)
    mixed = [replace(each, colour=HE * strength) for each, strength in zip(cohort, strengths, strict=True)]
    assert stain_findings(mixed) == []


def test_three_sections_say_nothing(cohort):
    """The median of two others would accuse a sound section next to a wrong one."""
    assert stain_findings([*cohort[:2], replace(cohort[2], colour=HE[::-1])]) == []


def test_sections_of_one_picture_do_not_vouch_for_each_other(cohort):
    pair = [replace(each, slide="one", colour=HE[::-1]) for each in cohort[:2]]
    assert {f.sections for f in stain_findings([*pair, *cohort[2:]])} == {("S0",), ("S1",)}
