"""States on disk: exact, whole, and of one run."""

from __future__ import annotations

import csv
import os

import pytest
import torch

from cmrcnet.errors import Incompatible, OutputExists
from cmrcnet.storage.ownership import temporary_path
from cmrcnet.training.checkpoint import Checkpoints, TrainingState

IDENTITY = {"config": "r", "cohort": "c"}


def state(epoch: int = 3) -> TrainingState:
    shared = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "learner.a": shared,
        "learner.b": shared,  # one block under two names
        "learner.turned": shared.T,
        "learner.conv": torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(
            memory_format=torch.channels_last
        ),
        "optimizer.0.step": torch.tensor(7.0),
        "average.n_averaged": torch.tensor(4),
    }
    return TrainingState("search", epoch, {"history": {"rows": [{"loss": 0.1}], "best_score": None}}, tensors)


@pytest.fixture
def kept(tmp_path) -> Checkpoints:
    checkpoints = Checkpoints(tmp_path / "state")
    checkpoints.save(state(), IDENTITY)
    return checkpoints


def test_a_state_comes_back_exactly(kept):
    back, first = kept.load(IDENTITY), state()
    assert (back.phase, back.epoch, back.facts) == (first.phase, first.epoch, first.facts)
    assert back.tensors.keys() == first.tensors.keys()
    for name, value in first.tensors.items():
        assert back.tensors[name].dtype == value.dtype
        assert torch.equal(back.tensors[name], value), name


def test_without_a_state_there_is_none(tmp_path):
    assert Checkpoints(tmp_path / "nothing").load(IDENTITY) is None


def test_a_later_state_replaces_the_first_and_one_file_stays(kept):
    kept.save(state(epoch=4), IDENTITY)
    assert kept.load(IDENTITY).epoch == 4
    assert sorted(path.name for path in kept.folder.iterdir()) == [".cmrcnet.json", "state.safetensors"]


@pytest.mark.parametrize("key", ["config", "cohort"])
def test_the_state_of_another_run_is_refused(kept, key):
    with pytest.raises(Incompatible, match=f"the {key} changed since it was started"):
        kept.load(IDENTITY | {key: "another"})


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-10],
        lambda whole: whole[:100],
        lambda whole: b"",
        lambda whole: b"\x80\x04not safetensors" * 10,
        lambda whole: whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:],
        lambda whole: whole.replace(b'\\"format\\": 4', b'\\"format\\": 9'),
        lambda whole: whole.replace(b'\\"epoch\\": 3', b'\\"epoch\\": 2'),
        lambda whole: whole.replace(b"search", b"refit "),
    ],
)
def test_a_damaged_state_is_refused(kept, damage):
    path = kept.folder / "state.safetensors"
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
    with pytest.raises(Incompatible, match=r"cannot be resumed: its state .*--overwrite"):
        kept.load(IDENTITY)


def test_a_folder_in_place_of_a_state_is_refused(kept):
    path = kept.folder / "state.safetensors"
    path.unlink()
    path.mkdir()
    with pytest.raises(Incompatible, match=r"cannot be resumed: its state is no plain file .*--overwrite"):
        kept.load(IDENTITY)


def test_what_a_killed_process_half_wrote_goes_with_the_next_state(kept):
    half = temporary_path(kept.folder / "state.safetensors", keep_suffix=True)
    half = half.with_name(half.name.replace(f"-{os.getpid():x}-", f"-{2**30:x}-"))  # no process has that number
    half.write_bytes(b"half")
    kept.save(state(), IDENTITY)
    assert not half.exists()


def test_writing_is_due_again_after_a_while_that_its_own_time_sets(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("cmrcnet.training.checkpoint.time.monotonic", lambda: now[0])
    checkpoints = Checkpoints(tmp_path, most_share=0.05)
    assert checkpoints.is_due()

    def slow(tensors):
        now[0] += 2.0  # a write of two seconds
        return tensors

    monkeypatch.setattr("cmrcnet.training.checkpoint._unshared", lambda tensors: slow({}))
    checkpoints.save(state(), IDENTITY)
    now[0] += 37.9
    assert not checkpoints.is_due()
    now[0] += 0.2  # two of forty seconds: one twentieth
    assert checkpoints.is_due()


def test_beside_an_output(tmp_path):
    out = tmp_path / "model"
    checkpoints = Checkpoints.beside(out)
    assert checkpoints.folder == tmp_path / "model.partial"
    checkpoints.save(state(), IDENTITY)
    with pytest.raises(OutputExists, match=r"--resume to go on with it, or --overwrite"):
        Checkpoints.beside(out)
    assert Checkpoints.beside(out, resume=True).load(IDENTITY).epoch == 3
    assert Checkpoints.beside(out, overwrite=True).load(IDENTITY) is None
    assert not checkpoints.folder.exists()


def test_a_folder_that_is_not_ours_is_never_removed(tmp_path):
    theirs = tmp_path / "model.partial"
    theirs.mkdir()
    (theirs / "thesis.docx").write_text("years")
    with pytest.raises(OutputExists, match="cmrcnet did not write"):
        Checkpoints.beside(tmp_path / "model", overwrite=True)
    assert (theirs / "thesis.docx").exists()


def test_the_log_has_a_row_an_epoch_and_every_column(kept):
    kept.write_log([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25, "validation_pearson": None}])
    with (kept.folder / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"epoch": "1", "loss": "0.5", "validation_pearson": ""},
        {"epoch": "2", "loss": "0.25", "validation_pearson": ""},
    ]


def test_discarding_leaves_nothing(kept):
    kept.discard()
    assert not kept.folder.exists()
    kept.discard()
