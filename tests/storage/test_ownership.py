"""Only what cmrcnet wrote and recognises is ever removed, and no link is followed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cmrcnet.storage.ownership import (
    ABANDONED_SECONDS,
    MARKER,
    foreign_files,
    is_abandoned,
    is_marked,
    mark_folder,
    remove_abandoned,
    remove_ours,
    temporary_folder,
    temporary_path,
)


def filled(folder: Path) -> Path:
    """A marked folder with a file, and a file in a folder."""
    (folder / "parts").mkdir(parents=True)
    (folder / "model.json").write_text("{}")
    (folder / "parts" / "a.npy").write_text("1")
    mark_folder(folder)
    return folder


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_a_marked_folder_is_removed_whole(tmp_path):
    assert remove_ours(filled(tmp_path / "bank")) == []
    assert files(tmp_path) == []


def test_what_the_user_put_in_stays_with_the_folders_around_it(tmp_path):
    bank = filled(tmp_path / "bank")
    (bank / "parts" / "notes.txt").write_text("theirs")
    (bank / "empty").mkdir()
    assert foreign_files(bank) == ["parts/notes.txt"]
    assert remove_ours(bank) == ["parts/notes.txt"]
    assert files(tmp_path) == ["bank", "bank/parts", "bank/parts/notes.txt"]


def test_links_stay_and_what_they_point_to_is_untouched(tmp_path):
    theirs = filled(tmp_path / "theirs")
    bank = filled(tmp_path / "bank")
    (bank / "search").symlink_to(theirs)
    (bank / "parts" / "a.npy").unlink()
    (bank / "parts" / "a.npy").symlink_to(theirs / "parts" / "a.npy")
    assert remove_ours(bank) == ["parts/a.npy", "search"]
    assert files(theirs) == [MARKER, "model.json", "parts", "parts/a.npy"]
    (tmp_path / "link").symlink_to(theirs)
    assert remove_ours(tmp_path / "link") == ["link"]
    assert files(theirs) == [MARKER, "model.json", "parts", "parts/a.npy"]


def test_without_a_marker_of_ours_nothing_goes(tmp_path):
    for number, content in enumerate((None, "", "{}", "[" * 100_000, json.dumps({"written_by": "cmrcnet"}))):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "a.txt").write_text("theirs")
        if content is not None:
            (folder / MARKER).write_text(content)
        assert not is_marked(folder)
        remove_ours(folder)
        assert (folder / "a.txt").read_text() == "theirs"


def test_a_marker_that_is_a_link_marks_nothing(tmp_path):
    ours, theirs = filled(tmp_path / "ours"), tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "model.json").write_text("theirs")
    (theirs / MARKER).symlink_to(ours / MARKER)
    remove_ours(theirs)
    assert (theirs / "model.json").read_text() == "theirs"


def test_a_folder_within_is_judged_by_its_own_marker(tmp_path):
    bank = filled(tmp_path / "bank")
    added = filled(bank / "parts" / "later")  # listed by its own marker, not by the bank's
    (added / "notes.txt").write_text("theirs")
    assert foreign_files(bank) == ["parts/later/notes.txt"]


def test_patterns_stand_for_files_that_are_still_to_come(tmp_path):
    mark_folder(tmp_path, ["features/*", "state"])
    (tmp_path / "features").mkdir()
    for name in ("state", "features/a.bin", "thesis.docx"):
        (tmp_path / name).write_text("x")
    assert foreign_files(tmp_path) == ["thesis.docx"]


def left_by_a_killed_process(path: Path) -> Path:
    code = (
        "import pathlib\n"
        "from cmrcnet.storage.ownership import temporary_path\n"
        f"print(temporary_path(pathlib.Path({str(path)!r})))\n"
    )
    return Path(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip())


def test_what_a_dead_process_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    dead, alive = left_by_a_killed_process(tmp_path / "model"), temporary_path(tmp_path / "model")
    theirs = left_by_a_killed_process(tmp_path / "model")
    for folder in (dead, alive, theirs):
        folder.mkdir()
        (folder / "weights").write_text("1")
    mark_folder(dead, ["*"])
    mark_folder(alive, ["*"])
    other = left_by_a_killed_process(tmp_path / "bank")
    other.write_text("of another output")
    (tmp_path / ".model.tmp-notes").write_text("theirs")
    assert is_abandoned(dead) and not is_abandoned(alive)
    remove_abandoned(tmp_path, "model")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [alive.name, theirs.name, other.name, ".model.tmp-notes"]
    )
    remove_abandoned(tmp_path)
    assert not other.exists() and (theirs / "weights").exists()  # no marker: not known as ours


def test_of_another_machine_only_age_tells(tmp_path):
    path = tmp_path / f".model.tmp-00000000-{os.getpid():x}-12345678"
    path.touch()
    assert not is_abandoned(path)
    then = time.time() - ABANDONED_SECONDS - 60
    os.utime(path, (then, then))
    assert is_abandoned(path)


def test_a_temporary_folder_goes_with_its_object_or_with_the_next_one(tmp_path):
    made = temporary_folder(tmp_path / "cache", "bank-in-use")
    (Path(made.name) / "patient").write_text("1")
    temporary_folder(tmp_path / "cache", "bank-in-use").cleanup()
    assert (Path(made.name) / "patient").exists()  # in use
    made.cleanup()
    assert files(tmp_path / "cache") == []


@pytest.mark.parametrize("suffix", ["", ".h5ad"])
def test_a_long_life_of_names(tmp_path, suffix):
    path = temporary_path(tmp_path / f"a.b{suffix}", keep_suffix=bool(suffix))
    assert path.name.startswith(".a.b.tmp-") and path.name.endswith(suffix)
