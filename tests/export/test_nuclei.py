"""Nuclei get the value of the window that holds them, and counts are those of the stated depth."""

from __future__ import annotations

import json

import anndata
import numpy as np
import pandas as pd
import pytest

from cmrcnet.cli.app import main
from cmrcnet.errors import BadInput, Incompatible, TooFew
from cmrcnet.export.counts_table import write_counts
from cmrcnet.export.nuclei import read_nuclei, write_nuclei
from cmrcnet.export.stored_prediction import StoredPrediction


def square(x, y, side=4.0, name="n"):
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    return {"type": "Feature", "id": name, "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}


def write_json(path, content):
    path.write_text(json.dumps(content))
    return path


def test_each_nucleus_has_the_values_of_its_window_and_the_others_none(stored, tmp_path):
    with StoredPrediction(stored) as table:
        (x, y), gene = table.centre_px[1], table.genes[0]
        side = float(table.facts.get("window_um", table.facts["spot_diameter_um"])) / float(table.facts["mpp"])
        features = [square(x - 2, y + side / 2 - 3, name="in"), square(-1e5, -1e5, name="out")]
        nuclei = read_nuclei(write_json(tmp_path / "n.geojson", {"type": "FeatureCollection", "features": features}))
        assert write_nuclei(table, nuclei, tmp_path / "o.csv", ".csv", [gene]) == (2, 1)
        write_nuclei(table, nuclei, tmp_path / "o.geojson", ".geojson", [gene])
        wanted, named, window = table.column(gene)[1], table.obs.index[1], side * float(table.facts["mpp"])
    found = pd.read_csv(tmp_path / "o.csv", keep_default_na=False, na_values=["nan"]).astype({"location": str})
    assert found["nucleus"].tolist() == ["in", "out"]
    assert found["location"].tolist() == [str(named), ""]
    assert float(found[gene].iloc[0]) == pytest.approx(wanted, rel=1e-5)
    assert found[gene].iloc[1] == ""
    assert float(found["window_um"].iloc[0]) == pytest.approx(window)
    written = json.loads((tmp_path / "o.geojson").read_text())["features"]
    assert written[0]["geometry"] == features[0]["geometry"]
    assert written[0]["properties"]["measurements"][gene] == pytest.approx(wanted, rel=1e-4)
    assert gene not in written[1]["properties"]["measurements"]


def test_the_centre_is_the_centroid_of_the_largest_outline(tmp_path):
    triangle = [[0, 0], [6, 0], [0, 6], [0, 0]]
    several = {"type": "MultiPolygon", "coordinates": [[[[90, 90], [91, 90], [90, 91], [90, 90]]], [triangle]]}
    cell = {
        "geometry": {"type": "Point", "coordinates": [50, 50]},
        "nucleusGeometry": {"type": "Point", "coordinates": [7, 8]},
    }
    nuclei = read_nuclei(write_json(tmp_path / "n.geojson", [{"geometry": several, "id": "a"}, cell]))
    np.testing.assert_allclose(nuclei.centre_px, [[2, 2], [7, 8]])
    assert nuclei.names == ("a", "2")


@pytest.mark.parametrize(
    "content",
    [
        {"features": 3},
        [{"geometry": {"type": "LineString", "coordinates": [[0, 0], [1, 1]]}}],
        [{"geometry": {"type": "Polygon", "coordinates": []}}],
        [{"geometry": {"type": "Point", "coordinates": ["a", 1]}}],
        [{"geometry": None}],
        [{"geometry": {"type": "Point", "coordinates": [1e12, 1]}}],
        3,
    ],
)
def test_what_is_no_nucleus_is_refused(tmp_path, content):
    with pytest.raises(BadInput):
        read_nuclei(write_json(tmp_path / "n.geojson", content))
    with pytest.raises(TooFew):
        read_nuclei(write_json(tmp_path / "n.geojson", []))


def test_a_parquet_of_nuclei_goes_in_and_out(stored, tmp_path):
    with StoredPrediction(stored) as table:
        frame = pd.DataFrame(table.centre_px, columns=["pixel_x", "pixel_y"]).assign(cell_id=["c"] * len(table))
    frame.to_parquet(tmp_path / "n.parquet")
    to = tmp_path / "o.parquet"
    assert main(["export", str(stored), "--to", str(to), "--nuclei", str(tmp_path / "n.parquet")]) == 0
    found = pd.read_parquet(to)
    assert (found["distance_um"] == 0).all() and len(found) == len(frame)
    frame[["pixel_x"]].to_parquet(tmp_path / "n.parquet")
    assert main(["export", str(stored), "--to", str(tmp_path / "p.csv"), "--nuclei", str(tmp_path / "n.parquet")]) == 2
    assert not (tmp_path / "p.csv").exists()


def test_counts_are_the_inverse_of_the_logarithm_at_the_stated_depth(stored, tmp_path):
    out = tmp_path / "counts.h5ad"
    assert main(["export", str(stored), "--to", str(out), "--depth", "5000"]) == 0
    counts = anndata.read_h5ad(out)
    with StoredPrediction(stored) as table:
        np.testing.assert_allclose(counts.X, np.expm1(table.rows(slice(None))) / 2, rtol=1e-5, atol=1e-6)
    assert counts.uns["cmrcnet_counts"]["units"] == "counts at a depth of 5,000"
    for wrong in (["--depth", "0"], ["--depth", "5", "--genes", "A"]):
        assert main(["export", str(stored), "--to", str(tmp_path / "b.h5ad"), *wrong]) == 2
    assert main(["export", str(stored), "--to", str(tmp_path / "b.csv"), "--depth", "9"]) == 2


def test_tables_of_other_units_have_no_counts(stored, tmp_path):
    with StoredPrediction(stored) as table:
        table.facts["scaling"] = json.dumps({**json.loads(table.facts["scaling"]), "target_sum": "median"})
        with pytest.raises(Incompatible, match="no logarithm of counts at one library size"):
            write_counts(table, tmp_path / "c.h5ad", 5000)
