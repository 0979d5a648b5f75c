"""Cohort files: what can be checked is checked at once and named by line; sections are read one at a time."""

from __future__ import annotations

import csv
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrcnet.errors import BadInput, BadOption, MissingInput, SectionError, TooFew
from cmrcnet.readers import cohort as cohort_file
from cmrcnet.readers.annotations import read_cohort_regions
from cmrcnet.readers.cohort import cohort_rows, read_cohort
from cmrcnet.storage.names import file_name, name_of_file
from tests.readers.written_formats import as_visium, made_up, write_hest, write_image, write_legacy, write_visium

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=12)
HEADER = "section,patient,format,counts,spots,image,mpp,spot_diameter_um,disease\n"
ROWS = (
    "A1,A,legacy_st,st/A1_counts.tsv.gz,st/A1_spots.tsv,st/A1.png,4,100,cancer\n"
    "A2,A,,st/A2_counts.tsv.gz,st/A2_spots.tsv,st/A2.png,4,,\n"
    "B1,B,visium,outs,,fullres.png,,,healthy\n"
    "H1,C,,hest,,,,,healthy\n"
)


@pytest.fixture
def folder(tmp_path):
    """A cohort of three formats."""
    for seed, name in enumerate(("A1", "A2")):
        write_legacy(tmp_path / "st", made_up(seed=seed), name)
    visium = as_visium(made_up(seed=2))
    write_visium(tmp_path / "outs", visium)
    write_image(tmp_path / "fullres.png", visium.image)
    write_hest(tmp_path / "hest", as_visium(made_up(columns=3, rows=3, mpp=1.6)), "H1")
    return tmp_path


def write(folder, text, name="cohort.csv", encoding="utf-8"):
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def test_three_formats_in_one_cohort(folder):
    cohort = read_cohort(write(folder, HEADER + ROWS))
    assert cohort.sections == ("A1", "A2", "B1", "H1")
    assert cohort.patients == ("A", "B", "C")
    assert cohort.name == folder.name
    sections = list(cohort)
    assert [s.name for s in sections] == list(cohort.sections)
    assert [s.patient for s in sections] == ["A", "A", "B", "C"]
    assert [s.metadata["disease"] for s in sections] == ["cancer", "", "healthy", "healthy"]
    assert [s.spots.diameter_um for s in sections] == [100, 100, 55, 55]
    assert cohort.entries[0].metadata == {"disease": "cancer"}


def test_the_scale_column_may_be_called_um_per_px(folder):
    text = HEADER + ROWS
    renamed = read_cohort(write(folder, text.replace("mpp", "um_per_px"), "renamed.csv"))
    assert [s.slide.mpp for s in renamed] == [s.slide.mpp for s in read_cohort(write(folder, text))]
    assert "um_per_px" not in renamed.entries[0].metadata
    with pytest.raises(BadOption, match=r"mpp and um_per_px.*; wanted one column of micrometres per pixel"):
        read_cohort(write(folder, text.replace("disease", "um_per_px"), "both.csv"))


@pytest.mark.parametrize("how", ["bom", "semicolons", "tabs", "utf-16", "crlf"])
def test_what_excel_makes_of_it(folder, how):
    text, encoding = HEADER + ROWS, "utf-8"
    if how == "bom":
        encoding = "utf-8-sig"
    elif how == "semicolons":
        text = text.replace(",", ";").replace(";4;100;", ";4,0;100,0;")
    elif how == "tabs":
        text = text.replace(",", "\t")
    elif how == "utf-16":
        encoding = "utf-16"
    else:
        text = text.replace("\n", "\r\n")
    cohort = read_cohort(write(folder, text, encoding=encoding))
    assert cohort.sections == ("A1", "A2", "B1", "H1")
    assert cohort.read("A1").slide.mpp == 4


def test_only_the_columns_that_are_needed(folder):
    cohort = read_cohort(write(folder, "patient,path,section\nC,hest,H1\nB,outs,B1\n", "small.csv"))
    assert cohort.sections == ("H1", "B1") and cohort.name == "small"
    assert len(cohort.read("B1").spots) == 30


def test_sections_are_read_when_asked_for_and_not_before(folder, monkeypatch):
    read = []
    monkeypatch.setattr(cohort_file, "read_raw", lambda source, format: read.append(source.name) or 1 / 0)
    cohort = read_cohort(write(folder, HEADER + ROWS))
    assert read == []
    with pytest.raises(ZeroDivisionError):
        cohort.read("B1")
    assert read == ["B1"]


