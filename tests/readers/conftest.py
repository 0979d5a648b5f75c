"""Sections for every reader: one made up, one real where the shared data are at hand."""

from __future__ import annotations

import functools

import pytest

from tests.readers.written_formats import Made, from_shared, made_up

_corner = functools.cache(from_shared)


@pytest.fixture(params=["made up", "her2st", "als"])
def made(request) -> Made:
    """A small section: made up, or a corner of a real one."""
    if request.param == "made up":
        return made_up()
    if request.param == "her2st":
        return _corner(request.getfixturevalue("her2st_csv"), "C6")
    return _corner(request.getfixturevalue("als_csv"), "CN63_E2")


@pytest.fixture
def small() -> Made:
    """The made-up section alone."""
    return made_up()
