from __future__ import annotations

import math

import pytest
import torch

from cmrcnet.models.losses import reconstruction_loss, total_loss

LEFT = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
RIGHT = torch.tensor([[3.0, 0.0], [0.0, 2.0]])


def test_mse_by_hand():
    assert float(reconstruction_loss(LEFT, RIGHT)) == pytest.approx((0 + 16 + 1 + 4) / 4)


def test_cosine_by_hand_and_it_knows_no_length():
    wanted = ((1 - 9 / (5 * 3)) + (1 - 0)) / 2
    assert float(reconstruction_loss(LEFT, RIGHT, kind="cosine")) == pytest.approx(wanted)
    assert float(reconstruction_loss(LEFT * 7, RIGHT, kind="cosine")) == pytest.approx(wanted)


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_a_perfect_reconstruction_costs_nothing(kind):
    assert float(reconstruction_loss(LEFT, LEFT.clone(), kind=kind)) == pytest.approx(0, abs=1e-6)


def test_the_total_is_the_sum_of_logs_and_one_log_without_a_reconstruction():
    assert float(total_loss(torch.tensor(2.0), torch.tensor(0.5))) == pytest.approx(math.log(3) + math.log(1.5))
    assert float(total_loss(torch.tensor(2.0), None)) == pytest.approx(math.log(3))
