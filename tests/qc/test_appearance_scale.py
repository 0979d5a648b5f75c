"""Scale by what a picture shows, and by its spots."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cmrcnet.qc.appearance import OCTAVES, octaves_shifted, scale_findings, texture_curve
from cmrcnet.slides.slide import ArraySlide


def bump(at: float) -> np.ndarray:
    curve = -0.3 * (OCTAVES - at) ** 2
    return curve - curve.mean()


@pytest.mark.parametrize("move", [-1.5, -0.5, 0.0, 0.25, 1.0])
def test_a_moved_curve_is_measured(move):
    assert octaves_shifted(bump(2 + move), bump(2.0)) == pytest.approx(move, abs=0.126)


def test_discs_of_twice_the_size_are_an_octave_larger():
    curves = []
    for radius in (5, 10):
        pixels = np.full((260, 260, 3), 235, np.uint8)
        y, x = np.mgrid[:260, :260]
        for row in range(20, 260, 55):
            for column in range(20, 260, 55):
                pixels[(x - column) ** 2 + (y - row) ** 2 <= radius**2] = (90, 40, 120)
        curves.append(texture_curve(ArraySlide(pixels, 1.0), np.array([[130.0, 130.0]])))
    assert octaves_shifted(curves[1], curves[0]) == pytest.approx(1, abs=0.26)


def test_sound_sections(summaries):
    assert scale_findings(summaries) == []


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_a_wrong_scale_shows_in_the_texture(sections, summaries, factor):
    slide = sections[0].slide
    wrong = ArraySlide(slide.read(0, 0, slide.width_px, slide.height_px), slide.mpp * factor)
    planted = replace(summaries[0], texture=texture_curve(wrong, sections[0].spots.centre_px), slide="wrong")
    (finding,) = scale_findings([planted, *summaries[1:]])
    assert finding.sections == (planted.name,) and not finding.certain
    assert np.sign(finding.value) == np.sign(np.log(factor))


def test_spots_too_far_apart_are_a_problem(summaries):
    (finding,) = scale_findings([replace(summaries[0], pitch_um=300.0), *summaries[1:]])
    assert finding.certain and finding.value == pytest.approx(2.0) and "300 um apart" in finding.sentence


def test_spots_of_another_assay_are_not_compared(summaries):
    visium = replace(summaries[0], pitch_um=100.0, diameter_um=55.0)
    assert scale_findings([visium, *summaries[1:]]) == []


def test_three_sections_say_nothing(summaries):
    """The median of two others would accuse a sound section next to a wrong one."""
    assert scale_findings([replace(summaries[0], pitch_um=300.0), *summaries[1:3]]) == []
