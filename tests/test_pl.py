"""The three pictures show what they say: values, curve and sheet."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

import cmrcnet
from cmrcnet.errors import BadOption, TooFew, UnknownName
from cmrcnet.genes.table import prediction_table, scaling_of


@pytest.fixture(scope="module")
def section():
    return cmrcnet.synthetic_cohort(patients=1, spots=16, genes=24, seed=0).read("P1S1")


def table_of(section, change):
    """A table that predicts `change` of the truth at every spot."""
    frame = {"genes": section.genes, "spots": section.spots, "slide": section.slide, "neighbours": None}
    empty = prediction_table(np.zeros(section.counts.shape), None, provenance={}, **frame)
    measured = scaling_of(empty).expression(section).toarray()
    return prediction_table(change(measured), None, provenance={}, **frame)


def test_truth_draws_every_spot_where_it_belongs(section):
    table = table_of(section, lambda measured: measured * 2)
    axes = cmrcnet.pl.truth(table[::-1].copy(), section, section.genes[3])
    points = axes.collections[0].get_offsets()
    np.testing.assert_allclose(points[:, 0], 2 * points[:, 1], rtol=1e-5)
    assert len(points) == 16 and "Pearson 1.00" in axes.get_title()


def test_predictions_that_are_too_far_apart_make_a_curve_of_half_the_slope(section):
    axes = cmrcnet.pl.reliability(table_of(section, lambda measured: measured * 2), section, bins=5)
    x, y = axes.lines[1].get_data()
    np.testing.assert_allclose(y, x / 2, atol=1e-5)
    assert len(x) == 5


def test_what_cannot_be_drawn_is_refused(section):
    table = table_of(section, lambda measured: measured)
    with pytest.raises(UnknownName, match="NOGENE"):
        cmrcnet.pl.truth(table, section, "NOGENE")
    with pytest.raises(BadOption, match="bins"):
        cmrcnet.pl.reliability(table, section, bins=1)
    table.obs_names = [f"other{number}" for number in range(16)]
    with pytest.raises(TooFew, match="predict at the spots"):
        cmrcnet.pl.truth(table, section, section.genes[0])


@pytest.mark.filterwarnings("ignore:This training found no signal")
def test_the_example_runs():
    assert doctest.testmod(cmrcnet.pl).failed == 0
