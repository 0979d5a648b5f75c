"""Outputs are written whole or not at all, by one process at a time."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cmrcnet.errors import BadOption, CmrcnetError, NoSpace, OutputExists, Unwritable
from cmrcnet.storage.atomic import (
    atomic_file,
    atomic_folder,
    file_lock,
    make_partial,
    partial_folder,
    refuse_existing,
    remove_partial,
    replace_folder,
    translate_os_errors,
)
from cmrcnet.storage.ownership import MARKER, final_path, mark_folder


class Interrupt(BaseException):
    """As KeyboardInterrupt, which pytest would take for itself."""


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden temporary files included."""
    return sorted(path.name for path in folder.iterdir())


# --- files -------------------------------------------------------------------------------------------------------


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "table.h5ad"
    with atomic_file(path) as tmp:
        assert tmp.suffix == ".h5ad"  # writers choose their format by it
        tmp.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"
    assert names(path.parent) == ["table.h5ad"]


@pytest.mark.parametrize("failure", [ValueError("no"), Interrupt(), SystemExit(3)])
def test_an_interrupted_file_leaves_nothing_and_keeps_the_old(tmp_path, failure):
    path = tmp_path / "table.csv"
    for old in (None, "old"):
        if old:
            path.write_text(old)
        with pytest.raises(type(failure)), atomic_file(path) as tmp:
            tmp.write_text("half")
            raise failure
        assert names(tmp_path) == (["table.csv"] if old else [])
    assert path.read_text() == "old"


def test_a_draft_that_was_never_written_is_an_error_not_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "a.csv"):
        pass
    assert names(tmp_path) == []


def full_disk() -> list[Exception]:
    """What the libraries that write for us raise when a disk is full (seen on a file system of 200 kB)."""
    return [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError("1000000 requested and 51168 written"),  # numpy.save
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),  # safetensors
    ]


@pytest.mark.parametrize("refusal", full_disk(), ids=str)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, refusal):
    for path, write in ((tmp_path / "a.npy", atomic_file), (tmp_path / "model", atomic_folder)):
        sentence = r"The disk is full: .* was not written and nothing half-written"
        with pytest.raises(NoSpace, match=sentence), write(path) as tmp:
            (tmp if write is atomic_file else tmp / "weights").write_text("half")
            raise refusal
    assert names(tmp_path) == []


