from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrcnet.models.cmrcnet import keep_mask


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=40, deadline=None)
@given(
    rate=st.floats(0, 1), tokens=st.integers(1, 60), batch=st.integers(1, 4), counts=st.sampled_from(["hidden", "kept"])
)
def test_whole_tokens_are_hidden_and_their_share_is_exact_in_every_row(rate, tokens, batch, counts):
    keep = keep_mask(batch, tokens, 3, rate=rate, rate_is=counts, generator=seeded())
    assert (keep.all(dim=2) == keep.any(dim=2)).all()
    counted = math.floor(rate * tokens + 0.5)
    assert (keep[:, :, 0].sum(dim=1) == (counted if counts == "kept" else tokens - counted)).all()


def test_half_of_vit_b32s_tokens():
    assert (~keep_mask(64, 50, 256, rate=0.5)[:, :, 0]).sum(dim=1).tolist() == [25] * 64


def test_the_rate_is_the_share_hidden_unless_it_is_said_to_be_kept():
    hidden = keep_mask(2, 10, 4, rate=0.3, generator=seeded())
    kept = keep_mask(2, 10, 4, rate=0.3, rate_is="kept", generator=seeded())
    assert (float(hidden.float().mean()), float(kept.float().mean())) == pytest.approx((0.7, 0.3))


@pytest.mark.parametrize(("counts", "visible"), [("hidden", 0.8), ("kept", 0.2)])
def test_single_features_are_hidden_by_their_own_coins(counts, visible):
    keep = keep_mask(40, 50, 60, rate=0.2, rate_is=counts, unit="scalar", generator=seeded())
    assert float(keep.float().mean()) == pytest.approx(visible, abs=0.005)
    assert not (keep.all(dim=2) == keep.any(dim=2)).any()  # no token is wholly visible or wholly hidden


@pytest.mark.parametrize("unit", ["token", "scalar"])
@pytest.mark.parametrize(("rate", "visible"), [(0.0, 1.0), (1.0, 0.0)])
def test_nothing_and_everything_can_be_hidden(unit, rate, visible):
    assert float(keep_mask(3, 5, 4, rate=rate, unit=unit).float().mean()) == visible


@pytest.mark.parametrize("unit", ["token", "scalar"])
def test_a_seed_gives_one_mask_and_another_seed_another(unit):
    first, again, other = (keep_mask(8, 20, 4, rate=0.5, unit=unit, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_generator_moves_on_between_two_masks():
    generator = seeded()
    masks = [keep_mask(8, 20, 4, rate=0.5, generator=generator) for _ in range(2)]
    assert not torch.equal(*masks)


def test_rows_differ_and_each_token_is_hidden_equally_often():
    keep = keep_mask(4000, 10, 1, rate=0.3, generator=seeded())[:, :, 0]
    assert len(keep.unique(dim=0)) == 120  # all the ways of choosing 3 of 10
    assert keep.float().mean(dim=0).tolist() == pytest.approx([0.7] * 10, abs=0.03)
