"""Scale, spots, slides in memory, sections and cohorts: valid by construction."""

from __future__ import annotations

import dataclasses
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cmrcnet.errors import BadOption, ScaleError, SectionError, ShapeMismatch, UnknownName
from cmrcnet.slides.section import Cohort, CohortEntry, Section, Spots
from cmrcnet.slides.slide import ArraySlide, PatchScale, Slide, known_scale, read_padded

# --- scale -------------------------------------------------------------------------------------------------------


def test_the_default_patch_is_112_um():
    scale = PatchScale()
    assert (scale.size_px, scale.mpp, scale.side_um) == (224, 0.5, 112)
    assert scale.side_on(0.25) == 448  # twice as many of the finer pixels
    assert scale.side_on(0.688) == pytest.approx(162.79, abs=0.01)


@pytest.mark.parametrize(("field", "bad"), [("size_px", 0), ("mpp", 0.0), ("mpp", float("nan"))])
def test_a_patch_has_a_size(field, bad):
    with pytest.raises(BadOption, match=rf"patch.{field} is "):
        PatchScale(**{field: bad})


# --- spots -------------------------------------------------------------------------------------------------------


def three_spots() -> Spots:
    return Spots(("a", "b", "c"), np.array([[1, 2], [3, 4], [5, 6]]), 100.0)


def test_spots_hold_float_centres_that_nobody_can_change():
    given_px = np.array([[1.0, 2.0], [3.0, 4.0]])
    spots = Spots(["a", "b"], given_px, 55.0)
    given_px[:] = 0
    assert spots.centre_px.tolist() == [[1, 2], [3, 4]] and spots.centre_px.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        spots.centre_px[0, 0] = 9
    with pytest.raises(dataclasses.FrozenInstanceError):
        spots.diameter_um = 1.0


def test_each_spot_has_a_place_and_a_name_of_its_own():
    with pytest.raises(ShapeMismatch, match=r"centre_px has shape \(3, 2\); wanted \(2, 2\)"):
        Spots(("a", "b"), np.zeros((3, 2)), 100.0)
    with pytest.raises(ShapeMismatch, match=r"wanted \(1, 2\)"):
        Spots(("a",), np.zeros((1, 3)), 100.0)
    with pytest.raises(SectionError, match=r"repeat the barcode\(s\) a, b;"):
        Spots(("b", "a", "c", "a", "b"), np.zeros((5, 2)), 100.0)


def test_there_may_be_no_spots():
    assert len(Spots((), np.empty((0, 2)), 100.0)) == 0
    assert Spots((), [], 100.0).centre_px.shape == (0, 2)


def test_taking_spots_keeps_the_asked_order():
    spots = three_spots()
    assert spots.take([2, 0]).barcodes == ("c", "a")
    assert spots.take([2, 0]).centre_px.tolist() == [[5, 6], [1, 2]]
    assert spots.take(np.array([True, False, True])).barcodes == ("a", "c")
    assert len(spots.take(np.array([], int))) == len(spots.take([])) == 0
    with pytest.raises(IndexError):
        spots.take([0.0])  # a row is a whole number
    assert spots.take([1]).diameter_um == 100


# --- slides in memory --------------------------------------------------------------------------------------------

PIXELS = np.random.default_rng(0).integers(0, 255, (30, 50, 3), np.uint8)


def test_an_array_is_a_slide():
    slide = ArraySlide(PIXELS, 0.5, "made up")
    assert isinstance(slide, Slide)
    assert (slide.width_px, slide.height_px, slide.downsamples, slide.name) == (50, 30, (1.0,), "made up")
    assert slide.read(x=4, y=6, width=10, height=3).shape == (3, 10, 3)  # width first in calls, second in arrays
    np.testing.assert_array_equal(slide.read(4, 6, 10, 3), PIXELS[6:9, 4:14])
    with pytest.raises(BadOption, match="level is 1; wanted 0, the only level"):
        slide.read(0, 0, 1, 1, level=1)


@settings(max_examples=60, deadline=None)
@given(x=st.integers(-70, 70), y=st.integers(-70, 70), width=st.integers(1, 90), height=st.integers(1, 90))
def test_a_region_is_cut_from_an_endless_white_sheet(x, y, width, height):
    sheet = np.full((300, 300, 3), 255, np.uint8)
    sheet[100:130, 100:150] = PIXELS
    want = sheet[100 + y : 100 + y + height, 100 + x : 100 + x + width]
    np.testing.assert_array_equal(ArraySlide(PIXELS).read(x, y, width, height), want)


def test_a_region_is_a_copy():
    region = ArraySlide(PIXELS).read(0, 0, 50, 30)
    region[:] = 0
    assert PIXELS.any()


def test_only_what_lies_on_the_picture_is_asked_for():
    asked = []

    def inside(left, top, width, height):
        asked.append((left, top, width, height))
        return np.zeros((height, width, 3), np.uint8)

    read_padded(50, 30, -5, 20, 100, 20, inside)
    assert asked == [(0, 20, 50, 10)]
    assert (read_padded(50, 30, 60, 0, 5, 5, inside) == 255).all() and len(asked) == 1


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_a_region_has_a_size(size):
    with pytest.raises(BadOption, match="a region of at least 1 x 1 px"):
        ArraySlide(PIXELS).read(0, 0, *size)


