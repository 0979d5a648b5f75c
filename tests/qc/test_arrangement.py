"""Spots that lie elsewhere than they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrcnet.qc.arrangement import (
    TURNS,
    Arrangement,
    arrangement_finding,
    expression_targets,
    judge_arrangement,
    loo_r2,
)
from cmrcnet.qc.section_summary import SpotMaps


@pytest.fixture(scope="module")
def seen(sections):
    """A section, its maps, centres and counts."""
    section = sections[0]
    return SpotMaps.of(section.slide, section.spots.diameter_um), np.array(section.spots.centre_px), section.counts


def test_the_sound_sections_fit(summaries):
    assert [one.arrangement.outcome for one in summaries] == ["fits"] * len(summaries)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(12, 30))
def test_leave_one_out_equals_leaving_one_out(seed, spots):
    random = np.random.default_rng(seed)
    features, targets = random.normal(size=(spots, 3)), random.normal(size=(spots, 2))
    targets = (targets - targets.mean(0)) / targets.std(0)
    values = (features - features.mean(0)) / features.std(0)  # scaled once, by all, as the fast way does
    design = np.column_stack([np.ones(spots), values])
    penalty = np.diag([0.0, 1, 1, 1])
    missed = np.zeros_like(targets)
    for i in range(spots):
        kept = np.arange(spots) != i
        weights = np.linalg.solve(design[kept].T @ design[kept] + penalty, design[kept].T @ targets[kept])
        missed[i] = targets[i] - design[i] @ weights
    assert loo_r2(features, targets) == pytest.approx(1 - (missed**2).mean(), abs=1e-9)


def test_targets_are_standardised_and_start_with_depth(seen):
    targets = expression_targets(seen[2])
    np.testing.assert_allclose(targets.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(targets.std(axis=0), 1, atol=1e-9)
    depth = np.log1p(np.asarray(seen[2].sum(axis=1)).ravel())
    assert np.corrcoef(depth, targets[:, 0])[0, 1] == pytest.approx(1)


@pytest.mark.parametrize("seed", [5, 6, 7])
def test_shuffled_pairs_are_told(seen, seed):
    maps, centres, counts = seen
    found = judge_arrangement(maps, np.random.default_rng(seed).permutation(centres), counts)
    assert found.outcome == "shuffled"
    finding = arrangement_finding("A", found)
    assert finding.kind == "shuffled" and not finding.certain and "look shuffled" in finding.sentence


@pytest.mark.parametrize("name", TURNS)
def test_turned_and_mirrored_spots_are_told(seen, name):
    maps, centres, counts = seen
    middle = (centres.min(axis=0) + centres.max(axis=0)) / 2
    found = judge_arrangement(maps, (centres - middle) @ np.array(TURNS[name], float).T + middle, counts)
    assert found.outcome == "misaligned" and found.best - found.stated > 0.1
    assert "fit its picture better" in arrangement_finding("A", found).sentence


def test_shifted_spots_are_told_and_the_way_back_named(seen):
    maps, centres, counts = seen
    found = judge_arrangement(maps, centres + np.array([300.0, 0.0]), counts)
    assert found.outcome == "misaligned" and found.best_is == "shifted by -300 um in x and 0 um in y"


def test_few_or_empty_spots_say_nothing(seen):
    maps, centres, counts = seen
    few = judge_arrangement(maps, centres[:20], counts[:20])
    assert few.outcome == "cannot tell" and arrangement_finding("A", few) is None
    assert judge_arrangement(maps, centres, counts * 0).outcome == "cannot tell"


def test_the_same_answer_every_time(seen):
    assert judge_arrangement(*seen) == judge_arrangement(*seen)


def test_maps_off_the_slide_hold_no_tissue(seen):
    maps, centres, _ = seen
    _, share = maps.at(np.array([[-500.0, 10.0], [1e7, 1e7], *centres[:1]]))
    assert share[:2].tolist() == [0, 0] and share[2] > 0.8


def test_an_outcome_that_fits_is_no_finding():
    assert arrangement_finding("A", replace(Arrangement("fits"), stated=0.4)) is None
