"""What every section must fulfil: each fault on its own, and all of them together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cmrcnet.errors import (
    BadInput,
    CmrcnetWarning,
    ScaleError,
    SectionError,
    ShapeMismatch,
)
from cmrcnet.readers.raw_section import RawSection, checked_section, neighbour_distance_px, problems_of
from cmrcnet.slides.slide import ArraySlide, open_slide
from tests.readers.written_formats import made_up
from tests.slides.slide_making import write_aperio


def raw(made=None, **changes) -> RawSection:
    made = made or made_up()
    whole = RawSection(
        name="S1",
        patient="P",
        slide=ArraySlide(made.image, made.mpp, "S1"),
        barcodes=made.barcodes,
        centre_px=made.centre_px,
        diameter_um=100.0,
        counts=sparse.csr_matrix(made.counts),
        genes=made.genes,
        absent_genes="zero",
        pitch_um=(made.pitch_um, made.pitch_um),
    )
    return replace(whole, **changes)


def with_counts(value: float) -> sparse.csr_matrix:
    counts = made_up().counts.astype(float)
    counts[4, 2] = value
    return sparse.csr_matrix(counts)


def test_a_sound_section_passes_as_it_is():
    made = made_up()
    section = checked_section(raw(made))
    assert problems_of(raw(made)) == []
    np.testing.assert_array_equal(section.counts.toarray(), made.counts)
    assert section.counts.dtype == np.float32
    assert section.notes == ()


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"barcodes": ["a", "a", *made_up().barcodes[2:]]}, SectionError, "the spots of S1 repeat .* a"),
        ({"counts": with_counts(-2)}, SectionError, "counts of S1 are not raw counts.* at spot .*, gene [A-Z]"),
        ({"counts": with_counts(0.5)}, SectionError, "counts of S1 are not raw counts"),
        ({"counts": with_counts(np.nan)}, SectionError, "counts of S1 are not raw counts"),
        ({"counts": sparse.csr_matrix((30, 12))}, SectionError, "30 spots and 0 genes .*counted on any spot"),
        ({"counts": sparse.csr_matrix((30, 13))}, ShapeMismatch, "counts of S1 has shape"),
        ({"centre_px": np.zeros((29, 2))}, ShapeMismatch, "centres of S1 has shape"),
        ({"centre_px": np.full((30, 2), np.nan)}, BadInput, "some spots have no position"),
        ({"slide": ArraySlide(made_up().image, None, "S1")}, ScaleError, "S1 does not say how many"),
        ({"slide": ArraySlide(made_up().image, 16.0, "S1")}, ScaleError, "said to show 16 um per px"),
        ({"slide": ArraySlide(made_up().image, 1.0, "S1")}, ScaleError, r"50 um apart.*\(4 um per px would fit\)"),
        ({"centre_px": made_up().centre_px + 9000}, SectionError, "30 of 30 spots of S1 lie outside"),
    ],
)
def test_each_fault_alone(changes, error, said):
    faulty = raw(**changes)
    with pytest.raises(error, match=said):
        checked_section(faulty)
    assert [type(problem) for problem in problems_of(faulty)] == [error]


def test_no_spots_at_all():
    empty = raw(barcodes=[], centre_px=np.zeros((0, 2)), counts=sparse.csr_matrix((0, 12)))
    with pytest.raises(SectionError, match=r"S1 holds 0 spots and 12 genes .*same spot names"):
        checked_section(empty)


def test_nothing_but_controls():
    section = raw(genes=[f"BLANK_{i}" for i in range(12)])
    with pytest.raises(SectionError, match=r"S1 holds 30 spots and 0 genes"):
        checked_section(section)
    assert len(checked_section(section, controls="keep").genes) == 12


def test_every_fault_is_told_not_only_the_first():
    faulty = raw(
        barcodes=["a", "a", *made_up().barcodes[2:]],
        counts=with_counts(-1),
        slide=ArraySlide(made_up().image, 16.0, "S1"),
        centre_px=made_up().centre_px + np.array([9000, 0]),
    )
    found = [type(problem) for problem in problems_of(faulty)]
    assert found == [SectionError, SectionError, SectionError, ScaleError]


def test_a_few_spots_off_the_image_are_dropped_and_told():
    made = made_up()
    centres = made.centre_px.copy()
    centres[[3, 7, 11]] += 9000
    section = checked_section(raw(made, centre_px=centres))
    kept = [i for i in range(30) if i not in (3, 7, 11)]
    assert section.spots.barcodes == tuple(made.barcodes[i] for i in kept)
    np.testing.assert_array_equal(section.counts.toarray(), made.counts[kept])
    assert "3 of 30 spots have their centre outside the image: dropped." in section.notes
    centres[12] += 9000
    with pytest.raises(SectionError, match=r"4 of 30 spots of S1 lie outside its image .400 x 350 px"):
        checked_section(raw(made, centre_px=centres))


@pytest.mark.parametrize(("x", "inside"), [(-0.01, False), (0.0, True), (399.9, True), (400.0, False)])
def test_where_the_image_ends(x, inside):
    made = made_up()
    centres = made.centre_px.copy()
    centres[0, 0] = x
    assert len(checked_section(raw(made, centre_px=centres)).spots) == 29 + inside


@settings(max_examples=25, deadline=None)
@given(factor=st.floats(0.05, 20))
def test_a_scale_is_wrong_beyond_a_factor_of_one_and_a_half(factor):
    made = made_up()
    slide = ArraySlide(made.image, made.mpp * factor, "S1")
    wrong = any(isinstance(problem, ScaleError) for problem in problems_of(raw(made, slide=slide)))
    near = max(factor, 1 / factor)
    if near < 1.49 or near > 1.51:
        assert wrong == (near > 1.5)


def test_a_stated_scale_that_the_file_contradicts_is_noted_with_what_the_spots_say(tmp_path):
    made = made_up()
    file = write_aperio(tmp_path / "S1.svs", made.image, mpp=made.mpp / 10)
    with pytest.warns(CmrcnetWarning, match=r"S1: 4 um per px is used, as stated; its file says 0.4"):
        slide = open_slide(file, mpp=made.mpp)
    (note,) = checked_section(raw(made, slide=slide)).notes
    assert note.startswith(
        "4 um per px is used, although the image file says 0.4; by the distance of the spots it is 4"
    )
    (problem,) = problems_of(raw(made, slide=open_slide(file)))
    assert "4 um per px would fit" in str(problem)


def test_a_range_of_distances():
    slide = ArraySlide(made_up().image, 16.0, "S1")  # 800 um apart
    assert problems_of(raw(slide=slide, pitch_um=(100.0, 600.0))) == []
    (problem,) = problems_of(raw(slide=slide, pitch_um=(100.0, 300.0)))
    assert "100 to 300 um apart (2 to 6 um per px would fit)" in str(problem)


def test_distance_between_neighbours_on_squares_and_hexagons():
    square = np.array([[x, y] for x in range(9) for y in range(9)], float) * 40
    hexagon = np.array([[x + 0.5 * (y % 2), y * np.sqrt(3) / 2] for x in range(9) for y in range(9)]) * 137.3
    assert neighbour_distance_px(square) == pytest.approx(40)
    assert neighbour_distance_px(hexagon) == pytest.approx(137.3)
    jitter = np.random.default_rng(0).normal(0, 2.5, square.shape)
    assert neighbour_distance_px(square + jitter) == pytest.approx(40, rel=0.02)
    assert neighbour_distance_px(square[:2]) is None


def test_who_the_patient_is():
    assert checked_section(raw()).patient == "P"
    assert checked_section(raw(), patient="Q").patient == "Q"
    nobody = checked_section(raw(patient=None))
    assert nobody.patient == "S1" and "No patient is given" in nobody.notes[-1]


def test_features_are_cleaned_and_facts_kept():
    made = made_up()
    genes = ["A", "A", "BLANK_1", *made.genes[3:]]
    section = checked_section(raw(made, genes=genes), metadata={"site": "lung"})
    assert section.genes == ("A", *made.genes[3:])
    np.testing.assert_array_equal(section.counts[:, 0].toarray()[:, 0], made.counts[:, :2].sum(axis=1))
    assert len(section.notes) == 2 and section.metadata == {"site": "lung"}
