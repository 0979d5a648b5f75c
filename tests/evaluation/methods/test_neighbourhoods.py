"""Spatial neighbours of spots."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrcnet.errors import BadOption, ShapeMismatch
from cmrcnet.evaluation.methods.baseline_training import find_neighbours


def members(found, row: int) -> list[int]:
    ids, present = found
    return [int(i) for i, there in zip(ids[row], present[row], strict=True) if there]


def test_the_eight_around_a_spot_of_a_square_grid():
    grid = np.array([(x * 200.0, y * 200.0) for y in range(5) for x in range(5)])
    found = find_neighbours(grid, np.zeros(25), radius_um=300)
    assert sorted(members(found, 12)) == [6, 7, 8, 11, 13, 16, 17, 18]
    assert sorted(members(found, 12)[:4]) == [7, 11, 13, 17]  # nearest first
    assert sorted(members(found, 0)) == [1, 5, 6]


def test_sections_never_mix_and_a_lonely_spot_has_nobody():
    place = np.array([[0.0, 0], [10, 0], [10, 0], [5000, 0]])
    found = find_neighbours(place, np.array(["a", "a", "b", "a"]))
    assert members(found, 0) == [1] and members(found, 2) == [] and members(found, 3) == []
    assert found[0][2].tolist() == [2] * found[0].shape[1]  # filled up with itself


def test_the_nearest_are_kept_and_the_radius_counts_as_inside():
    place = np.array([[0.0, 0], [100, 0], [200, 0], [300, 0]])
    assert members(find_neighbours(place, np.zeros(4), radius_um=200), 0) == [1, 2]
    assert members(find_neighbours(place, np.zeros(4), radius_um=1000, most=1), 3) == [2]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=1, max_size=20), st.integers(1, 4))
def test_it_equals_looking_at_every_pair(points, sections):
    place = np.array(points, np.float64) * 100
    section = np.arange(len(place)) % sections
    found = find_neighbours(place, section, radius_um=250, most=50)
    for row in range(len(place)):
        apart = np.linalg.norm(place - place[row], axis=1)
        near = (apart <= 250) & (section == section[row]) & (np.arange(len(place)) != row)
        assert sorted(members(found, row)) == np.flatnonzero(near).tolist()


def test_what_cannot_be_is_refused():
    with pytest.raises(BadOption, match="a radius above 0"):
        find_neighbours(np.zeros((2, 2)), np.zeros(2), radius_um=0)
    with pytest.raises(ShapeMismatch, match="location_um"):
        find_neighbours(np.zeros((2, 3)), np.zeros(2))