def test_entries_travel_to_other_processes(folder):
    cohort = pickle.loads(pickle.dumps(read_cohort(write(folder, HEADER + ROWS))))
    assert cohort.read("A2").name == "A2"


def test_controls_reach_the_reader(folder):
    made = made_up()
    made.genes[3] = "BLANK_3"
    write_legacy(folder / "st", made, "A1")
    path = write(folder, HEADER + ROWS)
    assert "BLANK_3" not in read_cohort(path).read("A1").genes
    assert "BLANK_3" in read_cohort(path, controls="keep").read("A1").genes


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (("section,patient", "section,person"), BadInput, "cohort.csv lacks the column.s. patient"),
        (("counts,", "countz,"), BadInput, "lacks the column.s. counts"),
        (("A2,A,,", "A1,A,,"), BadOption, r"line 3 \(A1\): section is 'A1'; wanted a name of its own \(.*line 2"),
        (("A2,A,,", "A2,,,"), BadOption, r"line 3 \(A2\): patient is ''; wanted a name"),
        (("A2,A,,", ",A,,"), BadOption, "line 3: section is ''; wanted a name"),
        (("B,visium", "B,vizium"), BadInput, r"line 4 \(B1\): .* there is no format 'vizium'"),
        (
            ("st/A2_counts", "st/A9_counts"),
            MissingInput,
            r"line 3 \(A2\): The counts .*A9_counts.tsv.gz does not exist",
        ),
        (("fullres.png", "full.png"), MissingInput, r"line 4 \(B1\): The image .*full.png does not exist"),
        (("st/A1_spots.tsv", "st/A7_spots.tsv"), MissingInput, r"line 2 \(A1\): The spot file .* does not exist"),
        (("st/A1.png,4,", "st/A1.png,four,"), BadOption, r"line 2 \(A1\): mpp is 'four'; wanted a number"),
        (("st/A1.png,4,", "st/A1.png,-4,"), BadOption, r"line 2 \(A1\): mpp is '-4'; wanted a number"),
        (("4,100,", "4,0,"), BadOption, r"line 2 \(A1\): spot_diameter_um is '0'"),
        (("st/A2_counts.tsv.gz,st/A2_spots.tsv", "st/A1_counts.tsv.gz,st/A1_spots.tsv"), BadOption, "entered once"),
        (("hest,", ","), BadOption, r"line 5 \(H1\): counts is ''; wanted the path"),
        (("hest,", "st,"), BadInput, r"line 5 \(H1\): .*st: no reader recognises it"),
    ],
)
def test_faults_are_named_by_line_before_anything_is_read(folder, monkeypatch, change, error, said):
    monkeypatch.setattr(cohort_file, "read_raw", lambda *args: pytest.fail("a section was read"))
    text = HEADER + ROWS
    assert change[0] in text
    with pytest.raises(error, match=said):
        read_cohort(write(folder, text.replace(*change, 1)))


def test_several_faults_are_counted_and_all_listed(folder):
    text = (HEADER + ROWS).replace("st/A1.png,4,", "st/A1.png,four,").replace("fullres", "full")
    path = write(folder, text)
    with pytest.raises(BadOption, match=r"mpp is 'four'.*\(1 more problem\(s\): cmrcnet inspect .*cohort.csv\)"):
        read_cohort(path)
    problems = [str(problem) for row in cohort_rows(path) for problem in row.problems]
    assert len(problems) == 2 and "line 2 (A1)" in problems[0] and "line 4 (B1)" in problems[1]


def test_no_cohort_at_all(tmp_path):
    with pytest.raises(MissingInput, match=r"does not exist"):
        read_cohort(tmp_path / "cohort.csv")
    with pytest.raises(BadInput, match=r"empty"):
        read_cohort(write(tmp_path, ""))
    with pytest.raises(TooFew, match=r"0 sections in .*cohort.csv, but at least 1"):
        read_cohort(write(tmp_path, HEADER))
    with pytest.raises(BadInput, match=r"no UTF-8 text"):
        read_cohort(write(tmp_path, HEADER + "\u00c4,A,,x,,,,,\n", encoding="latin-1"))


def test_faults_inside_the_counts_show_when_the_section_is_read(folder):
    made = made_up()
    made.counts[2, 2] = -5
    write_legacy(folder / "st", made, "A2")
    cohort = read_cohort(write(folder, HEADER + ROWS))
    assert len(cohort.read("A1").spots) == 30
    with pytest.raises(SectionError, match=r"counts of A2"):
        cohort.read("A2")


