"""Expression components: the singular value decomposition written out, and what they keep and throw away."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cmrcnet.errors import ShapeMismatch, TooFew
from cmrcnet.genes.components import find_components, loadings_of


def sections(seed: int = 0, genes: int = 12) -> list[sparse.csr_matrix]:
    rng = np.random.default_rng(seed)
    programme = rng.normal(size=(2, genes))
    return [
        sparse.csr_matrix(level + rng.normal(size=(n, 2)) @ programme + 0.1 * rng.normal(size=(n, genes)))
        for n, level in ((9, 1.0), (14, 5.0))
    ]


def test_scores_are_those_of_the_singular_value_decomposition():
    parts = [part.toarray() - part.toarray().mean(axis=0) for part in sections()]
    left, values, _ = np.linalg.svd(np.concatenate(parts), full_matrices=False)
    wanted = left[:, :3] * values[:3] / (values[0] / np.sqrt(23))
    found = find_components(sections(), 3)
    scores = np.concatenate([found.scores(part) for part in sections()])
    np.testing.assert_allclose(np.abs(scores), np.abs(wanted), atol=1e-4)
    assert scores[:, 0].std() == pytest.approx(1, abs=1e-4)


def test_the_level_of_a_section_changes_no_score():
    found = find_components(sections(), 2)
    plain = sections()[0].toarray()
    np.testing.assert_allclose(found.scores(plain), found.scores(plain + 7.0), atol=1e-4)


def test_two_programmes_are_given_back_by_two_components():
    parts = sections()
    found = find_components(parts, 2)
    scores = np.concatenate([found.scores(part) for part in parts])
    centred = np.concatenate([part.toarray() - part.toarray().mean(axis=0) for part in parts])
    rest = centred - scores @ loadings_of(scores, centred)
    assert (rest**2).sum() < 0.02 * (centred**2).sum()


def test_loadings_are_least_squares():
    rng = np.random.default_rng(3)
    scores, expression = rng.normal(size=(20, 3)), sparse.random(20, 6, 0.4, random_state=1, format="csr")
    scores -= scores.mean(axis=0)
    wanted = np.linalg.lstsq(scores, expression.toarray(), rcond=None)[0]
    np.testing.assert_allclose(loadings_of(scores, expression), wanted, atol=1e-5)


@given(rank=st.integers(1, 40))
@settings(max_examples=15, deadline=None)
def test_never_more_components_than_the_spots_allow(rank):
    assert find_components(sections(), rank).rank == min(rank, 12)


def test_signs_do_not_depend_on_chance():
    directions = find_components(sections(), 3).directions
    largest = np.abs(directions).argmax(axis=0)
    assert (directions[largest, range(3)] > 0).all()


def test_expression_without_any_spread_is_refused():
    with pytest.raises(TooFew, match="differ in expression"):
        find_components([sparse.csr_matrix(np.ones((4, 3)))], 2)


def test_another_panel_is_refused():
    with pytest.raises(ShapeMismatch, match="expression"):
        find_components(sections(), 2).scores(np.zeros((3, 5)))
