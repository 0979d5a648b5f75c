"""The loop's schedule, and the refusal to go on with numbers that are none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cmrcnet.config import TrainConfig
from cmrcnet.errors import Diverged
from cmrcnet.training.fit import fit
from cmrcnet.training.loop import cosine_rate, train_epochs


def test_the_learning_rate_follows_a_cosine_from_first_to_last():
    config = TrainConfig(learning_rate=1e-3, final_learning_rate=1e-4)
    assert cosine_rate(config, 0.0) == pytest.approx(1e-3)
    assert cosine_rate(config, 0.5) == pytest.approx(5.5e-4)
    assert cosine_rate(config, 0.25) == pytest.approx(1e-4 + 9e-4 * (1 + math.cos(math.pi / 4)) / 2)
    assert cosine_rate(config, 1.0) == pytest.approx(1e-4)


def test_it_is_the_schedule_of_torch():
    import torch

    config = TrainConfig(learning_rate=2e-3, final_learning_rate=1e-5)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30, eta_min=config.final_learning_rate)
    for step in range(30):
        assert cosine_rate(config, step / 30) == pytest.approx(schedule.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        schedule.step()


def test_numbers_that_are_none_stop_the_training(cohort, cache, config):
    wild = config.override({"train.learning_rate": 1e30, "train.clip_norm": 0.0})
    with pytest.raises(Diverged, match=r"not finite in epoch 1; use a smaller train\.learning_rate"):
        fit(cohort, wild, cache=cache)


def test_the_released_code_changes_the_rate_once_an_epoch(cohort, cache, config):
    released = config.override({"train.schedule_by": "epoch", "train.validation": "none", "train.refit": False})
    rows = fit(cohort, released, cache=cache).provenance.history
    wanted = [cosine_rate(released.train, epoch / released.train.epochs) for epoch in range(len(rows))]
    assert [row["learning_rate"] for row in rows] == pytest.approx(wanted) and wanted[0] == 5e-3


def made_up_problem(slope: float = 2.0):
    import torch

    rng = np.random.default_rng(0)
    inputs = torch.from_numpy(rng.normal(size=(32, 1)).astype(np.float32))
    line = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.AdamW(line.parameters(), lr=0.1, weight_decay=0.0)
    return line, optimizer, inputs, lambda batch: torch.nn.functional.mse_loss(line(batch), slope * batch)


def test_the_loop_learns_and_stops_when_told():
    line, optimizer, inputs, loss = made_up_problem()
    seen = []

    def after_epoch(epoch, losses):
        seen.append(float(losses.mean()))
        assert losses.shape == (4, 1)
        return seen[-1] < 1e-3

    train_epochs(line, optimizer, lambda epoch: inputs.split(8), loss, range(500), after_epoch=after_epoch)
    assert 5 < len(seen) < 500
    assert float(line.weight.detach()) == pytest.approx(2, abs=0.1)


def test_the_loop_sets_the_rate_of_each_step():
    line, optimizer, inputs, loss = made_up_problem()
    asked = []

    def rate(epoch, step):
        asked.append((epoch, step))
        return 0.0

    before = line.weight.detach().clone()
    train_epochs(line, optimizer, lambda epoch: inputs.split(16), loss, range(3, 5), learning_rate=rate)
    assert asked == [(3, 0), (3, 1), (4, 0), (4, 1)]
    assert line.weight.detach() == before


def test_the_loop_refuses_a_loss_that_is_no_number():
    line, optimizer, inputs, loss = made_up_problem(math.inf)
    with pytest.raises(Diverged, match="in epoch 1"):
        train_epochs(line, optimizer, lambda epoch: inputs.split(8), loss, range(2))
