"""CMRCNet as a method, and the null that shuffles its pairs."""

from __future__ import annotations

import numpy as np

from cmrcnet.evaluation.methods.trained_cmrcnet import permuted


def test_pairs_are_shuffled_within_each_section_and_nothing_else_changes(small_cohort):
    shuffled = permuted(small_cohort, seed=1)
    assert shuffled.sections == small_cohort.sections and shuffled.patients == small_cohort.patients
    for before, after in zip(small_cohort, shuffled, strict=True):
        old, new = before.counts.toarray(), after.counts.toarray()
        assert (old != new).any(axis=1).mean() > 0.8  # hardly a spot keeps its own expression
        np.testing.assert_array_equal(old[np.lexsort(old.T)], new[np.lexsort(new.T)])  # the same rows, all of them
        np.testing.assert_array_equal(before.spots.centre_px, after.spots.centre_px)
        assert after.slide is before.slide and after.genes == before.genes


def test_the_shuffle_is_that_of_its_seed(small_cohort):
    one, again, other = (permuted(small_cohort, seed).read("P2S1").counts.toarray() for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
