"""Regions: which locations, which means, which genes differ, by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import ttest_ind

from cmrcnet.errors import TooFew
from cmrcnet.viewer import region as room
from cmrcnet.viewer.region import Region, expression_of, region_table, to_geojson


def test_a_region_holds_the_locations_within_its_outline():
    centres = np.array([[5.0, 5.0], [15.0, 5.0], [5.0, 15.0], [8.0, 1.0]])
    corner = Region.drawn("A", np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]), centres - 0.01)
    assert corner.rows.tolist() == [0, 3]


def test_means_differences_and_tests_are_right(viewed):
    x = viewed.prediction.rows(slice(None))
    region, rest = Region("A", np.zeros((3, 2)), np.array([0, 1, 2, 3])), np.array([4, 5, 6, 7, 8])
    with pytest.raises(TooFew, match="4 locations lie in region A, but at least 5 are needed"):
        region_table(viewed.prediction, region, rest)
    viewed.prediction.obs["interval_scale"] = np.linspace(1, 2, 12)
    viewed.prediction.var["interval_low"], viewed.prediction.var["interval_high"] = -0.1, 0.2
    rows = np.array([0, 2, 3, 5, 8])
    other = np.array([1, 4, 6, 7, 8])
    table = region_table(viewed.prediction, Region("A", np.zeros((3, 2)), rows), other)
    assert table["difference"].abs().is_monotonic_decreasing and len(table) == x.shape[1]
    gene = table.iloc[0]
    column = viewed.prediction.genes.index(gene["gene"])
    inside, outside = x[rows, column].astype(np.float64), x[other, column].astype(np.float64)
    scale = np.linspace(1, 2, 12)[rows]
    assert gene["mean"] == pytest.approx(inside.mean(), rel=1e-5)
    assert gene["difference"] == pytest.approx(inside.mean() - outside.mean(), rel=1e-4)
    assert gene["lower"] == pytest.approx(np.maximum(inside - 0.1 * scale, 0).mean(), rel=1e-5)
    assert gene["upper"] == pytest.approx((inside + 0.2 * scale).mean(), rel=1e-5)
    p = ttest_ind(x[rows], x[other], equal_var=False).pvalue
    order = np.argsort(p)
    adjusted = np.minimum.accumulate((p[order] * len(p) / np.arange(1, len(p) + 1))[::-1])[::-1]
    known = {viewed.prediction.genes[g]: value for g, value in zip(order, adjusted, strict=True)}
    np.testing.assert_allclose(table["p_adjusted"], [min(known[g], 1) for g in table["gene"]], rtol=1e-3)


def test_of_many_locations_blocks_are_read(monkeypatch, viewed):
    monkeypatch.setattr(room, "BLOCK", (2, 128))
    used, values = expression_of(viewed.prediction, np.array([0, 1, 2, 5, 6, 7, 8]), most=4)
    assert used.tolist() == [0, 1, 5, 8]  # every second of the blocks 0, 1, 2, 3, 4
    np.testing.assert_array_equal(values, viewed.prediction.rows(slice(None))[used])


def test_geojson_is_in_pixels_of_the_slide(viewed):
    outline = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    found = json.loads(to_geojson([Region("B", outline, np.arange(3))], viewed))
    (feature,) = found["features"]
    assert feature["geometry"]["coordinates"] == [[[0, 0], [20, 0], [0, 20], [0, 0]]]  # half a micrometre a pixel
    assert feature["properties"] == {
        "objectType": "annotation", "name": "Region B", "measurements": {"predicted locations": 3},
    }  # fmt: skip
