"""Tables of patients: what is read as what, and what is refused."""

from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest

from cmrcnet.errors import BadInput, CmrcnetWarning, MissingInput
from cmrcnet.readers.patient_table import read_patients


def test_names_stay_text_and_numbers_become_numbers(tmp_path):
    path = tmp_path / "patients.csv.gz"
    path.write_bytes(gzip.compress(b"patient,months,site,grade\n007,1.5,A,2\n08,NA,,3\n"))
    table = read_patients(path)
    assert list(table["patient"]) == ["007", "08"]
    assert table["months"].tolist()[0] == 1.5 and np.isnan(table["months"][1])
    assert list(table["site"]) == ["A", None]
    assert table["grade"].dtype == np.float64


@pytest.mark.parametrize("header", ["slide, patient ,months", "Slide,PATIENT,months", '"slide","patient",months'])
def test_names_stay_text_however_the_header_is_written(tmp_path, header):
    path = tmp_path / "patients.csv"
    path.write_text(f"{header}\n 1e5,007 ,3\n01, 1,4\n")
    table = read_patients(path)
    assert list(table["slide"]) == ["1e5", "01"]
    assert list(table["patient"]) == ["007", "1"]
    assert table["months"].tolist() == [3, 4]


def test_semicolons_have_decimal_commas(tmp_path):
    path = tmp_path / "patients.csv"
    path.write_text("patient;months\nA;1,5\n")
    assert read_patients(path)["months"].tolist() == [1.5]


def test_parquet_is_read_alike(tmp_path):
    path = tmp_path / "patients.parquet"
    pd.DataFrame({"patient": [1, 2], "months": [3, 4], "dead": [True, False]}).to_parquet(path)
    table = read_patients(path)
    assert list(table["patient"]) == ["1", "2"]
    assert table["dead"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("case,x\na,1\n", "lacks the column"),
        ("patient,x\n", "no rows"),
        ("patient,x,x\na,1,2\n", "'x' is there twice"),
        ("patient,x\na,1\nb\n", "line 3 has 1 cells"),
        ("patient,x\na,1\nb,1,2\n", "line 3 has 3 cells"),
        ("patient,x\na,1\n,2\n", "row 2 below the header names no patient"),
        ("patient,x\na,inf\n", "infinite"),
        ("patient,slide,x\na,s1,1\nb,,2\n", "row 2 below the header names no slide"),
        ("patient,Patient,x\na,b,1\n", "'patient' is there twice"),
    ],
)
def test_unclear_tables_are_refused(tmp_path, text, words):
    path = tmp_path / "patients.csv"
    path.write_text(text)
    with pytest.raises(BadInput, match=words):
        read_patients(path)


def test_a_missing_or_broken_file_is_refused(tmp_path):
    with pytest.raises(MissingInput):
        read_patients(tmp_path / "none.csv")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(BadInput, match="parquet"):
        read_patients(tmp_path / "broken.parquet")


@pytest.mark.parametrize(("cell", "numbers"), [("unknown", 3), ('"45,5"', 3)])
def test_numbers_with_one_word_are_categories_with_a_warning(tmp_path, cell, numbers):
    path = tmp_path / "patients.csv"
    path.write_text(f"patient,age\na,60\nb,{cell}\nc,61\nd,\ne,62\n")
    with pytest.warns(CmrcnetWarning, match=f"The column age .* {numbers} of its cells are numbers, but one is '"):
        table = read_patients(path)
    assert table["age"].tolist()[0] == "60" and table["age"].isna().sum() == 1


def test_codes_with_few_numbers_are_categories_without_a_word(tmp_path, recwarn):
    path = tmp_path / "patients.csv"
    path.write_text("patient,stage\na,1\nb,1b\nc,2a\nd,3c\n")
    assert read_patients(path)["stage"].tolist() == ["1", "1b", "2a", "3c"]
    assert not recwarn.list
