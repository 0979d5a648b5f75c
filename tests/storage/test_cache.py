"""The cache's folder: where it lies, how large it may grow."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from cmrcnet.errors import BadOption
from cmrcnet.storage.cache import IN_USE_SECONDS, TokenCache
from cmrcnet.storage.ownership import temporary_path
from tests.features.conftest import files_in


@pytest.fixture
def cache(tmp_path) -> TokenCache:
    return TokenCache(tmp_path / "cache")


def put(cache: TokenCache, name: str, age_hours: float = 0.0) -> None:
    values = np.zeros((10, 100), np.float16)
    cache.put("tokens", name, values.shape, np.float16, [values])
    then = time.time() - age_hours * 3600
    os.utime(cache.folder / "tokens" / name[:2] / f"{name}.npy", (then, then))


def test_the_default_lies_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("CMRCNET_CACHE", str(tmp_path / "here"))
    monkeypatch.setenv("CMRCNET_CACHE_GB", "2.5")
    cache = TokenCache.default()
    assert (cache.folder, cache.most_bytes) == (tmp_path / "here", 2_500_000_000)
    assert not cache.folder.exists()  # asking makes nothing


def test_without_the_variable_it_lies_among_the_users_caches(monkeypatch):
    import platformdirs

    monkeypatch.delenv("CMRCNET_CACHE")
    monkeypatch.delenv("CMRCNET_CACHE_GB", raising=False)
    cache = TokenCache.default()
    assert str(cache.folder) == platformdirs.user_cache_dir("cmrcnet")
    assert cache.most_bytes == 64_000_000_000


@pytest.mark.parametrize("size", ["much", "0", "-3", "nan"])
def test_a_size_that_is_none_is_refused(monkeypatch, size):
    monkeypatch.setenv("CMRCNET_CACHE_GB", size)
    with pytest.raises(BadOption, match="CMRCNET_CACHE_GB"):
        TokenCache.default()


def test_size_and_clear(cache):
    assert cache.size_bytes() == 0
    put(cache, "aa")
    put(cache, "bb")
    assert cache.size_bytes() > 2 * 2000
    assert cache.clear() > 4000
    assert cache.size_bytes() == 0


def test_what_was_used_longest_ago_goes_first(cache):
    for name, age in (("oldest", 30), ("older", 20), ("old", 10)):
        put(cache, name, age)
    one = cache.size_bytes() // 3
    assert cache.trim(2 * one) == one
    assert [path.stem for path in files_in(cache, "tokens")] == ["old", "older"]


def test_use_counts_not_age(cache):
    put(cache, "oldest", 30)
    put(cache, "older", 20)
    assert cache.get("tokens", "oldest", (10, 100), np.float16) is not None
    cache.trim(cache.size_bytes() - 1)
    assert [path.stem for path in files_in(cache, "tokens")] == ["oldest"]


def test_what_a_running_job_may_map_stays(cache):
    put(cache, "mapped", 0.9 * IN_USE_SECONDS / 3600)
    assert cache.trim(0) == 0


def test_a_limit_is_kept_while_writing(tmp_path):
    cache = TokenCache(tmp_path, most_bytes=5000)
    for number in range(6):
        put(cache, f"n{number}", 10 - number)
    put(cache, "last")
    assert cache.size_bytes() <= 5000
    assert cache.get("tokens", "last", None, np.float16) is not None


def test_writing_looks_through_the_folder_once_a_hundredth_of_the_limit(tmp_path, monkeypatch):
    """And opens no entry that it does not remove: otherwise a cohort's features cost the square of their number."""
    for name in ("oldest", "older"):
        put(TokenCache(tmp_path), name, 30)
    one = TokenCache(tmp_path).size_bytes() // 2
    walks, opened, walk, reads = [], [], os.walk, Path.open
    monkeypatch.setattr(os, "walk", lambda path: walks.append(path) or walk(path))
    monkeypatch.setattr(Path, "open", lambda path, *how: opened.append(path.name) or reads(path, *how))
    cache = TokenCache(tmp_path, most_bytes=one * 1000)
    for number in range(35):
        put(cache, f"n{number}")
    assert len(walks) == 2 * 4  # both kinds; the first write, and every tenth or eleventh
    assert not [name for name in opened if not name.startswith(".")]  # but for those that are written
    small = TokenCache(tmp_path, most_bytes=one * 36)
    put(small, "last")
    assert sorted(name for name in opened if not name.startswith(".")) == ["older.npy", "oldest.npy"]
    assert cache.get("tokens", "oldest", None, np.float16) is None


