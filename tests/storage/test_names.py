"""Any name of a section or patient becomes one file name and comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrcnet.errors import BadInput, BadOption
from cmrcnet.storage.names import LONGEST, file_name, name_of_file

ODD = [
    "S24/01187", "Müller, A", "007", "07", "NA", "1E5", "=1+1", " x ", ".", "..", ".hidden", "a.", "a/../b", "C:\\x",
    "%2F", "a%", "con", "NUL.x", "日本", "a\nb", "a\tb", "nan", "~", "-x", "é", "e\u0301",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_names_come_back(name):
    safe = file_name(name)
    assert name_of_file(safe) == name
    assert not set(safe) & set('/\\:*?"<>|\n\t\0')
    assert safe[0] not in ". " and safe[-1] not in ". "


@given(st.text(st.characters(), min_size=1, max_size=20))
def test_every_name_comes_back_from_a_file_of_its_own(name):
    safe = file_name(name)
    assert name_of_file(safe) == name
    assert safe.isascii() and safe.isprintable() and "/" not in safe and not safe.startswith(".")


@given(st.lists(st.text(max_size=8).filter(bool), min_size=2, max_size=6, unique=True))
def test_two_names_never_share_a_file(names):
    assert len(set(map(file_name, names))) == len(names)


@pytest.mark.parametrize("name", ["", "x" * (LONGEST + 1), "ü" * 40])
def test_a_name_that_makes_no_file_name_is_refused(name):
    with pytest.raises(BadOption, match="1 to 200 characters"):
        file_name(name)


def test_the_longest_name_can_be_written(tmp_path):
    path = tmp_path / f"{file_name('x' * LONGEST)}_counts.tsv.gz"
    path.touch()
    assert name_of_file(path.name.removesuffix("_counts.tsv.gz")) == "x" * LONGEST


def test_a_foreign_file_name_is_refused():
    with pytest.raises(BadInput, match="no UTF-8"):
        name_of_file("%FF")
