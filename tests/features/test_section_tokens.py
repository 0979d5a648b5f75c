"""Tokens of some spots of a section equal the same rows of all of them."""

from __future__ import annotations

import numpy as np
import pytest

from cmrcnet.config import FeaturesConfig
from cmrcnet.features import section_tokens
from cmrcnet.features.section_tokens import SectionTokens, Standardizing, gaussian_means, standardized

SPOTS = 57


@pytest.fixture(scope="module")
def views() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(SPOTS, 2, 5)) * rng.uniform(0.1, 10, (2, 5)) + 100).astype(np.float32)


@pytest.fixture(scope="module")
def location_um() -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 900, (SPOTS, 2))


@pytest.mark.parametrize("neighbourhood_um", [0.0, 120.0])
@pytest.mark.parametrize("standardize", ["none", "section"])
@pytest.mark.parametrize("at_once", [1, 8, 1000])
def test_any_rows_are_the_rows_of_the_whole(views, location_um, monkeypatch, neighbourhood_um, standardize, at_once):
    wanted = views
    if neighbourhood_um:
        wanted = np.concatenate([views, gaussian_means(views, location_um, neighbourhood_um)], axis=1)
    if standardize == "section":
        wanted = standardized(wanted)
    monkeypatch.setattr(section_tokens, "SPOTS_AT_ONCE", at_once)
    config = FeaturesConfig(views_um=(112.0, 175.0), neighbourhood_um=neighbourhood_um, standardize=standardize)
    tokens = SectionTokens(views, location_um, config)
    assert len(tokens) == SPOTS
    for rows in (slice(0, SPOTS), slice(3, 4), slice(40, SPOTS)):
        np.testing.assert_allclose(tokens.take(rows), wanted[rows], rtol=2e-6, atol=2e-6)


def test_means_and_deviations_of_blocks_join_without_losing_digits():
    """Values far from 0, where a plain sum of squares would lose the deviation altogether."""
    values = np.random.default_rng(2).normal(1e7, 1.0, (1000, 1, 3))
    blocks = [lambda part=part: part for part in np.array_split(values, [1, 10, 500])]
    joined = Standardizing.over(blocks)
    np.testing.assert_allclose(joined.middle, values.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(joined.deviation, values.std(axis=0), rtol=1e-9)