def test_what_killed_processes_left_goes_and_what_others_write_stays(cache):
    put(cache, "aa")
    alive = temporary_path(cache.folder / "tokens" / "aa" / "x.npy", keep_suffix=True)
    dead = alive.with_name(alive.name.replace(f"-{os.getpid():x}-", f"-{2**30:x}-"))
    for path in (alive, dead):
        path.write_bytes(b"half")
    cache.trim(10**9)
    assert sorted(path.name for path in alive.parent.iterdir()) == [alive.name, "aa.npy"]


def test_other_peoples_files_in_the_folder_are_left_alone(cache):
    cache.folder.mkdir()
    (cache.folder / "thesis.docx").write_text("years")
    put(cache, "aa", 100)
    assert cache.size_bytes() < 3000
    cache.clear()
    assert (cache.folder / "thesis.docx").exists()


@pytest.fixture
def unwritable(tmp_path) -> TokenCache:
    """In a place where no folder can be made, for root neither."""
    (tmp_path / "file").write_text("no folder")
    return TokenCache(tmp_path / "file" / "cache")


def test_without_a_folder_to_write_the_work_goes_on_and_says_so_once(unwritable, caplog):
    values = np.arange(12, dtype=np.float16).reshape(3, 4)
    with caplog.at_level("WARNING", "cmrcnet"):
        for name in ("aa", "bb"):
            assert unwritable.get("tokens", name, values.shape, np.float16) is None
            unwritable.put("tokens", name, values.shape, np.float16, iter([values[:2], values[2:]]))
    np.testing.assert_array_equal(unwritable.get("tokens", "aa", values.shape, np.float16), values)
    assert len(caplog.records) == 1 and "set CMRCNET_CACHE to a folder that you may write to" in caplog.text


def test_a_read_only_cache_is_still_read(tmp_path, monkeypatch):
    cache = TokenCache(tmp_path / "cache")
    put(cache, "known")
    monkeypatch.setattr("cmrcnet.storage.cache.os.access", lambda *_: False)
    before = files_in(cache, "tokens")
    put_here = TokenCache(tmp_path / "cache")
    values = np.ones((2, 2), np.float16)
    put_here.put("tokens", "new", values.shape, np.float16, [values])
    assert put_here.get("tokens", "known", (10, 100), np.float16) is not None
    assert put_here.get("tokens", "new", (2, 2), np.float16) is not None
    assert files_in(cache, "tokens") == before


def test_what_is_not_an_entry_of_ours_is_never_removed(tmp_path):
    cache = TokenCache(tmp_path / "cache")
    put(cache, "aabb", 30)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (cache.folder / "tokens" / "aa" / "notes.txt").write_text("theirs")
    np.save(cache.folder / "tokens" / "aa" / "aacc.npy", np.zeros(3))
    put(TokenCache(theirs), "aadd", 30)
    (cache.folder / "patches").symlink_to(theirs / "tokens")
    cache.clear()
    assert sorted(path.name for path in (cache.folder / "tokens" / "aa").iterdir()) == ["aacc.npy", "notes.txt"]
    assert [path.stem for path in files_in(TokenCache(theirs), "tokens")] == ["aadd"]


def test_an_entry_that_may_not_be_read_counts_as_absent(cache, monkeypatch):
    put(cache, "aabb")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("cmrcnet.storage.cache.open_array", refuse)
    assert cache.get("tokens", "aabb", (10, 100), np.float16) is None
