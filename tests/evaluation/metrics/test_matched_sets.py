"""Null sets of like mean."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrcnet.errors import TooFew, UnknownName
from cmrcnet.evaluation.metrics.set_metrics import NEAREST, matched_sets

MEANS = {f"g{i}": float(i) for i in range(100)}


def test_partners_are_outside_the_set_each_once_and_of_like_mean():
    own = tuple(f"g{i}" for i in range(20, 40))
    found = matched_sets({"HVG": own}, MEANS, seed=0)
    (partners,) = found.values()
    assert list(found) == ["matched HVG"] and len(set(partners)) == 20 and not set(partners) & set(own)
    # 20 genes in a row are taken, and at most 20 partners beside them: nobody is farther than that.
    assert max(abs(MEANS[a] - MEANS[b]) for a, b in zip(own, partners, strict=True)) <= 20 + NEAREST
    single = matched_sets({"one": ("g50",)}, MEANS, seed=0)["matched one"]
    assert abs(MEANS[single[0]] - 50) <= NEAREST / 2


@settings(max_examples=25, deadline=None)
@given(st.sets(st.sampled_from(sorted(MEANS)), min_size=1, max_size=50), st.integers(0, 5))
def test_every_set_finds_as_many_partners(members, seed):
    own = tuple(sorted(members))
    (partners,) = matched_sets({"s": own}, MEANS, seed).values()
    assert len(set(partners)) == len(own) and not set(partners) & members
    assert matched_sets({"s": own}, MEANS, seed) == {"matched s": partners}


def test_the_seed_draws_and_sets_do_not_disturb_each_other():
    first, second = tuple(f"g{i}" for i in range(10)), tuple(f"g{i}" for i in range(50, 60))
    both = matched_sets({"a": first, "b": second}, MEANS, 1)
    assert both["matched a"] == matched_sets({"a": first}, MEANS, 1)["matched a"]
    assert both != matched_sets({"a": first, "b": second}, MEANS, 2)


def test_matched_means_are_near_those_of_the_set():
    rng = np.random.default_rng(0)
    means = {f"g{i}": float(m) for i, m in enumerate(rng.exponential(1.0, 2000))}
    own = tuple(rng.choice(sorted(means), 50, replace=False))
    (partners,) = matched_sets({"s": own}, means, 0).values()
    assert np.mean([means[g] for g in partners]) == pytest.approx(np.mean([means[g] for g in own]), rel=0.05)


def test_what_cannot_be_matched_is_said():
    with pytest.raises(TooFew, match="49 genes outside the set HVG, but at least 51"):
        matched_sets({"HVG": [f"g{i}" for i in range(51)]}, MEANS, 0)
    with pytest.raises(UnknownName, match="no mean of gene 'x'"):
        matched_sets({"HVG": ["x"]}, MEANS, 0)