@pytest.mark.parametrize("bad", [PIXELS[..., 0], np.dstack([PIXELS, PIXELS]), PIXELS.astype(float)])
def test_pixels_are_rgb_uint8(bad):
    with pytest.raises(ShapeMismatch, match=r"wanted \(height, width, 3\) uint8"):
        ArraySlide(bad)


def test_an_unknown_scale_is_an_error_with_a_remedy():
    assert known_scale(ArraySlide(PIXELS, 0.25)) == 0.25
    with pytest.raises(ScaleError, match=r"C6 does not say how many micrometres .*mpp= in open_slide\(\)"):
        known_scale(ArraySlide(PIXELS, name="C6"))


def test_an_array_slides_fingerprint_is_that_of_its_pixels():
    slide = ArraySlide(PIXELS, 0.5, "a")
    assert slide.fingerprint() == ArraySlide(PIXELS.copy(), 0.25, "b").fingerprint()
    changed = PIXELS.copy()
    changed[29, 49, 2] ^= 1
    assert slide.fingerprint() != ArraySlide(changed).fingerprint()
    assert slide.fingerprint() != ArraySlide(np.ascontiguousarray(PIXELS.swapaxes(0, 1))).fingerprint()


# --- sections and cohorts ----------------------------------------------------------------------------------------


def section(name: str = "C6", patient: str = "C", counts=None, genes=("ERBB2", "CD3E")) -> Section:
    counts = sparse.csr_matrix(np.arange(6).reshape(3, 2)) if counts is None else counts
    return Section(
        name,
        patient,
        ArraySlide(PIXELS, 0.5, name),
        three_spots(),
        counts,
        genes,
        notes=("one",),
        metadata={"site": "breast"},
    )


def test_a_section_has_a_row_a_spot_and_a_column_a_gene():
    with pytest.raises(ShapeMismatch, match=r"counts of C6 has shape \(3, 2\); wanted \(3, 3\)"):
        section(genes=("a", "b", "c"))
    with pytest.raises(ShapeMismatch, match=r"counts of C6 has shape \(2, 2\); wanted \(3, 2\)"):
        section(counts=sparse.csr_matrix((2, 2)))
    with pytest.raises(SectionError, match="C6 holds 3 spots and 0 genes"):
        section(counts=sparse.csr_matrix((3, 0)), genes=())


@pytest.mark.parametrize("rows", [[2, 0], np.array([True, False, True])])
def test_taking_rows_takes_spots_and_counts_alike(rows):
    taken = section().take(rows)
    index = np.arange(3)[np.asarray(rows)]
    assert taken.spots.barcodes == tuple("abc"[i] for i in index)
    np.testing.assert_array_equal(taken.counts.toarray(), section().counts.toarray()[index])
    assert (taken.name, taken.genes, taken.notes, taken.metadata) == (
        "C6",
        ("ERBB2", "CD3E"),
        ("one",),
        {"site": "breast"},
    )


def cohort() -> Cohort:
    return Cohort.of([section("C6", "C"), section("B4", "B"), section("C2", "C")], "her2st")


def test_a_cohort_keeps_the_order_it_was_given():
    assert cohort().sections == ("C6", "B4", "C2") and cohort().patients == ("C", "B")
    assert [one.name for one in cohort()] == ["C6", "B4", "C2"] and len(cohort()) == 3
    assert cohort().only(["C2", "C6"]).sections == ("C6", "C2")  # the cohort's order, not the wish's
    assert cohort().without(["C6"]).sections == ("B4", "C2")
    assert cohort().read("B4").name == "B4" and cohort().patient_of("C2") == "C"
    assert cohort().only([]).sections == ()


def test_a_section_that_the_cohort_lacks():
    for ask in (cohort().read, cohort().patient_of, lambda name: cohort().only(["C6", name])):
        with pytest.raises(UnknownName, match=r"There is no section 'D1'; known: C6, B4, C2"):
            ask("D1")
    with pytest.raises(BadOption, match=r"section is 'C6'; wanted each section named once"):
        Cohort.of([section("C6"), section("C6"), section("B4")])


def test_a_cohort_reads_a_section_when_asked_and_holds_none():
    read, alive = [], []

    def load(name: str) -> Section:
        one = section(name)
        read.append(name)
        alive.append(weakref.ref(one))
        return one

    lazy = Cohort("lazy", tuple(CohortEntry(name, "p", lambda name=name: load(name)) for name in "abcd"))
    assert (len(lazy), lazy.sections, lazy.without("a").sections, read) == (4, tuple("abcd"), tuple("bcd"), [])
    for number, _ in enumerate(lazy):
        assert len(read) == number + 1
        assert sum(ref() is not None for ref in alive) <= 2
    del _
    assert all(ref() is None for ref in alive)
