"""Tables of features beside a picture: CSV, parquet and AnnData of every kind, and what is refused."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cmrcnet import inspect, read_cohort, read_section, synthetic_cohort
from cmrcnet.datasets.cohort_files import write_cohort
from cmrcnet.datasets.synthetic_tables import planted_cohort
from cmrcnet.errors import BadInput, BadOption, SectionError

OPTIONS = {"mpp": 1.0, "spot_diameter_um": 55.0, "table_kind": "continuous"}


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(np.full((80, 100, 3), 200, np.uint8)).save(tmp_path / "he.png")
    return tmp_path / "he.png"


def frame(**more):
    first = {"spot": ["s1", "s2", "s3"], "CD3": [0.5, -1.5, 2.25], "CD20": [1.0, 0.0, 3.0]}
    return pd.DataFrame(first | {"pixel_x": [10, 30, 50], "pixel_y": [20, 20, 40]} | more)


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "csv.gz", "semicolon.csv"])
def test_every_form_gives_the_same_section(tmp_path, picture, ending):
    path = tmp_path / f"C1.{ending}"
    if ending == "parquet":
        frame().to_parquet(path)
    else:
        form = {"tsv": {"sep": "\t"}, "semicolon.csv": {"sep": ";", "decimal": ","}}.get(ending, {})
        frame().to_csv(path, index=False, **form)
    section = read_section(path, image=picture, **OPTIONS)
    assert (section.name, section.table_kind, section.genes) == ("C1", "continuous", ("CD3", "CD20"))
    assert section.spots.barcodes == ("s1", "s2", "s3")
    np.testing.assert_array_equal(section.counts.toarray(), [[0.5, 1], [-1.5, 0], [2.25, 3]])
    np.testing.assert_array_equal(section.spots.centre_px, [[10, 20], [30, 20], [50, 40]])


def test_positions_of_a_spot_file_are_matched_by_name_and_unselected_rows_left_out(tmp_path, picture):
    frame().drop(columns=["pixel_x", "pixel_y"]).to_csv(tmp_path / "C1.csv", index=False)
    spots = pd.DataFrame({"spot": ["s3", "s1", "s2"], "pixel_x": [50, 10, 30], "pixel_y": [40, 20, 20]})
    spots.assign(selected=[1, 1, 0]).to_csv(tmp_path / "spots.tsv", sep="\t", index=False)
    section = read_section(tmp_path / "C1.csv", image=picture, spots=tmp_path / "spots.tsv", **OPTIONS)
    assert section.spots.barcodes == ("s1", "s3")
    np.testing.assert_array_equal(section.spots.centre_px, [[10, 20], [50, 40]])
    spots.assign(spot=["a", "b", "c"]).to_csv(tmp_path / "spots.tsv", sep="\t", index=False)
    with pytest.raises(SectionError, match="rows are not in the spot file"):
        read_section(tmp_path / "C1.csv", image=picture, spots=tmp_path / "spots.tsv", **OPTIONS)


def test_what_pyradiomics_writes_is_read_as_it_is(tmp_path, picture):
    made = frame(diagnostics_Versions_Numpy=["2.0"] * 3, Image=["a.nrrd", "b.nrrd", "c.nrrd"])
    made.rename(columns={"CD3": "original_firstorder_Mean"}).to_csv(tmp_path / "C1.csv", index=False)
    section = read_section(tmp_path / "C1.csv", image=picture, **OPTIONS)
    assert section.genes == ("original_firstorder_Mean", "CD20")
    assert "1 columns of pyradiomics' diagnostics, and of text (Image): dropped." in section.notes


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"site": ["lung", "liver", "lung"]}, BadInput, "column site holds 'lung', which is no number"),
        ({"CD3": [1, None, 2]}, SectionError, r"missing \(NaN\), the first \(nan\) at spot s2, feature CD3"),
        ({"CD3": [1, np.inf, 2]}, SectionError, "infinite or too large, the first"),
        ({"pixel_x": [1, "left", 2]}, BadInput, "row 2 has 'left' as pixel_x"),
        ({"spot": ["s1", "s1", "s2"]}, SectionError, "repeat"),
        ({"spot": ["s1", None, "s2"]}, BadInput, "row 2 has no name"),
    ],
)
def test_bad_cells_are_refused_with_their_place(tmp_path, picture, more, error, words):
    frame(**more).to_csv(tmp_path / "C1.csv", index=False)
    with pytest.raises(error, match=words):
        read_section(tmp_path / "C1.csv", image=picture, **OPTIONS)


@pytest.mark.parametrize("header", ["spot", "Spot", " SPOT ", '"spot"'])
@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_names_stay_text_however_the_header_is_written(tmp_path, picture, header, separator):
    rows = [[header, "pixel_x", "pixel_y", "CD3"], ["1e5", "10", "20", "1"], ["007", "30", "40", "2"]]
    (tmp_path / "C1.csv").write_text("".join(separator.join(row) + "\n" for row in rows))
    section = read_section(tmp_path / "C1.csv", format="feature_table", image=picture, **OPTIONS)
    assert section.spots.barcodes == ("1e5", "007")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("spot,pixel_x,pixel_y,CD3\ns1,10,20,1,7\ns2,30,40,2,8\n", "line 2 has 5 cells, and the header 4"),
        ("spot,pixel_x,pixel_y,CD3\ns1,10,20,1\ns2,30,40\n", "line 3 has 3 cells, and the header 4"),
        ("spot,pixel_x,pixel_y,CD3,CD3\ns1,10,20,1,7\n", "two columns are named 'CD3'"),
        ("spot,pixel_x,pixel_y,CD3\ns1,10,20," + "1" * 140_000 + "\n", "line 2: field larger than"),
    ],
)
def test_columns_are_not_shifted_filled_up_or_renamed(tmp_path, picture, text, words):
    """pandas takes the first cells of longer lines as an index, and calls a second CD3 CD3.1."""
    (tmp_path / "C1.csv").write_text(text)
    with pytest.raises(BadInput, match=words):
        read_section(tmp_path / "C1.csv", image=picture, **OPTIONS)


def test_what_is_missing_is_said(tmp_path, picture):
    path = tmp_path / "C1.csv"
    frame().to_csv(path, index=False)
    with pytest.raises(SectionError, match="or state the table_kind of a table"):
        read_section(path, image=picture, mpp=1.0, spot_diameter_um=55.0)
    with pytest.raises(BadOption, match="spot_diameter_um"):
        read_section(path, image=picture, mpp=1.0)
    with pytest.raises(BadOption, match="image"):
        read_section(path, **OPTIONS)
    frame().drop(columns="pixel_x").to_csv(path, index=False)
    with pytest.raises(BadInput, match="no column pixel_x"):
        read_section(path, image=picture, **OPTIONS)
    path = tmp_path / "C2.parquet"
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(BadInput, match="C2"):
        read_section(path, image=picture, **OPTIONS)


@pytest.mark.parametrize("kind", ["continuous", "proportions", "binary"])
def test_a_cohort_of_each_kind_comes_back_as_it_was_written(tmp_path, kind):
    made = planted_cohort(synthetic_cohort(patients=2, spots=12, genes=24), kind, features=4)
    csv = write_cohort(made, tmp_path / "made")
    for was, now in zip(made, read_cohort(csv), strict=True):
        assert (now.table_kind, now.genes, now.metadata["synthetic"]) == (kind, was.genes, was.metadata["synthetic"])
        np.testing.assert_array_equal(now.counts.toarray(), was.counts.toarray())
    found = inspect(csv, pixels=False)
    assert found.problems == ()
    assert ("features", "4 in all, 4 named in every section") in found.rows
    assert ("table", kind) in found.rows


def test_a_cohort_states_a_known_kind_and_one_kind(tmp_path):
    made = planted_cohort(synthetic_cohort(patients=2, spots=12, genes=24), "binary", features=4)
    csv = write_cohort(made, tmp_path / "made")
    csv.write_text(csv.read_text().replace(",binary,", ",levels,", 1))
    with pytest.raises(BadOption, match=re.escape("table_kind is 'levels'; wanted one of counts, continuous")):
        read_cohort(csv)
    csv.write_text(csv.read_text().replace(",levels,", ",continuous,", 1))
    assert any("tables of several kinds" in problem for problem in inspect(csv, pixels=False).problems)


def test_an_h5ad_of_another_kind_is_taken_from_x(tmp_path, picture):
    import anndata

    values = np.array([[0.25, 0.75], [1, 0], [0.5, 0.5]], np.float32)
    table = anndata.AnnData(values, pd.DataFrame(index=["s1", "s2", "s3"]), pd.DataFrame(index=["T", "B"]))
    table.obsm["spatial"] = np.array([[10.0, 20], [30, 20], [50, 40]])
    table.layers["counts"] = np.ones((3, 2), np.float32)
    path = Path(tmp_path / "C1.h5ad")
    table.write_h5ad(path)
    options = {"image": picture, "mpp": 1.0, "spot_diameter_um": 20.0}
    assert read_section(path, **options).table_kind == "counts"
    stated = read_section(path, table_kind="proportions", **options)
    np.testing.assert_array_equal(stated.counts.toarray(), values)
    table.uns["cmrcnet_table_kind"] = "proportions"
    table.write_h5ad(path)
    assert read_section(path, **options).table_kind == "proportions"
    table.uns["cmrcnet_table_kind"] = "shares"
    table.write_h5ad(path)
    with pytest.raises(BadInput, match="cmrcnet_table_kind"):
        read_section(path, **options)


def test_features_of_a_table_are_not_summed_when_they_share_a_name(tmp_path, picture):
    from cmrcnet.readers.raw_section import checked_section
    from cmrcnet.readers.registry import SectionSource, read_raw

    frame().to_csv(tmp_path / "C1.csv", index=False)
    raw = read_raw(SectionSource.of(tmp_path / "C1.csv", image=picture, spots=None, affine=None, **OPTIONS))
    with pytest.raises(BadInput, match="repeats the feature"):
        checked_section(replace(raw, genes=("CD3", "CD3")))