def test_a_full_disk_names_the_file_as_it_would_be_called(tmp_path):
    with (
        pytest.raises(NoSpace, match=r"full: \S*/bank/part\.npy was not written"),
        atomic_folder(tmp_path / "bank") as tmp,
        translate_os_errors(tmp / "part.npy"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_a_really_full_device(tmp_path):
    with pytest.raises(NoSpace), atomic_file(tmp_path / "a.txt") as tmp:
        tmp.write_text("x")
        with Path("/dev/full").open("w") as file:
            file.write("y")
    assert names(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_place_that_refuses_us(tmp_path, monkeypatch, code):
    """Simulated: permission bits do not stop root."""

    def refuse(self, *_, **__):
        raise OSError(code, os.strerror(code), str(self))

    monkeypatch.setattr(Path, "touch", refuse)
    for write in (refuse_existing, lambda path, _: atomic_folder(path).__enter__()):
        with pytest.raises(Unwritable, match=r"a.csv cannot be written: .*; choose a folder that you may write to"):
            write(tmp_path / "a.csv", False)


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(Unwritable, match=r"cannot be written: (not a directory|file exists)"):
        refuse_existing(tmp_path / "file" / "model", overwrite=False)


def test_a_refusal_to_read_something_else_is_not_blamed_on_the_output(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(PermissionError) as caught, atomic_file(tmp_path / "out" / "a.csv"):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "slides" / "C6.jpg"))
    assert not isinstance(caught.value, CmrcnetError)


def test_our_own_errors_pass_as_they_are(tmp_path):
    for failure in (OutputExists("x"), NoSpace("y"), BadOption("k", 0, "1")):
        with pytest.raises(type(failure)) as caught, atomic_file(tmp_path / "a"):
            raise failure
        assert caught.value is failure


# --- folders -----------------------------------------------------------------------------------------------------


def a_model(path: Path, content: str = "old") -> Path:
    path.mkdir()
    (path / "model.json").write_text(content)
    mark_folder(path)
    return path


def test_a_folder_appears_when_it_is_whole(tmp_path):
    with atomic_folder(tmp_path / "model") as tmp:
        (tmp / "model.json").write_text("new")
        assert not (tmp_path / "model").exists()
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == [MARKER, "model.json"]


@pytest.mark.parametrize("failure", [ValueError("no"), Interrupt()])
def test_an_interrupted_folder_leaves_nothing_and_keeps_the_old(tmp_path, failure):
    path = a_model(tmp_path / "model")
    with pytest.raises(type(failure)), atomic_folder(path, overwrite=True) as tmp:
        (tmp / "model.json").write_text("half")
        raise failure
    assert names(tmp_path) == ["model"]
    assert (path / "model.json").read_text() == "old"


def test_an_old_folder_goes_only_when_the_new_one_stands(tmp_path):
    path = a_model(tmp_path / "model")
    with atomic_folder(path, overwrite=True) as tmp:
        (tmp / "model.json").write_text("new")
        assert (path / "model.json").read_text() == "old"
    assert (path / "model.json").read_text() == "new"
    assert names(tmp_path) == ["model"]


def test_without_overwrite_an_output_is_refused_before_any_work(tmp_path):
    path = a_model(tmp_path / "model")
    sentence = r"model exists already; choose another name or pass --overwrite"
    with pytest.raises(OutputExists, match=sentence), atomic_folder(path):
        pytest.fail("worked for nothing")
    with pytest.raises(OutputExists):
        refuse_existing(path, overwrite=False, folder=True)
    refuse_existing(path, overwrite=True, folder=True)
    assert names(tmp_path) == ["model"]


def test_overwrite_never_costs_a_folder_that_is_not_ours(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    refuse_existing(home, overwrite=True, folder=True)  # empty: nothing to lose
    for name in ("model.json", "bank.json", "thesis.tex"):
        (home / name).write_text("{}")
        with pytest.raises(OutputExists, match="it is a folder that cmrcnet did not write"):
            refuse_existing(home, overwrite=True, folder=True)
        with pytest.raises(OutputExists), atomic_folder(home, overwrite=True):
            pass
        with pytest.raises(OutputExists):
            replace_folder(a_model(tmp_path / name), home)
    assert names(home) == ["bank.json", "model.json", "thesis.tex"]


def test_a_file_of_the_users_in_our_folder_is_named_and_stays(tmp_path):
    path = a_model(tmp_path / "model")
    (path / "notes").mkdir()
    (path / "notes" / "ideas.txt").write_text("a year's")
    with pytest.raises(OutputExists, match=r"model exists already; it holds notes/ideas.txt, which cmrcnet did not"):
        refuse_existing(path, overwrite=True, folder=True)
    assert (path / "notes" / "ideas.txt").read_text() == "a year's"


@pytest.mark.parametrize("overwrite", [False, True])
def test_no_link_is_followed_at_an_output(tmp_path, overwrite):
    a_model(tmp_path / "theirs")
    (tmp_path / "file.txt").write_text("theirs")
    for target in ("theirs", "file.txt", "nowhere"):
        link = tmp_path / f"link-{target}"
        link.symlink_to(tmp_path / target)
        for folder in (False, True):
            with pytest.raises(OutputExists, match="it is a link, and links are not followed"):
                refuse_existing(link, overwrite, folder=folder)
        with pytest.raises(OutputExists), atomic_folder(link, overwrite):
            pass
        assert link.is_symlink()
    assert (tmp_path / "file.txt").read_text() == "theirs" and (tmp_path / "theirs" / "model.json").exists()


def test_a_device_and_a_pipe_are_no_outputs(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (Path(os.devnull), tmp_path / "pipe"):
        with pytest.raises(OutputExists, match="neither a file nor a folder"):
            refuse_existing(path, overwrite=True)


@pytest.mark.parametrize("path", ["", ".", "..", "/", "a/.."])
def test_a_path_without_a_name_of_its_own_is_no_output(path):
    with pytest.raises(BadOption, match="wanted the name of a new file or folder"):
        refuse_existing(Path(path), overwrite=True, folder=True)


def test_a_folder_is_not_replaced_by_a_file_nor_a_file_by_a_folder(tmp_path):
    path = a_model(tmp_path / "model")
    with pytest.raises(OutputExists, match="it is a folder, and a file is to be written"):
        refuse_existing(path, overwrite=True)
    (tmp_path / "thesis.docx").write_text("years")
    with pytest.raises(OutputExists, match="it is a file, and a folder is to be written"):
        refuse_existing(tmp_path / "thesis.docx", overwrite=True, folder=True)
    with pytest.raises(OutputExists):
        replace_folder(path, tmp_path / "thesis.docx")
    assert (tmp_path / "thesis.docx").read_text() == "years"


def test_a_probe_leaves_nothing(tmp_path):
    refuse_existing(tmp_path / "new" / "model", overwrite=False)
    assert names(tmp_path / "new") == []


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "broken"), Interrupt()])
def test_when_the_new_folder_cannot_take_its_place_the_old_comes_back(tmp_path, monkeypatch, failure):
    old, new = a_model(tmp_path / "model"), a_model(tmp_path / "new", "new")
    rename = Path.replace

    def fail_for_the_new(self, target):
        if self == new:
            raise failure
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", fail_for_the_new)
    with pytest.raises(type(failure)):
        replace_folder(new, old)
    assert (old / "model.json").read_text() == "old"
    assert names(tmp_path) == ["model", "new"]


def test_a_killed_process_leaves_the_old_output(tmp_path):
    """kill -9 cannot be caught: a hidden tmp may stay, but the output is whole."""
    path = a_model(tmp_path / "model")
    code = (
        "import os, pathlib, signal\n"
        "from cmrcnet.storage.atomic import atomic_folder\n"
        f"with atomic_folder(pathlib.Path({str(path)!r}), overwrite=True) as tmp:\n"
        "    (tmp / 'model.json').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert (path / "model.json").read_text() == "old"
    assert len(names(tmp_path)) == 2
    with atomic_folder(path, overwrite=True) as tmp:
        (tmp / "model.json").write_text("new")
    assert (path / "model.json").read_text() == "new"
    assert names(tmp_path) == ["model"]  # the next run removed what the killed one left


def test_killed_between_two_renames_the_old_output_comes_back(tmp_path):
    path = a_model(tmp_path / "model")
    code = (
        "import os, pathlib, signal\n"
        "from cmrcnet.storage import atomic\n"
        "rename = pathlib.Path.replace\n"
        "def once(self, target):\n"
        "    rename(self, target)\n"
        "    if '.old-' in str(target): os.kill(os.getpid(), signal.SIGKILL)\n"
        "pathlib.Path.replace = once\n"
        f"with atomic.atomic_folder(pathlib.Path({str(path)!r}), overwrite=True) as tmp:\n"
        "    (tmp / 'model.json').write_text('new')\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert not path.exists()
    with pytest.raises(OutputExists):
        refuse_existing(path, overwrite=False, folder=True)
    assert (path / "model.json").read_text() == "old"
    refuse_existing(path, overwrite=True, folder=True)
    assert names(tmp_path) == ["model"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder of the Linux kernel's")
def test_a_place_where_no_file_can_be_made():
    for path in (Path("/proc/nowhere/model"), Path("/proc/model")):
        with pytest.raises(Unwritable, match=rf"{path} cannot be written: no file can be made there; choose"):
            refuse_existing(path, overwrite=False)


def test_a_draft_is_told_by_the_name_that_will_last(tmp_path):
    with atomic_folder(tmp_path / "demo") as folder:
        assert folder != final_path(folder) == tmp_path / "demo"
        assert final_path(folder / "model") == tmp_path / "demo" / "model"
    assert final_path(Path("a/.hidden/b")) == Path("a/.hidden/b")
    with atomic_file(tmp_path / "table.h5ad") as tmp:
        assert final_path(tmp) == tmp_path / "table.h5ad"
        tmp.touch()


def _hold(lock, ready, done) -> None:
    with file_lock(lock) as mine:
        assert mine
        ready.set()
        done.wait(30)


def test_a_lock_is_one_process_s_until_it_ends_however_it_ends(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "lock", ready, done))
    other.start()
    assert ready.wait(30)
    with file_lock(tmp_path / "lock") as mine:
        assert not mine
    other.kill()
    other.join(30)
    with file_lock(tmp_path / "lock") as mine:
        assert mine


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_does_not_stop_the_work(tmp_path, monkeypatch, caplog, number):
    def refuse(*_):
        raise OSError(number, "no locks here")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with caplog.at_level("WARNING", "cmrcnet"), file_lock(tmp_path / "lock") as mine:
        assert mine
    assert len(caplog.records) == 1 and "cannot be locked" in caplog.text


def test_a_folder_that_may_not_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(Unwritable), file_lock(tmp_path / "file" / "lock"):
        pass


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "lock").symlink_to(tmp_path / "theirs")
    with pytest.raises(Unwritable, match="lock cannot be written: it is a link"), file_lock(tmp_path / "lock"):
        pass
    assert (tmp_path / "theirs").read_text() == "theirs"


def test_the_folder_of_an_interrupted_output_is_kept_or_deleted_as_asked(tmp_path):
    out, partial = tmp_path / "run", tmp_path / "run.partial"
    assert partial_folder(out) == partial and not partial.exists()
    make_partial(partial, ["state"])
    assert partial_folder(out, resume=True) == partial and names(partial) == [MARKER]
    (partial / "state").write_text("epoch 3")
    with pytest.raises(OutputExists, match="--resume"):
        partial_folder(out)
    assert partial_folder(out, resume=True) == partial and (partial / "state").exists()
    assert partial_folder(out, resume=None) == partial and (partial / "state").exists()
    assert partial_folder(out, overwrite=True) == partial and not partial.exists()


@pytest.mark.parametrize("resume", [False, True, None])
def test_a_folder_of_the_users_with_that_name_is_neither_deleted_nor_used(tmp_path, resume):
    theirs = tmp_path / "run.partial"
    theirs.mkdir()
    (theirs / "state").write_text("theirs")
    with pytest.raises(OutputExists, match=r"run.partial exists already; it is a folder that cmrcnet did not write"):
        partial_folder(tmp_path / "run", resume=resume, overwrite=True)
    (tmp_path / "link.partial").symlink_to(theirs)
    with pytest.raises(OutputExists, match="it is a link"):
        partial_folder(tmp_path / "link", resume=resume, overwrite=True)
    assert names(theirs) == ["state"]


def test_what_the_user_put_beside_our_state_is_kept(tmp_path):
    partial = partial_folder(tmp_path / "run")
    make_partial(partial, ["state"])
    (partial / "state").write_text("epoch 3")
    (partial / "thesis.docx").write_text("years")
    with pytest.raises(OutputExists, match=r"holds thesis.docx, which cmrcnet did not write"):
        partial_folder(tmp_path / "run", overwrite=True)
    remove_partial(partial)
    assert names(partial) == ["thesis.docx"]
