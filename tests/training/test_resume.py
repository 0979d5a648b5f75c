"""Interrupted and resumed equals uninterrupted, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cmrcnet.errors import Incompatible
from cmrcnet.training import loop
from cmrcnet.training.checkpoint import Checkpoints
from cmrcnet.training.fit import fit
from tests.training.conftest import SMALL, TRAINED_ENCODER

HARD = {
    "train.epochs": 4,
    "train.refit": True,
    "train.augment": True,
    "train.ema_decay": 0.8,
    "model.head_dropout": 0.3,
    "model.fusion_dropout": 0.25,
}
"""Everything on that draws random numbers or keeps a state of its own."""


class Stopping(Checkpoints):
    """Interrupts the training right after a state was written."""

    def __init__(self, folder: Path, phase: str, epoch: int) -> None:
        super().__init__(folder, most_share=1.0)
        self.stop = (phase, epoch)

    def save(self, state, identity):
        super().save(state, identity)
        if (state.phase, state.epoch) == self.stop:
            raise KeyboardInterrupt


def assert_equal(left, right) -> None:
    assert left.fingerprint == right.fingerprint
    for name, value in left.network.state_dict().items():
        assert torch.equal(value, right.network.state_dict()[name]), name
    assert left.encoder.fingerprint() == right.encoder.fingerprint()
    assert left.provenance == right.provenance


@pytest.fixture(scope="module")
def whole(cohort, cache):
    """The uninterrupted run of each plan, trained once."""
    done = {}

    def run(plan):
        key = str(plan.to_dict())
        if key not in done:
            done[key] = fit(cohort, plan, cache=cache)
        return done[key]

    return run


@pytest.mark.parametrize(("phase", "epoch"), [("search", 1), ("search", 4), ("refit", 1)])
def test_a_resumed_run_ends_with_the_same_weights(cohort, cache, config, whole, tmp_path, phase, epoch):
    plan = config.override(HARD)
    with pytest.raises(KeyboardInterrupt):
        fit(cohort, plan, cache=cache, checkpoints=Stopping(tmp_path / "state", phase, epoch))
    resumed = fit(cohort, plan, cache=cache, checkpoints=Checkpoints(tmp_path / "state"), resume=True)
    assert_equal(resumed, whole(plan))


def test_so_does_one_that_was_stopped_in_the_middle_of_an_epoch(cohort, cache, config, whole, tmp_path, monkeypatch):
    plan = config.override(HARD)
    calls, real = [0], loop.cosine_rate

    def third_epoch(config, progress):
        calls[0] += 1
        if calls[0] == 8:
            raise KeyboardInterrupt
        return real(config, progress)

    monkeypatch.setattr(loop, "cosine_rate", third_epoch)
    with pytest.raises(KeyboardInterrupt):
        fit(cohort, plan, cache=cache, checkpoints=Checkpoints(tmp_path / "state", most_share=1.0))
    monkeypatch.undo()
    assert [path.name for path in sorted((tmp_path / "state").iterdir())] == [
        ".cmrcnet.json",
        "log.csv",
        "state.safetensors",
    ]
    resumed = fit(cohort, plan, cache=cache, checkpoints=Checkpoints(tmp_path / "state"), resume=True)
    assert_equal(resumed, whole(plan))


def test_so_does_one_without_refit_whose_best_epoch_came_before_the_interrupt(cohort, cache, config, whole, tmp_path):
    plan = config.override(HARD | {"train.refit": False, "train.epochs": 6})
    best = whole(plan).provenance.chosen_epoch
    with pytest.raises(KeyboardInterrupt):
        fit(cohort, plan, cache=cache, checkpoints=Stopping(tmp_path / "state", "search", max(best, 5)))
    resumed = fit(cohort, plan, cache=cache, checkpoints=Checkpoints(tmp_path / "state"), resume=True)
    assert_equal(resumed, whole(plan))


@pytest.mark.filterwarnings("ignore::cmrcnet.errors.CmrcnetWarning")
def test_so_does_one_that_trains_the_encoder_as_released(cohort, cache, config, whole, tmp_path):
    plan = config.override(
        TRAINED_ENCODER
        | {
            "train.epochs": 2,
            "train.validation": "spots",
            "train.select_by": "objective",
            "train.ema_decay": 0.9,
            "train.ema_used": False,
            "model.mask_unit": "scalar",
            "model.mask_seeded_in_validation": False,
            "model.share_fusion_blocks": True,
            "model.fusion_blocks": 2,
        }
    )
    with pytest.raises(KeyboardInterrupt):
        fit(cohort, plan, cache=cache, checkpoints=Stopping(tmp_path / "state", "search", 1))
    resumed = fit(cohort, plan, cache=cache, checkpoints=Checkpoints(tmp_path / "state"), resume=True)
    assert_equal(resumed, whole(plan))


def test_resuming_a_finished_run_trains_nothing(cohort, cache, config, whole, tmp_path, monkeypatch):
    plan = config.override(HARD)
    fit(cohort, plan, cache=cache, checkpoints=Checkpoints(tmp_path / "state", most_share=1e-6))
    monkeypatch.setattr(loop, "epoch_batches", None)
    resumed = fit(cohort, plan, cache=cache, checkpoints=Checkpoints(tmp_path / "state"), resume=True)
    assert_equal(resumed, whole(plan))


def test_resuming_nothing_starts(cohort, cache, config, whole, tmp_path):
    plan = config.override(HARD)
    assert_equal(fit(cohort, plan, cache=cache, checkpoints=Checkpoints(tmp_path / "x"), resume=True), whole(plan))


BLOCKS = {"model.blocks": [4]}  # other features of the same cohort


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"train.learning_rate": 2e-3}, "config"),
        ({}, "training data"),
        (BLOCKS, "config and the training data and the encoder"),
    ],
)
def test_the_state_of_another_run_is_refused(cohort, cache, config, tmp_path, change, named):
    with pytest.raises(KeyboardInterrupt):
        fit(cohort, config, cache=cache, checkpoints=Stopping(tmp_path / "state", "search", 1))
    sections = cohort if change else cohort.without(["P3S1"])
    from cmrcnet.genes.gene_sets import choose_panel

    panel = choose_panel(cohort, config.panel)
    with pytest.raises(Incompatible, match=f"the {named} changed since it was started; pass --overwrite"):
        fit(
            sections,
            config.override(change),
            panel=panel,
            cache=cache,
            checkpoints=Checkpoints(tmp_path / "state"),
            resume=True,
        )


SCRIPT = """
import json, sys
from pathlib import Path
from cmrcnet.datasets.synthetic import synthetic_cohort
from cmrcnet.storage.cache import TokenCache
from cmrcnet.config import Config
from cmrcnet.training.checkpoint import Checkpoints
from cmrcnet.training.fit import fit
plan, cache, state = json.loads(sys.argv[1])
fit(
    synthetic_cohort(patients=3, spots=24, genes=120, seed=0),
    Config.load("tiny").override(plan),
    cache=TokenCache(cache),
    checkpoints=Checkpoints(Path(state), most_share=1.0),
)
"""


def test_a_killed_process_leaves_a_state_to_go_on_with(cohort, cache, config, tmp_path):
    """kill -9 while it trains; then the same weights as without."""
    import json

    plan = SMALL | HARD | {"train.epochs": 200, "train.refit": False}
    state = tmp_path / "state"
    arguments = json.dumps([plan, str(cache.folder), str(state)])
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    job = subprocess.Popen([sys.executable, "-c", SCRIPT, arguments], start_new_session=True, env=environment)
    try:
        deadline = time.monotonic() + 240
        while not (state / "state.safetensors").exists():
            assert job.poll() is None, "the training ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
    finally:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    reached = reached_epoch(Checkpoints(state))
    assert 1 <= reached < 200
    # The rest is trained for a few epochs only, from the state and from the start, under the same schedule.
    stop = reached + 2
    longer = config.override(plan)
    outcomes = []
    for folder, resume in ((state, True), (tmp_path / "fresh", False)):
        with pytest.raises(KeyboardInterrupt):
            fit(cohort, longer, cache=cache, checkpoints=Stopping(folder, "search", stop), resume=resume)
        outcomes.append(raw_state(Checkpoints(folder)))
    assert outcomes[0].keys() == outcomes[1].keys()
    for name, value in outcomes[0].items():
        assert torch.equal(value, outcomes[1][name]), name


def reached_epoch(checkpoints: Checkpoints) -> int:
    return checkpoints.load({}).epoch


def raw_state(checkpoints: Checkpoints) -> dict[str, torch.Tensor]:
    return checkpoints.load({}).tensors