def test_the_real_cohorts(her2st_csv, als_csv):
    her2st, als = read_cohort(her2st_csv), read_cohort(als_csv)
    assert her2st.patients == ("B", "C") and als.patients == ("765", "794", "652", "635")
    assert [len(section.spots) for section in her2st] == [283, 187, 180, 184, 178]
    spots = [len(section.spots) for section in als]
    assert sum(spots) == 638 and min(spots) == 34 and max(spots) == 99
    section = als.read("CN67_E2")
    assert section.metadata["condition"] == "wild type, day 120"
    assert not any(gene.startswith("__") for gene in section.genes)
    assert np.all(section.counts.sum(axis=1) > 0)


def test_errors_keep_their_kind_and_sentence_on_the_way():
    error = MissingInput("a.jpg", "The image")
    told = cohort_file.located(error, "cohort.csv, line 2 (A)", " And more.")
    assert type(told) is MissingInput and str(told) == f"cohort.csv, line 2 (A): {error} And more."
    assert str(error) == "The image a.jpg does not exist; check the path."
    again = pickle.loads(pickle.dumps(told))
    assert type(again) is MissingInput and str(again) == str(told)


def test_names_stay_text(folder):
    odd = ["S24/01187", "007", "NA", "=1+1"]
    rows = [row.split(",", 1)[1] for row in ROWS.strip().split("\n")]
    text = HEADER + "\n".join(f'"{name}",{row}' for name, row in zip(odd, rows, strict=True))
    text = text.replace('"007",A', '"Müller, A",1E5').replace('"NA",B', '"NA",NA').replace(",C,", ",07,")
    cohort = read_cohort(write(folder, text))
    assert cohort.sections == ("S24/01187", "Müller, A", "NA", "=1+1")
    assert cohort.patients == ("A", "1E5", "NA", "07")
    assert [section.name for section in cohort.only(cohort.sections[:3])] == list(cohort.sections[:3])


def test_na_states_nothing_in_optional_columns(folder):
    text = HEADER.replace("disease", "disease,regions,library")
    text += "A2,A,NA,st/A2_counts.tsv.gz,n/a,NA,4,nan,NA,NA,NA\n"
    (section,) = read_cohort(write(folder, text))
    assert section.spots.diameter_um == 100 and section.metadata["disease"] == "NA"
    with pytest.raises(TooFew, match=r"sections of cohort.csv name a table of regions"):
        read_cohort_regions(folder / "cohort.csv")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_cohort_file_in_every_encoding(folder, end, encoding):
    path = write(folder, (HEADER + ROWS).replace("\n", end), encoding=encoding)
    assert read_cohort(path).sections == ("A1", "A2", "B1", "H1")
    assert cohort_file.is_cohort_file(path)


def test_a_cohort_cut_short_is_refused(folder):
    text = HEADER + ROWS
    cut = text.replace("A2,A", '"A2,A')
    with pytest.raises(BadInput, match=r"line 3: unexpected end of data; is a quote left open"):
        read_cohort(write(folder, cut))
    with pytest.raises(BadInput, match=r"line 3 holds a quoted cell with a line end in it"):
        read_cohort(write(folder, cut.replace("B1,B", 'B1",B')))
    with pytest.raises(BadInput, match=r"line 3 has 5 cells, not 9"):
        read_cohort(write(folder, text.replace(",st/A2.png,4,,", "")))


@pytest.mark.parametrize("column", ["section", "patient"])
def test_a_name_that_makes_no_file_name_is_a_problem(folder, column):
    long = "x" * 300
    text = HEADER + (ROWS.replace("A1,A", f"{long},A") if column == "section" else ROWS.replace("A1,A,", f"A1,{long},"))
    with pytest.raises(BadOption, match=rf"line 2 .*{column}: name is 'x+\.\.\.'; wanted 1 to 200 characters"):
        read_cohort(write(folder, text))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=4, unique_by=lambda pair: pair[0]))
def test_every_name_comes_back_from_a_cohort_file(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("cohort") / "cohort.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["section", "patient", "counts"])
        writer.writerows([*pair, "absent"] for pair in pairs)
    rows = cohort_rows(path)
    assert [(row.source.name, row.patient) for row in rows] == pairs
    assert [name_of_file(file_name(row.source.name)) for row in rows] == [name for name, _ in pairs]
