"""Several devices: two processes train as one does, outlive a killed rank, and numbers that do not fit are refused."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from cmrcnet.datasets.synthetic import synthetic_cohort
from cmrcnet.errors import BadOption, MissingInput, WorkerDied
from cmrcnet.training import distributed
from cmrcnet.training.checkpoint import Checkpoints
from cmrcnet.training.data import TrainingData, epoch_batches
from cmrcnet.training.distributed import require_devices
from cmrcnet.training.fit import fit
from cmrcnet.workers import ForkingPickler
from tests.training.conftest import TRAINED_ENCODER, made_up_pairs

PLAN = TRAINED_ENCODER | {
    "train.validation": "none",
    "train.epochs": 10,
    "train.batch_size": 80,
    "train.ema_decay": 0.8,
    "model.head_dropout": 0.0,
    "model.fusion_dropout": 0.0,
}
"""A step an epoch, of 21 pairs: 11 for one rank, 10 for the other. Masks and augmentation are on."""


class FirstKept(Checkpoints):
    """Keeps the state of the first epoch, and kills the process that writes after `dies_after`."""

    def __init__(self, folder: Path, dies_after: int = 0) -> None:
        super().__init__(folder, most_share=1.0)
        self.dies_after = dies_after

    def save(self, state, identity):
        super().save(state, identity)
        if state.epoch == 1:
            shutil.copytree(self.folder, f"{self.folder}-first")
        if state.epoch == self.dies_after:
            os.kill(os.getpid(), signal.SIGKILL)


def gradients(folder: Path) -> dict[str, torch.Tensor]:
    """Of the first step: ten times AdamW's first moment."""
    tensors = Checkpoints(Path(f"{folder}-first")).load({}).tensors
    return {name: value * 10 for name, value in tensors.items() if name.endswith("exp_avg")}


def without_keys(name: str, value: torch.Tensor) -> np.ndarray:
    """A weight, but for the biases of attention's keys: their gradient is 0, and AdamW follows the sign of rounding."""
    if name.endswith(("in_proj_bias", "qkv.bias")):
        query, _, values = value.chunk(3)
        value = torch.cat([query, values])
    return value.numpy()


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch):
    monkeypatch.setattr(distributed, "cores", lambda: 2)


@pytest.mark.filterwarnings("ignore::cmrcnet.errors.CmrcnetWarning")
def test_two_processes_train_as_one_also_when_a_rank_was_killed(cache, config, tmp_path):
    cohort, plan = synthetic_cohort(patients=3, spots=7, genes=120, seed=0), config.override(PLAN)
    one = fit(cohort, plan, cache=cache, checkpoints=FirstKept(tmp_path / "one"))
    with pytest.raises(WorkerDied, match=r"ran rank 0 of the training ended without a result \(exit code -9\)"):
        fit(cohort, plan, cache=cache, devices=2, checkpoints=FirstKept(tmp_path / "two", dies_after=4))
    assert Checkpoints(tmp_path / "two").load({}).epoch == 4
    two = fit(cohort, plan, cache=cache, devices=2, checkpoints=Checkpoints(tmp_path / "two"), resume=True)

    wanted, found = gradients(tmp_path / "one"), gradients(tmp_path / "two")
    assert found.keys() == wanted.keys() and len(wanted) > 50
    for name, gradient in wanted.items():
        np.testing.assert_allclose(found[name], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()) + 1e-9)
    for part in ("network", "encoder"):
        weights, expected = getattr(two, part).state_dict(), getattr(one, part).state_dict()
        for name, value in expected.items():
            was, now = without_keys(name, value), without_keys(name, weights[name])
            # Adam divides by a gradient's size: where that is rounding, so is the step of the weight.
            np.testing.assert_allclose(now, was, rtol=0, atol=1e-4, err_msg=name)
            assert (np.abs(now - was) > 1e-5).mean() <= 1e-4, name
    losses = [[row["loss"] for row in model.provenance.history] for model in (one, two)]
    assert len(losses[0]) == 10 and losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_the_parts_of_the_ranks_are_the_batches_of_one_process():
    pairs = made_up_pairs()
    whole = list(epoch_batches(pairs, np.arange(16), 6, np.random.default_rng(0)))
    parts = [list(epoch_batches(pairs, np.arange(16), 6, np.random.default_rng(0), rank, 3)) for rank in range(3)]
    for batch, *shares in zip(whole, *parts, strict=True):
        for values, *rows in zip(batch, *shares, strict=True):
            np.testing.assert_array_equal(np.concatenate(rows), values)


def test_a_rank_is_sent_the_place_of_its_inputs_and_not_their_numbers(cache):
    shape = (64, 20, 20, 3)
    patches = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    stored = cache.put("patches", "ab12", shape, np.uint8, [patches])
    data = TrainingData(("S",), ("P",), (stored,), sparse.csr_matrix(np.ones((64, 2), np.float32)))
    payload = bytes(ForkingPickler.dumps(data))
    assert len(payload) < patches.nbytes / 2
    again = ForkingPickler.loads(payload)
    np.testing.assert_array_equal(again.gather(np.arange(64))[0], patches)
    np.testing.assert_array_equal(again.section_of, data.section_of)
    cache.drop("patches", "ab12")
    with pytest.raises(MissingInput, match="removed while it was used; run again"):
        ForkingPickler.loads(payload)


@pytest.mark.parametrize("devices", [0, -1, True, 1.0, 3])
def test_devices_that_are_not_there_are_refused(cohort, config, devices):
    with pytest.raises(BadOption, match=rf"devices is {devices!r}; wanted 1 to 2: this machine has 2 cores"):
        fit(cohort, config, devices=devices)


def test_more_devices_than_gpus_are_refused(monkeypatch):
    gpu = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    require_devices(4, "cuda", gpu)
    with pytest.raises(BadOption, match="devices is 5; wanted 1 to 4: this machine has 4 GPUs to train on"):
        require_devices(5, "auto", gpu)
    with pytest.raises(BadOption, match=r"train\.device is 'cuda:1'; wanted auto or cuda, to train on 2 devices"):
        require_devices(2, "cuda:1", gpu)


def test_a_batch_of_fewer_pairs_than_devices_is_refused(cohort, cache, config):
    with pytest.raises(BadOption, match="devices is 2; wanted 1 at most, the pairs in the smallest batch"):
        fit(cohort, config.override({"train.batch_size": 1}), cache=cache, devices=2)


def test_batch_normalisation_is_refused(cohort, config):
    plan = config.override(TRAINED_ENCODER | {"model.encoder": "timm:test_resnet"})
    with pytest.raises(BadOption, match="wanted 1 to train timm:test_resnet: its batch normalisation needs"):
        fit(cohort, plan, devices=2)
