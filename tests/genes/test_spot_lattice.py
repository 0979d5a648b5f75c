"""Locations on the lattice come back from jittered, turned, stretched and incomplete centres."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrcnet.genes.spatial_stats import pitch_of, snap_to_lattice

SHAPES = {"square": np.eye(2), "hexagonal": np.array([[1.0, 0.0], [0.5, 0.75**0.5]])}


def printed(kind: str, side: int, seed: int, keep: float = 1.0) -> np.ndarray:
    """Locations of a lattice, in pitches, with holes; in no order."""
    random = np.random.default_rng(seed)
    whole = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
    return (random.permutation(whole)[: int(keep * side**2)] @ SHAPES[kind]).astype(float)


def distances(locations: np.ndarray) -> np.ndarray:
    return np.linalg.norm(locations[:, None] - locations[None], axis=-1)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["square", "hexagonal"]),
    st.floats(0, 7),
    st.floats(0.1, 500),
    st.floats(0, 0.08),
    st.floats(0.97, 1.03),
    st.integers(0, 99),
)
def test_jitter_turn_scale_and_stretch_do_not_matter(kind, angle, pitch, jitter, stretch, seed):
    locations = printed(kind, 9, seed, keep=0.9)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    shaken = locations + np.random.default_rng(seed).uniform(-jitter, jitter, locations.shape)
    found = snap_to_lattice(shaken @ turn * pitch * [1.0, stretch] + [1e4, -7.0])
    assert found.kind == kind and found.off < 0.12
    # Whatever the turn and the origin, every distance between two locations is the true one.
    np.testing.assert_allclose(distances(found.locations), distances(locations), atol=1e-6)


def test_a_pitch_that_is_slightly_wrong_does_not_add_up_over_a_long_row():
    locations = printed("square", 40, 0, keep=0.8)
    found = snap_to_lattice(locations * [100.0, 104.0])
    np.testing.assert_allclose(distances(found.locations), distances(locations), atol=1e-6)


def test_islands_of_spots_share_one_lattice():
    locations = printed("square", 14, 1)
    locations = locations[(locations[:, 0] < 5) | (locations[:, 0] > 8)]
    np.testing.assert_allclose(distances(snap_to_lattice(locations * 200).locations), distances(locations), atol=1e-6)


@pytest.mark.parametrize(
    "centres",
    [
        np.random.default_rng(0).uniform(0, 1000, (200, 2)),
        np.array([[0.0, 0.0], [10, 0], [20, 0], [30, 0], [40, 0]]),
        np.array([[0.0, 0.0], [10, 0], [0, 10]]),
        np.zeros((6, 2)),
        np.zeros((0, 2)),
    ],
    ids=["anywhere", "one line", "three spots", "one location", "none"],
)
def test_spots_on_no_lattice_stay_where_they_are_in_pitches(centres):
    found = snap_to_lattice(centres)
    pitch = pitch_of(centres)
    assert found.kind == "none" and np.isnan(found.off)
    np.testing.assert_allclose(found.locations, centres / pitch if pitch > 0 else centres)


def test_the_pitch_is_the_median_distance_to_the_nearest_spot():
    assert pitch_of(np.array([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0], [90.0, 90.0]])) == pytest.approx((3 + 4) / 2)
    assert np.isnan(pitch_of(np.zeros((1, 2))))


def test_real_sections_lie_on_a_square_lattice(als_csv):
    from cmrcnet.readers.cohort import read_cohort

    found = snap_to_lattice(read_cohort(als_csv).read("CN51_C2_1").spots.centre_px)
    assert found.kind == "square" and found.off < 0.1
