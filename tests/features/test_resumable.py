"""Features kept chunk by chunk: whatever happens, no chunk is done twice, none is missing, and none is wrong."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrcnet.errors import NoSpace
from cmrcnet.features import resumable
from cmrcnet.features.resumable import ResumableFeatures, chunk_slices

SHAPE = (2, 11, 3)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(resumable, "CHUNK", 4)


def values_of(rows: slice, layer: int) -> np.ndarray:
    """Numbers that tell their own place."""
    return np.arange(rows.start, rows.stop)[:, None] + 100.0 * layer + np.array([0, 0.25, 0.5])


def fill(tmp: ResumableFeatures, most: int = 99) -> int:
    """Compute what is missing, at most so many chunks; returns how many."""
    done = 0
    for layer in range(SHAPE[0]):
        for rows in chunk_slices(SHAPE[1]):
            if not tmp.has(rows, layer) and done < most:
                tmp.keep(rows, values_of(rows, layer), layer)
                done += 1
    return done


def whole() -> np.ndarray:
    return np.stack([values_of(slice(0, SHAPE[1]), layer) for layer in range(SHAPE[0])], axis=1).astype(np.float32)


def test_parts_are_all_places_once():
    assert [(rows.start, rows.stop) for rows in chunk_slices(11)] == [(0, 4), (4, 8), (8, 11)]
    assert list(chunk_slices(0)) == []


def test_in_memory_and_in_a_folder_it_holds_the_same(tmp_path):
    for tmp in (ResumableFeatures(SHAPE), ResumableFeatures(SHAPE, "a", tmp_path / "tmp")):
        assert fill(tmp) == 6 and tmp.done.all()
        np.testing.assert_array_equal(tmp.values(), whole())


@settings(max_examples=20, deadline=None)
@given(stops=st.lists(st.integers(0, 3), max_size=6))
def test_stopped_anywhere_and_however_often_each_part_is_done_once(tmp_path_factory, stops):
    folder, done = tmp_path_factory.mktemp("tmp"), 0
    for most in stops:
        done += fill(ResumableFeatures(SHAPE, "a", folder), most)
    tmp = ResumableFeatures(SHAPE, "a", folder)
    assert done + fill(tmp) == 6
    np.testing.assert_array_equal(tmp.values(), whole())


def test_a_damaged_part_is_done_again_and_no_other(tmp_path):
    fill(ResumableFeatures(SHAPE, "a", tmp_path))
    content = bytearray((tmp_path / "features.bin").read_bytes())
    content[4 * 3 * (11 + 5)] ^= 0xFF  # layer 1, place 5
    (tmp_path / "features.bin").write_bytes(content)
    tmp = ResumableFeatures(SHAPE, "a", tmp_path)
    assert tmp.done.tolist() == [[True] * 3, [True, False, True]]
    assert fill(tmp) == 1
    np.testing.assert_array_equal(tmp.values(), whole())


@pytest.mark.parametrize("other", ["name", "shape", "features.bin", "chunks.bin", "features.json"])
def test_a_folder_of_something_else_is_begun_anew(tmp_path, other):
    fill(ResumableFeatures(SHAPE, "a", tmp_path))
    if (tmp_path / other).exists():
        (tmp_path / other).write_bytes((tmp_path / other).read_bytes()[:-1])
    shape = (2, 10, 3) if other == "shape" else SHAPE
    assert not ResumableFeatures(shape, "b" if other == "name" else "a", tmp_path).done.any()


def test_a_description_that_cannot_be_parsed_begins_anew(tmp_path):
    fill(ResumableFeatures(SHAPE, "a", tmp_path))
    (tmp_path / "features.json").write_text("[" * 100_000)
    assert not ResumableFeatures(SHAPE, "a", tmp_path).done.any()


def test_a_disk_without_room_says_so_at_once(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(NoSpace):
        ResumableFeatures(SHAPE, "a", tmp_path / "tmp")
