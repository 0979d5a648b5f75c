"""A deep spot counts more than a shallow one; a section counts as much as another."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from cmrcnet.genes.scaling import spot_weights


def test_weights_are_the_formula():
    depth = np.array([10.0, 40.0, 160.0])  # geometric mean 40
    raw = depth / (depth + 40)
    found = spot_weights(sparse.csr_matrix(depth[:, None]))
    assert found == pytest.approx(raw / raw.mean(), rel=1e-6)


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=30), st.integers(2, 9))
def test_depth_of_the_whole_section_does_not_matter(depths, times):
    counts = sparse.csr_matrix(np.array(depths)[:, None])
    found = spot_weights(counts)
    assert found.mean() == pytest.approx(1, rel=1e-4)
    np.testing.assert_allclose(spot_weights(counts * times), found, rtol=1e-4)
    assert (np.diff(found[np.argsort(depths, kind="stable")]) >= -1e-6).all()


def test_spots_without_counts_do_not_count():
    assert spot_weights(sparse.csr_matrix(np.array([[0], [5]]))).tolist() == [0, 2]
    assert spot_weights(sparse.csr_matrix((2, 3))).tolist() == [1, 1]
