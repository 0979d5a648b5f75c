"""Counts as text, read sparse: the fast way gives what pandas gives, and damage is named."""

from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrcnet.errors import BadInput, MissingInput
from cmrcnet.readers.tables import first_names, read_count_table
from tests.readers.written_formats import cut


@pytest.mark.parametrize("name", ["C6", "B4"])
def test_her2st_as_pandas_reads_it(her2st_csv, name):
    path = her2st_csv.parent / f"{name}_counts.tsv.gz"
    ours, theirs = read_count_table(path), pd.read_csv(path, sep="\t", index_col=0)
    assert list(ours.rows) == list(theirs.index)
    assert list(ours.columns) == list(theirs.columns)
    np.testing.assert_array_equal(ours.values.toarray(), theirs.to_numpy())
    assert ours.values.nnz == int((theirs.to_numpy() != 0).sum())


def test_names_that_repeat_are_left_as_they_are(als_csv):
    path = als_csv.parent / "CN63_E2_counts.tsv.gz"
    with gzip.open(path, "rt") as file:
        header = file.readline().rstrip("\n").split("\t")[1:]
    table = read_count_table(path)
    assert list(table.columns) == header
    assert len(set(header)) < len(header)  # pandas would have renamed them


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(
        st.lists(st.sampled_from([0, 1, 9, 10, 123, 40000, 0.5, -3, 1e-3]), min_size=3, max_size=3),
        min_size=1,
        max_size=9,
    ),
    block=st.sampled_from([1, 20, 10_000]),
    sep=st.sampled_from(["\t", ",", ";"]),
    end=st.sampled_from(["\n", "\r\n"]),
    last_end=st.booleans(),
)
def test_blocks_separators_and_line_ends_change_no_number(tmp_path_factory, values, block, sep, end, last_end):
    lines = [sep.join(["", "a", "b", "c"])] + [sep.join([f"{i}x1", *map(str, row)]) for i, row in enumerate(values)]
    path = tmp_path_factory.mktemp("counts") / "c.tsv"
    path.write_bytes((end.join(lines) + (end if last_end else "")).encode())
    table = read_count_table(path, block_bytes=block)
    np.testing.assert_array_equal(table.values.toarray(), np.array(values, dtype=float))
    assert table.rows == tuple(f"{i}x1" for i in range(len(values)))
    assert table.columns == ("a", "b", "c")


def test_a_header_as_r_writes_it(tmp_path):
    path = tmp_path / "c.tsv"
    path.write_text('"A"\t"B"\n"1x1"\t5\t0\n"1x2"\t0\t70\n')
    table = read_count_table(path)
    assert (table.rows, table.columns) == (("1x1", "1x2"), ("A", "B"))
    assert table.values.toarray().tolist() == [[5, 0], [0, 70]]


def test_empty_lines_are_passed_over_and_missing_cells_are_nan(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text("id,A,B\n\n1x1,5,NA\n\n1x2,,0\n\n")
    values = read_count_table(path).values.toarray()
    np.testing.assert_array_equal(values, [[5, np.nan], [np.nan, 0]])


def test_first_names_are_found_without_reading_on(her2st_csv):
    rows, columns = first_names(her2st_csv.parent / "C6_counts.tsv.gz")
    assert rows == ["10x15", "10x16", "10x17", "10x18"]
    assert columns[0] == "FO538757.1"


def test_damage_is_named(tmp_path):
    path = tmp_path / "c.tsv"
    with pytest.raises(MissingInput, match=r"counts file .* does not exist"):
        read_count_table(path)
    path.write_text("id\tA\tB\n1x1\t5\t0\n1x2\t5\n")
    with pytest.raises(BadInput, match=r"row 2 has 2 cells, the first row 3; is it cut off"):
        read_count_table(path)
    path.write_text("id\tA\tB\n1x1\t5\tmany\n")
    with pytest.raises(BadInput, match=r"row 1 holds 'many', which is no number"):
        read_count_table(path)
    path.write_text("id\tA\tB\tC\tD\n1x1\t5\t1\n")
    with pytest.raises(BadInput, match=r"first line has 5 cells, the others 3"):
        read_count_table(path)
    path.write_text("id\tA\n")
    with pytest.raises(BadInput, match=r"holds no row"):
        read_count_table(path)
    path.write_text("nothing here\n")
    with pytest.raises(BadInput, match=r"fewer than two names"):
        read_count_table(path)
    path.write_bytes(b"id\t\xff\xfe\n1x1\t5\n")
    with pytest.raises(BadInput, match=r"UTF-8"):
        read_count_table(path)


def test_a_truncated_gzip_is_named(tmp_path):
    path = tmp_path / "c.tsv.gz"
    rng = np.random.default_rng(0)
    rows = ["\t".join(["1x1", *map(str, rng.integers(0, 99, 500))]) for _ in range(50)]
    with gzip.open(path, "wt") as file:
        file.write("\t".join(["", *(f"G{i}" for i in range(500))]) + "\n" + "\n".join(rows) + "\n")
    cut(path)
    with pytest.raises(BadInput, match=r"as a gzip file: it is truncated or damaged"):
        read_count_table(path)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("1x1\t1_0\t2\n", "row 1 holds '1_0', which is no number"),
        ("1x1\t1,5\t2\n", "row 1 holds '1,5', which is no number"),
        ("1x1\t1\t2\n1x2\t\x00\t2\n", "a NUL byte"),
    ],
)
def test_half_numbers_are_refused(tmp_path, rows, said):
    path = tmp_path / "c.tsv"
    path.write_text("\tA\tB\n" + rows)
    with pytest.raises(BadInput, match=said):
        read_count_table(path)


def test_decimal_commas_between_semicolons(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text(";A;B\n1x1;3,0;12,0\n")
    np.testing.assert_array_equal(read_count_table(path).values.toarray(), [[3, 12]])
