"""Region tables: what they hold, and what is said of those that hold it badly."""

from __future__ import annotations

import pytest

from cmrcnet.errors import BadInput, MissingInput, SectionError, TooFew
from cmrcnet.readers.annotations import read_cohort_regions, read_regions
from tests.readers.written_formats import made_up, write_legacy


def write(tmp_path, text, name="S1_regions.tsv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "spot\tregion\n1x2\tcancer 1\n3x4\timmune : APC, B-cell\n5x6\t\n",
        "barcode;label\n1x2;cancer 1\n3x4;immune : APC, B-cell\n5x6;\n",
        "x\ty\tannotation\n1\t2\tcancer 1\n3\t4\timmune : APC, B-cell\n5\t6\t\n",
    ],
)
def test_labels_by_barcode_and_empty_ones_left_out(tmp_path, text):
    regions = read_regions(write(tmp_path, text))
    assert regions.to_dict() == {"1x2": "cancer 1", "3x4": "immune : APC, B-cell"}


@pytest.mark.parametrize(
    ("text", "error", "sentence"),
    [
        ("spot\tcolour\n1x2\tred\n", BadInput, r"lacks the column\(s\) region; it has: spot, colour"),
        ("region\ncancer\n", BadInput, r"lacks the column\(s\) spot \(or x and y\)"),
        ("spot\tregion\n1x2\ta\n1x2\tb\n", SectionError, r"S1_regions.tsv repeat the barcode\(s\) 1x2"),
        ("spot\tregion\n1x2\ta\n\tb\n", BadInput, r"line 3 names no spot"),
        ("x\ty\tregion\n1\t\ta\n", BadInput, r"line 2 names no spot"),
        ("spot\tregion\n1x2\t\n", BadInput, r"no spot has a label"),
        ("spot\tregion\n", BadInput, r"no spot has a label"),
        ("", BadInput, r"it is empty"),
    ],
)
def test_bad_tables_are_refused_with_the_reason(tmp_path, text, error, sentence):
    with pytest.raises(error, match=sentence):
        read_regions(write(tmp_path, text))


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(MissingInput, match=r"wanted: a table of regions"):
        read_regions(tmp_path / "nowhere.tsv")


def cohort_of_two(tmp_path, second):
    for name in ("S1", "S2"):
        write_legacy(tmp_path, made_up(), name)
    write(tmp_path, "spot\tregion\n1x1\tcancer\n2x1\timmune\n")
    head = "section,patient,counts,spots,image,mpp,regions"
    rows = [f"{n},{n},{n}_counts.tsv.gz,{n}_spots.tsv,{n}.png,4.0,{r}" for n, r in (("S1", "S1_regions.tsv"), second)]
    path = tmp_path / "cohort.csv"
    path.write_text("\n".join([head, *rows]))
    return path


def test_the_regions_of_a_cohort_are_named_by_its_column(tmp_path):
    found = read_cohort_regions(cohort_of_two(tmp_path, ("S2", "")))
    assert list(found) == ["S1"] and list(found["S1"]) == ["cancer", "immune"]


def test_a_cohort_without_regions_says_so(tmp_path):
    path = cohort_of_two(tmp_path, ("S2", ""))
    text = path.read_text()
    path.write_text(text.replace("regions\n", "site\n"))
    with pytest.raises(BadInput, match=r"lacks the column\(s\) regions"):
        read_cohort_regions(path)
    path.write_text(text.replace("S1_regions.tsv", ""))
    with pytest.raises(TooFew, match=r"fill in its column regions"):
        read_cohort_regions(path)
    path.write_text(text.replace("S1_regions.tsv", "lost.tsv"))
    with pytest.raises(MissingInput, match=r"lost.tsv does not exist"):
        read_cohort_regions(path)


@pytest.mark.shared
def test_her2st_has_regions_for_every_section(her2st_csv):
    found = read_cohort_regions(her2st_csv)
    assert {name: len(regions) for name, regions in found.items()} == {
        "B4": 222, "C2": 185, "C3": 179, "C4": 184, "C6": 176
    }  # fmt: skip
    assert "cancer 1" in set(found["C6"]) and "breast glands 1" in set(found["B4"])
