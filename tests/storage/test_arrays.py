"""One array in one file: whole or absent."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrcnet.errors import BadInput, NoSpace, Unwritable
from cmrcnet.storage.arrays import open_array, write_array


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(7, 3, 2)).astype(np.float16)


def test_what_is_written_is_mapped(tmp_path, values):
    written = write_array(tmp_path / "a.npy", values.shape, np.float16, [values[:4], values[4:]])
    assert not written.flags.writeable
    np.testing.assert_array_equal(written, values)
    np.testing.assert_array_equal(open_array(tmp_path / "a.npy", None, np.float16), values)


def test_any_numpy_reads_the_file(tmp_path, values):
    write_array(tmp_path / "a.npy", values.shape, np.float16, [values])
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), values)


@settings(max_examples=15, deadline=None)
@given(shape=st.lists(st.integers(0, 4), min_size=1, max_size=3), kind=st.sampled_from(["u1", "f2", "f4"]))
def test_every_shape_comes_back(tmp_path_factory, shape, kind):
    path = tmp_path_factory.mktemp("shapes") / "a.npy"
    values = np.arange(np.prod(shape)).reshape(shape).astype(kind)
    write_array(path, tuple(shape), np.dtype(kind), list(values[:, None]) if len(shape) > 1 else [values])
    np.testing.assert_array_equal(open_array(path, tuple(shape), np.dtype(kind)), values)


def test_an_absent_file_another_shape_and_another_type_are_absent(tmp_path, values):
    path = tmp_path / "a.npy"
    assert open_array(path, None, np.float16) is None
    write_array(path, values.shape, np.float16, [values])
    assert open_array(path, (7, 2, 3), np.float16) is None
    assert open_array(path, None, np.uint8) is None


@pytest.mark.parametrize("keep", [0, 5, 40, -1, -12, -20])
def test_a_truncated_file_is_absent(tmp_path, values, keep):
    path = tmp_path / "a.npy"
    write_array(path, values.shape, np.float16, [values])
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    assert open_array(path, None, np.float16) is None


@pytest.mark.parametrize("place", [3, -1, -13, -60])
def test_a_changed_byte_is_noticed(tmp_path, values, place):
    path = tmp_path / "a.npy"
    write_array(path, values.shape, np.float16, [values])
    content = bytearray(path.read_bytes())
    content[place] ^= 0x40
    path.write_bytes(content)
    assert open_array(path, None, np.float16) is None


def test_any_flipped_bit_is_noticed(tmp_path, values):
    path = tmp_path / "a.npy"
    write_array(path, values.shape, np.float16, [values])
    whole = path.read_bytes()
    taken = []
    for place in range(8 * len(whole)):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        found = open_array(path, None, np.float16)
        taken += [place] if found is not None else []
    assert taken == []


def test_an_array_under_another_name_is_absent(tmp_path, values):
    """Two entries of one shape that were exchanged."""
    write_array(tmp_path / "a.npy", values.shape, np.float16, [values])
    (tmp_path / "a.npy").rename(tmp_path / "b.npy")
    assert open_array(tmp_path / "b.npy", None, np.float16) is None


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_a_refusal_of_the_system_is_not_called_damage(tmp_path, values, monkeypatch, number):
    write_array(tmp_path / "a.npy", values.shape, np.float16, [values])

    def refuse(*_, **__):
        raise OSError(number, "refused")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(OSError, match="refused"):
        open_array(tmp_path / "a.npy", None, np.float16)


def test_only_a_large_array_holds_a_file_handle(tmp_path):
    small, large = np.zeros(100, np.float32), np.zeros(100_000, np.float32)
    assert not isinstance(write_array(tmp_path / "a.npy", small.shape, small.dtype, [small]), np.memmap)
    assert isinstance(write_array(tmp_path / "b.npy", large.shape, large.dtype, [large]), np.memmap)


def test_a_foreign_file_is_absent(tmp_path):
    (tmp_path / "a.npy").write_text("not an array")
    np.save(tmp_path / "b.npy", np.zeros(3, np.float16))  # without our tail: nobody vouches for it
    assert open_array(tmp_path / "a.npy", None, np.float16) is None
    assert open_array(tmp_path / "b.npy", None, np.float16) is None


@pytest.mark.parametrize(
    ("fault", "seen", "sentence"),
    [
        (OSError(errno.ENOSPC, "full"), NoSpace, "The disk is full"),
        (OSError(errno.EACCES, "no"), Unwritable, "cannot be written"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
    ],
)
def test_a_fault_while_writing_leaves_nothing(tmp_path, values, fault, seen, sentence):
    def blocks():
        yield values[:3]
        raise fault

    with pytest.raises(seen, match=sentence):
        write_array(tmp_path / "a.npy", values.shape, np.float16, blocks())
    assert list(tmp_path.iterdir()) == []


def test_a_missing_row_is_not_written(tmp_path, values):
    with pytest.raises(RuntimeError, match="4 rows written, 7 promised"):
        write_array(tmp_path / "a.npy", values.shape, np.float16, [values[:4]])
    assert list(tmp_path.iterdir()) == []


def test_a_map_outlives_its_file(tmp_path, values):
    """Another process may remove an entry the moment it has its name."""
    values = np.tile(values, (10_000, 1, 1))
    written = write_array(tmp_path / "a.npy", values.shape, np.float16, [values])
    (tmp_path / "a.npy").unlink()
    np.testing.assert_array_equal(written, values)


def test_a_disk_that_gives_back_something_else_is_noticed(tmp_path, values, monkeypatch):
    monkeypatch.setattr("cmrcnet.storage.arrays._is_whole", lambda *_: False)
    with pytest.raises(BadInput, match="does not hold what was written"):
        write_array(tmp_path / "a.npy", values.shape, np.float16, [values])


@pytest.mark.parametrize("kind", ["pipe", "loop", "folder"])
def test_what_is_no_file_counts_as_absent(tmp_path, kind):
    """A named pipe in its place would wait for ever for a writer."""
    path = tmp_path / "a.npy"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.mkdir()
    assert open_array(path, None, np.dtype(np.float32)) is None
