"""The loop's schedule, and the refusal to go on with numbers that are none."""

from __future__ import annotations

import math

import pytest

from cmrcnet.config import TrainConfig
from cmrcnet.errors import Diverged
from cmrcnet.training.fit import fit
from cmrcnet.training.loop import learning_rate


def test_the_learning_rate_follows_a_cosine_from_first_to_last():
    config = TrainConfig(learning_rate=1e-3, final_learning_rate=1e-4)
    assert learning_rate(config, 0.0) == pytest.approx(1e-3)
    assert learning_rate(config, 0.5) == pytest.approx(5.5e-4)
    assert learning_rate(config, 0.25) == pytest.approx(1e-4 + 9e-4 * (1 + math.cos(math.pi / 4)) / 2)
    assert learning_rate(config, 1.0) == pytest.approx(1e-4)


def test_it_is_the_schedule_of_torch():
    import torch

    config = TrainConfig(learning_rate=2e-3, final_learning_rate=1e-5)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30, eta_min=config.final_learning_rate)
    for step in range(30):
        assert learning_rate(config, step / 30) == pytest.approx(schedule.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        schedule.step()


def test_numbers_that_are_none_stop_the_training(cohort, cache, config):
    wild = config.override({"train.learning_rate": 1e30, "train.clip_norm": 0.0})
    with pytest.raises(Diverged, match=r"not finite in epoch 1; use a smaller train\.learning_rate"):
        fit(cohort, wild, cache=cache)
