"""Text of others: every encoding of the same content is the same, and nothing is read without bounds."""

from __future__ import annotations

import gzip
import os

import numpy as np
import pytest

from cmrcnet.errors import BadInput, MissingInput
from cmrcnet.readers.registry import read_section
from cmrcnet.readers.tables import read_count_table, read_table
from cmrcnet.readers.text_files import FREE_BYTES, open_text, read_bytes, read_json, read_text
from tests.readers.written_formats import made_up, write_legacy

TEXT = "gene\nMbp\nÄ\n"
WAYS = [
    TEXT.encode(),
    TEXT.encode("utf-8-sig"),
    TEXT.encode("utf-16"),
    TEXT.encode("utf-16-be").join([b"\xfe\xff", b""]),
    TEXT.replace("\n", "\r\n").encode(),
    TEXT.replace("\n", "\r").encode("utf-8-sig"),
    gzip.compress(TEXT.replace("\n", "\r").encode("utf-16"), mtime=0),
]


@pytest.mark.parametrize("content", WAYS)
def test_every_encoding_of_the_same_text(tmp_path, content):
    path = tmp_path / "t.txt"
    path.write_bytes(content)
    assert read_text(path, "The list") == TEXT
    with open_text(path, "The list") as file:
        assert file.read().replace(b"\r\n", b"\n").decode() == TEXT


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_count_table_in_every_encoding(tmp_path, ends, encoding, zipped):
    content = "\tÄ\tB\n1x1\t0\t300\n1x2\t7\t0\n".replace("\n", ends).encode(encoding)
    path = tmp_path / "c.tsv"
    path.write_bytes(gzip.compress(content) if zipped else content)
    table = read_count_table(path)
    assert table.rows == ("1x1", "1x2") and table.columns == ("Ä", "B")
    np.testing.assert_array_equal(table.values.toarray(), [[0, 300], [7, 0]])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (TEXT.encode("latin-1"), r"line 3 is no UTF-8 text .in Excel, save it as 'CSV UTF-8'."),
        (TEXT.encode("utf-16")[:-1], "no UTF-16 text"),
        (b"a\nb\0c\n", "line 2 holds a NUL byte"),
        (TEXT.encode("utf-16-le"), "NUL byte|no UTF-8"),
        (gzip.compress(TEXT.encode() * 99, mtime=0)[:-30], "as a gzip file: it is truncated or damaged"),
        (b"\x1f\x8bno gzip", "as a gzip file: it is truncated or damaged"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, content, said):
    path = tmp_path / "t.txt"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=said):
        read_text(path, "The list")


@pytest.mark.parametrize("read", [read_table, read_text, read_bytes, lambda path, what: read_count_table(path)])
def test_a_gzip_bomb_is_refused_in_bounded_memory(tmp_path, read):
    import resource

    path = tmp_path / "bomb.csv.gz"
    with gzip.open(path, "wb", compresslevel=6) as file:
        for _ in range(8 + FREE_BYTES // (1 << 20)):
            file.write(b"a,b\n" * (1 << 18))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadInput, match=r"more than 64 MB|unpacks to more than|holds 'b'"):
        read(path, "a table")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700_000


def test_one_endless_line_is_refused(tmp_path):
    path = tmp_path / "c.tsv"
    path.write_bytes(b"\tA\n1x1\t" + b"1" * (17 << 20))
    with pytest.raises(BadInput, match="a line holds more than 16 MB"):
        read_count_table(path, block_bytes=1 << 16)


def test_pipes_devices_and_names_that_cannot_be_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "gone.csv").symlink_to(tmp_path / "nowhere")
    for path, error, said in (
        (tmp_path / "pipe.csv", BadInput, "a pipe, socket or device, not an ordinary file"),
        ("/dev/zero", BadInput, "a pipe, socket or device, not an ordinary file"),
        (tmp_path, BadInput, "it is a folder, not an ordinary file"),
        (tmp_path / ("x" * 300), BadInput, "File name too long"),
        (tmp_path / "a\0b", BadInput, "null byte"),
        (tmp_path / "absent.csv", MissingInput, "does not exist; check the path"),
        (tmp_path / "gone.csv", MissingInput, "is a link to .*, which does not exist"),
    ):
        with pytest.raises(error, match=said):
            read_table(path, "a table")
        if path != tmp_path:
            with pytest.raises(error, match=said):
                read_section(path)


def test_a_cohort_names_files_that_cannot_be(tmp_path):
    counts = write_legacy(tmp_path, made_up())
    os.mkfifo(tmp_path / "pipe.tsv")
    with pytest.raises(BadInput, match="a pipe, socket or device"):
        read_section(counts, spots=tmp_path / "pipe.tsv", mpp=4.0)
    with pytest.raises(BadInput, match="File name too long"):
        read_section(counts, image=tmp_path / ("x" * 300), mpp=4.0)


@pytest.mark.parametrize(
    ("content", "said"),
    [("[" * 100_000, "recursion"), ("[1]", "it holds a list; wanted an object"), ("{", "Expecting property name")],
)
def test_json_that_is_no_object_is_refused(tmp_path, content, said):
    path = tmp_path / "t.json"
    path.write_text(content)
    with pytest.raises(BadInput, match=said):
        read_json(path, "The facts")
