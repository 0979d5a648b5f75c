"""`inspect` tells what a thing is and every problem with it, and changes nothing."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from cmrcnet.errors import BadInput, BadOption, MissingInput
from cmrcnet.readers.inspection import inspect
from tests.readers.written_formats import as_visium, cut, made_up, write_image, write_legacy, write_visium

HEADER = "section,patient,format,counts,spots,image,mpp\n"


def row(name, patient, mpp="4"):
    return f"{name},{patient},legacy_st,{name}_counts.tsv.gz,{name}_spots.tsv,{name}.png,{mpp}\n"


@pytest.fixture
def cohort(tmp_path):
    for seed, name in enumerate(("A1", "A2", "B1")):
        write_legacy(tmp_path, made_up(seed=seed), name)
    path = tmp_path / "cohort.csv"
    path.write_text(HEADER + row("A1", "A") + row("A2", "A") + row("B1", "B"))
    return path


def fingerprints(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_sound_cohort(cohort):
    before = fingerprints(cohort.parent)
    found = inspect(cohort)
    assert (found.kind, found.problems) == ("cohort", ())
    assert dict(found.rows)["sections"] == "3"
    assert dict(found.rows)["patients"] == "2 (A, B)"
    assert dict(found.rows)["spots on tissue"] == "90"
    assert dict(found.rows)["genes"] == "12 in all, 12 named in every section"
    look = found.sections[0]
    made = made_up(seed=0)
    assert (look.section, look.patient, look.spots, look.genes) == ("A1", "A", 30, 12)
    assert look.median_counts == np.median(made.counts.sum(axis=1))
    assert look.mpp == 4 and look.patch_px == 28 and look.image_px == (400, 350)
    assert look.pitch_um == pytest.approx(200, rel=0.01)
    text = found.to_text()
    assert "Problems: none" in text and text.count("\n  A") == 2 and "400 x 350" in text
    assert fingerprints(cohort.parent) == before


def test_every_problem_of_a_cohort_is_told_at_once(cohort):
    folder = cohort.parent
    made = made_up(seed=1)
    made.counts[3, 1] = -4
    write_legacy(folder, made, "A2")
    cut(folder / "B1.png")
    write_legacy(folder, made_up(seed=4), "C1")
    cohort.write_text(
        HEADER + row("A1", "A", "16") + row("A2", "A", "1") + row("B1", "") + row("C1", "C", "") + row("D1", "D")
    )
    found = inspect(cohort)
    said = "\n".join(found.problems)
    assert "line 2 (A1): A1 is said to show 16 um per px" in said
    assert "line 3 (A2): The counts of A2 are not raw counts" in said
    assert "line 3 (A2): A2 is said to show 1 um per px" in said
    assert "line 4 (B1): patient is ''" in said
    assert "line 5 (C1): C1 does not say how many micrometres" in said
    assert "line 6 (D1): The counts" in said and "line 6 (D1): The image" in said
    assert len(found.sections) == 5
    assert found.to_text().count("\n  1. ") == 1 and f"Problems: {len(found.problems)}" in found.to_text()


def test_a_truncated_picture_in_a_cohort(cohort):
    cut(cohort.parent / "B1.png")
    (problem,) = inspect(cohort).problems
    assert "line 4 (B1)" in problem and "truncated" in problem


def test_a_scale_given_for_all(cohort):
    cohort.write_text(HEADER + row("A1", "A", "") + row("B1", "B", "4"))
    assert len(inspect(cohort).problems) == 1
    assert inspect(cohort, mpp=4.0).problems == ()


def test_one_patient_alone_is_told(cohort):
    cohort.write_text(HEADER + row("A1", "A") + row("A2", "A"))
    assert any("All sections are of one patient" in note for note in inspect(cohort).notes)


def test_sections_that_share_no_gene(cohort):
    made = made_up(seed=2)
    made.genes[:] = [gene.title() for gene in made.genes]
    write_legacy(cohort.parent, made, "B1")
    (problem,) = inspect(cohort).problems
    assert "A1 and B1 share no genes" in problem and "upper and lower case" in problem


def test_a_file_that_is_no_cohort(tmp_path):
    path = tmp_path / "cohort.csv"
    path.write_text("section,counts\nA,B\n")
    found = inspect(path)
    assert found.kind == "cohort" and "lacks the column(s) patient" in found.problems[0]


def test_a_section(tmp_path):
    counts = write_legacy(tmp_path, made_up())
    unknown = inspect(counts)
    assert unknown.kind == "section" and len(unknown.problems) == 1 and "micrometres" in unknown.problems[0]
    found = inspect(counts, mpp=4.0)
    rows = dict(found.rows)
    assert found.problems == ()
    assert (rows["format"], rows["section"], rows["spots on tissue"]) == ("legacy_st", "S1", "30")
    assert (rows["um per px"], rows["patch on slide"]) == ("4", "28.0 px (112 um)")
    assert rows["spots apart"] == "200 um"


def test_what_the_columns_of_a_cohort_state_is_stated_for_one_section(tmp_path):
    made = made_up()
    counts = write_legacy(tmp_path, made)
    stated: dict[str, Any] = {"image": tmp_path / "S1.png", "spots": tmp_path / "S1_spots.tsv", "affine": "1 0 0 0 1 0"}
    found = inspect(counts, mpp=4.0, **stated, spot_diameter_um=90.0)
    assert found.problems == () and found.sections[0].spots == made.spots
    wrong = inspect(counts, mpp=4.0, bin_um=50.0)
    assert "sections of format legacy_st have no bins" in wrong.problems[0]
    stated |= {"bin_um": 8.0, "library": "1", "spot_diameter_um": 55.0}
    for option, value in stated.items():
        with pytest.raises(BadOption, match=rf"{option}.* nothing with a slide, which S1.png seems to be"):
            inspect(tmp_path / "S1.png", **{option: value})


def test_options_of_one_section_are_refused_with_a_cohort_file(cohort):
    with pytest.raises(BadOption, match=r"affine.* nothing with a cohort file: write it into a column of cohort.csv"):
        inspect(cohort, affine="1 0 0 0 1 0")


def test_a_visium_folder_with_two_problems(tmp_path):
    visium = as_visium(made_up())
    visium.counts[1, 1] = -1
    outs = write_visium(tmp_path / "outs", visium)
    path = outs / "spatial" / "scalefactors_json.json"
    factors = json.loads(path.read_text())
    found = inspect(outs, mpp=visium.mpp * 2)
    assert len(found.problems) == 2
    assert "not raw counts" in found.problems[0] and "200 um apart" in found.problems[1]
    path.write_text(json.dumps({**factors, "tissue_hires_scalef": 4.0}))  # the picture is smaller than that
    assert any("lie outside its image" in problem for problem in inspect(outs).problems)


def test_parts_that_are_missing(tmp_path):
    counts = write_legacy(tmp_path, made_up())
    (tmp_path / "S1.png").unlink()
    (tmp_path / "S1_spots.tsv").unlink()
    found = inspect(counts)
    assert len(found.problems) == 2
    assert "spots is None" in found.problems[0] and "image is None" in found.problems[1]


def test_a_slide(tmp_path):
    picture = write_image(tmp_path / "slide.png", made_up().image)
    unknown = inspect(picture)
    assert unknown.kind == "slide" and "does not say how many micrometres" in unknown.problems[0]
    found = inspect(picture, mpp=4.0)
    assert dict(found.rows)["size"] == "400 x 350 px, 1.6 x 1.4 mm"
    assert dict(found.rows)["patch on slide"] == "28.0 px (112 um)"
    assert found.problems == () and "slide: " in found.to_text()
    cut(picture)
    assert "truncated" in inspect(picture, mpp=4.0).problems[0]


def test_nothing_to_look_at(tmp_path):
    with pytest.raises(MissingInput, match=r"does not exist"):
        inspect(tmp_path / "nowhere")
    with pytest.raises(BadInput, match=r"no reader recognises it"):
        inspect(tmp_path)


def test_the_real_cohort(als_csv):
    found = inspect(als_csv)
    assert found.problems == ()
    assert dict(found.rows)["spots on tissue"] == "638"
    assert dict(found.rows)["gene names"] == "mouse gene symbols"
    assert all(look.pitch_um == pytest.approx(200, rel=0.03) for look in found.sections)
