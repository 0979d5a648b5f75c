"""Small tables, also as Excel writes them."""

from __future__ import annotations

import contextlib
import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrcnet.errors import BadInput, MissingInput
from cmrcnet.readers.tables import read_count_table, read_table

PLAIN = "spot,pixel_x\na,1.5\nb,2\n"


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.encode(),
        PLAIN.encode("utf-8-sig"),
        PLAIN.encode("utf-16"),
        PLAIN.replace(",", "\t").encode(),
        PLAIN.replace(",", ";").replace(".", ",").encode("utf-8-sig"),
        PLAIN.replace("\n", "\r\n").encode(),
        b"\n" + PLAIN.replace("\n", "\n\n").encode(),
        b"spot,pixel_x,,\na,1.5,,\nb,2,,\n,,,\n",
        b'"spot","pixel_x"\n"a","1.5"\n"b","2"\n',
        gzip.compress(PLAIN.encode(), mtime=0),
    ],
)
def test_every_way_to_write_the_same_table(tmp_path, content):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    table = read_table(path, "a table")
    assert table.columns == ("spot", "pixel_x")
    assert table.text("spot") == ["a", "b"]
    np.testing.assert_array_equal(table.numbers("pixel_x"), [1.5, 2.0])


def test_a_table_without_a_header(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,1\nb,2\n")
    table = read_table(path, "a table", columns=("spot", "x"))
    assert table.text("spot") == ["a", "b"] and table.lines == (1, 2)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"a,b\n1,2,3\n", "line 2 has 3 cells, not 2"),
        (b"a,b,c\n1,2,3\n\n1,2\n", "line 4 has 2 cells, not 3"),
        (b'a,b\n1,2\n"1,2\n3,4\n', "line 3: unexpected end of data; is a quote left open"),
        (b'a,b\n"1,2\n3",4\n5,6\n', "line 2 holds a quoted cell with a line end in it"),
        (b'a,b\n"1\n2",4\n', "line 2 holds a quoted cell with a line end in it"),
        (b'a,b\n"1"x,4\n', "line 2: ',' expected after '\"'; is a quote left open"),
        (b'a,b\n"' + b"x" * 200_000, "line 2: field larger than field limit"),
        (b"a,a\n1,2\n", "two columns are named 'a'"),
        ("a,b\nH\u00e4ma,2\n".encode("latin-1"), "CSV UTF-8"),
        (b"\x89PNG\0\0\0", "no UTF-8 text"),
        (b"a,b\n1\0,2\n", "line 2 holds a NUL byte"),
        (gzip.compress(PLAIN.encode() * 99, mtime=0)[:-20], "truncated or damaged"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, content, said):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=said):
        read_table(path, "a table")


def test_cells_that_are_no_numbers_are_named_by_line(tmp_path):
    path = tmp_path / "t.csv"
    for cell in ("1_000", "\u0661", "1e400", "nan", "0x1F", "1 2", "9" * 5000):
        path.write_text(f"spot,pixel_x\na,1\nb,{cell}\n", encoding="utf-8")
        with pytest.raises(BadInput, match=r"line 3 has .* as pixel_x, which is no number"):
            read_table(path, "a table").numbers("pixel_x")
    path.write_text("spot,pixel_x\na,1\nb,two\nc,inf\n")
    table = read_table(path, "a table")
    with pytest.raises(BadInput, match=r"line 3 has 'two' as pixel_x, which is no number"):
        table.numbers("pixel_x")
    with pytest.raises(BadInput, match=r"lacks the column.s. pixel_y; it has: spot, pixel_x"):
        table.numbers("pixel_y")
    with pytest.raises(MissingInput, match=r"does not exist"):
        read_table(tmp_path / "absent.csv", "a table")


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60) | st.text('ab,;\t"\r\n\0 ', max_size=60).map(str.encode))
def test_any_bytes_are_a_table_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "t.csv"
    path.write_bytes(content)
    for read in (lambda: read_table(path, "a table"), lambda: read_count_table(path)):
        with contextlib.suppress(BadInput):
            read()
    try:
        table = read_table(path, "a table")
    except BadInput:
        return
    assert all(set(row) == set(table.columns) for row in table.rows)
