"""What is written is what a laboratory would hand over, and reads back the same."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest

from cmrcnet.datasets.synthetic import synthetic_cohort, synthetic_slide, synthetic_truth, write_cohort, write_slide
from cmrcnet.errors import BadOption, OutputExists, ScaleError
from cmrcnet.readers.cohort import read_cohort
from cmrcnet.slides.section import Cohort
from cmrcnet.slides.slide import ArraySlide, open_slide


@pytest.fixture(scope="module")
def cohort():
    return synthetic_cohort(patients=2, spots=12, genes=48, seed=3)


def whole(slide):
    return slide.read(0, 0, slide.width_px, slide.height_px)


@pytest.mark.parametrize("image", ["png", "jpg"])
def test_it_reads_back_the_same(cohort, image, tmp_path):
    table = write_cohort(cohort, tmp_path / "made", image=image)
    assert table == tmp_path / "made" / "cohort.csv"
    again = read_cohort(table)
    assert again.sections == cohort.sections
    assert again.patients == cohort.patients
    for ours, theirs in zip(cohort, again, strict=True):
        assert theirs.absent_genes == "zero"
        assert theirs.spots.barcodes == ours.spots.barcodes
        np.testing.assert_allclose(theirs.spots.centre_px, ours.spots.centre_px)
        assert theirs.spots.diameter_um == ours.spots.diameter_um
        assert theirs.slide.mpp == ours.slide.mpp
        columns = [ours.genes.index(gene) for gene in theirs.genes]
        np.testing.assert_array_equal(theirs.counts.toarray(), ours.counts.toarray()[:, columns])
        assert theirs.genes == ours.genes
        difference = np.abs(whole(ours.slide).astype(int) - whole(theirs.slide))
        assert difference.max() == 0 if image == "png" else difference.mean() < 3
        np.testing.assert_array_equal(synthetic_truth(theirs).expected, synthetic_truth(ours).expected)


def test_odd_names_of_sections_and_patients_read_back_the_same(cohort, tmp_path):
    names = {"P1S1": ("S24/01187", "007"), "P2S1": ("=NA, ü", "NA")}
    odd = Cohort.of([replace(s, name=names[s.name][0], patient=names[s.name][1]) for s in cohort])
    again = read_cohort(write_cohort(odd, tmp_path / "made"))
    assert again.sections == ("S24/01187", "=NA, ü") and again.patients == ("007", "NA")
    for ours, theirs in zip(odd, again, strict=True):
        assert theirs.counts.sum() == ours.counts.sum() and theirs.name == ours.name


def test_writing_twice_gives_the_same_bytes(cohort, tmp_path):
    for name in ("one", "two"):
        write_cohort(cohort, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 7 + 1  # and the marker
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_cohort_file_has_the_columns_of_the_house(cohort, tmp_path):
    with write_cohort(cohort, tmp_path / "made").open() as file:
        rows = list(csv.DictReader(file))
    expected = ["section", "patient", "format", "counts", "spots", "image", "mpp", "spot_diameter_um"]
    assert list(rows[0])[:8] == expected
    assert rows[0]["synthetic"].startswith("seed 3 patient 0")


def test_an_existing_folder_is_not_overwritten(cohort, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "thesis.txt").write_text("precious")
    with pytest.raises(OutputExists):
        write_cohort(cohort, tmp_path / "made")
    with pytest.raises(OutputExists):
        write_cohort(cohort, tmp_path / "made", overwrite=True)
    assert (tmp_path / "made" / "thesis.txt").read_text() == "precious"


def test_nothing_half_written_is_left_when_a_section_fails(cohort, tmp_path):
    from cmrcnet.slides.section import Cohort, CohortEntry

    def fails():
        raise RuntimeError("no more")

    broken = Cohort("broken", (*cohort.entries[:1], CohortEntry("X", "P9", fails)))
    with pytest.raises(RuntimeError, match="no more"):
        write_cohort(broken, tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["unseen.png", "unseen.jpg", "unseen.tif"])
def test_a_slide_is_written_as_one_picture_and_its_scale_is_returned(name, tmp_path):
    slide = synthetic_slide(2, spots=4)
    path, scale = write_slide(slide, tmp_path / name)
    assert scale == slide.mpp
    again = open_slide(path, mpp=scale)
    assert (again.width_px, again.height_px) == (slide.width_px, slide.height_px)
    assert np.abs(whole(slide).astype(int) - whole(again)).mean() < 3


def test_what_cannot_be_written_is_refused(cohort, tmp_path):
    slide = ArraySlide(np.zeros((4, 4, 3), np.uint8), None, "no scale")
    with pytest.raises(ScaleError, match="no scale"):
        write_slide(slide, tmp_path / "a.png")
    with pytest.raises(BadOption, match="ends in"):
        write_slide(cohort.read("P1S1").slide, tmp_path / "a.docx")
    with pytest.raises(BadOption, match="jpg or png"):
        write_cohort(cohort, tmp_path / "made", image="bmp")
    assert list(tmp_path.iterdir()) == []
