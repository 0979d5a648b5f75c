"""SpatialData stores: elements that are found, elements that are named, and those of which several fit."""

from __future__ import annotations

import json
import os

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cmrcnet import synthetic_cohort
from cmrcnet.errors import BadInput, BadOption, MissingExtra, ScaleError, UnknownName
from cmrcnet.readers.cohort import read_cohort
from cmrcnet.readers.registry import read_section, sniff
from cmrcnet.testing import assert_section, assert_slide
from tests.readers.written_formats import write_image
from tests.slides.test_spot_tables import pixels_of, spatial_data_of

spatialdata = pytest.importorskip("spatialdata")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def section():
    return synthetic_cohort(patients=1, spots=12, genes=40).read("P1S1")


@pytest.fixture
def store(tmp_path, section):
    path = tmp_path / "S1.zarr"
    spatial_data_of(section).write(path)
    return path


def added(store, kind, name, element):
    sdata = spatialdata.read_zarr(store)
    getattr(sdata, kind)[name] = element
    sdata.write_element(name)


def same(made, section):
    assert made.spots.barcodes == section.spots.barcodes and made.genes == section.genes
    np.testing.assert_allclose(made.spots.centre_px, section.spots.centre_px, atol=1e-6)
    assert np.array_equal(made.counts.toarray(), section.counts.toarray())
    assert made.spots.diameter_um == pytest.approx(section.spots.diameter_um)


def test_a_store_with_one_of_each(store, section):
    assert sniff(store) == "spatialdata"
    made = read_section(store, mpp=section.slide.mpp)
    assert made.name == "S1"
    same(made, section)
    pixels = pixels_of(section)
    slide = made.slide
    assert (slide.width_px, slide.height_px) == pixels.shape[1::-1] and slide.downsamples == (1.0, 2.0)
    assert np.array_equal(slide.read(0, 0, slide.width_px, slide.height_px), pixels)
    assert np.array_equal(slide.read(31, 17, 40, 50), pixels[17:67, 31:71])
    assert_section(made)
    assert_slide(slide)


def test_elements_by_their_paths_in_a_cohort_file(store, section):
    rows = "section,patient,format,counts,spots,image,mpp\n"
    rows += f"A1,anna,,S1.zarr/tables/table,S1.zarr/shapes/spots,S1.zarr/images/he,{section.slide.mpp}\n"
    (store.parent / "cohort.csv").write_text(rows)
    made = read_cohort(store.parent / "cohort.csv").read("A1")
    assert made.patient == "anna"
    same(made, section)


def test_only_chunks_that_are_asked_for_are_read(store, section, monkeypatch):
    import zarr

    read = []
    whole = zarr.Array.__getitem__
    monkeypatch.setattr(zarr.Array, "__getitem__", lambda self, key: read.append(key) or whole(self, key))
    made = read_section(store, mpp=section.slide.mpp)
    before = len(read)
    made.slide.read(5, 6, 7, 8)
    assert read[before:] == [(slice(0, 3), slice(6, 14), slice(5, 12))]


def test_chunks_of_the_image_that_are_absent_are_noted(store, section):
    assert not any("chunks" in note for note in read_section(store, mpp=section.slide.mpp).notes)
    chunks = [path for path in (store / "images" / "he" / "s0" / "c").rglob("*") if path.is_file()]
    chunks[0].unlink()
    notes = read_section(store, mpp=section.slide.mpp).notes
    assert any("1 chunks of the image are not in the store and read as black" in note for note in notes)


def test_several_images_are_named(store, section):
    from spatialdata.models import Image2DModel

    image = Image2DModel.parse(pixels_of(section).transpose(2, 0, 1)[:, ::2, ::2], dims=("c", "y", "x"))
    added(store, "images", "small", image)
    stain = Image2DModel.parse(pixels_of(section)[None, ..., 0], dims=("c", "y", "x"), c_coords=["DAPI"])
    added(store, "images", "stain", stain)
    with pytest.raises(BadOption, match=r"image is None; wanted one of S1.zarr/images/he, S1.zarr/images/small"):
        read_section(store, mpp=1.0)
    same(read_section(store, mpp=section.slide.mpp, image=store / "images" / "he"), section)
    with pytest.raises(BadInput, match=r"stain cannot be read as a slide: it is 1 x uint8"):
        read_section(store, mpp=1.0, image=store / "images" / "stain")


def test_a_table_of_several_regions_wants_one(store, section):
    sdata = spatialdata.read_zarr(store)
    sdata.shapes["more"] = sdata.shapes["spots"]
    table = sdata.tables["table"].copy()
    table.obs["region"] = pd.Categorical(["spots"] * 6 + ["more"] * 6)
    table.uns["spatialdata_attrs"]["region"] = ["spots", "more"]
    other = spatialdata.SpatialData(images=dict(sdata.images), shapes=dict(sdata.shapes), tables={"table": table})
    other.write(store.parent / "S2.zarr")
    path = store.parent / "S2.zarr"
    with pytest.raises(BadOption, match=r"spots is None; wanted one of S2.zarr/shapes/more, S2.zarr/shapes/spots"):
        read_section(path, mpp=section.slide.mpp)
    made = read_section(path, mpp=section.slide.mpp, spots=path / "shapes" / "more")
    assert made.spots.barcodes == section.spots.barcodes[6:]
    np.testing.assert_allclose(made.spots.centre_px, section.spots.centre_px[6:], atol=1e-6)
    added(path, "tables", "counts", table)
    with pytest.raises(BadOption, match=r"counts is None; wanted one of S2.zarr/tables/counts, S2.zarr/tables/table"):
        read_section(path, mpp=1.0)


def test_coordinate_systems_that_disagree(store, section):
    from spatialdata.transformations import Identity, Scale, set_transformation

    sdata = spatial_data_of(section)
    for element in (sdata.images["he"], sdata.shapes["spots"]):
        set_transformation(element, Identity(), "raw")
    set_transformation(sdata.shapes["spots"], Scale([20.0, 20.0], ("x", "y")), "raw")
    path = store.parent / "S3.zarr"
    sdata.write(path)
    with pytest.raises(BadOption, match=r"library is None; wanted the coordinate system, one of global, raw"):
        read_section(path, mpp=section.slide.mpp)
    same(read_section(path, mpp=section.slide.mpp, library="global", name="S"), section)
    with pytest.raises(UnknownName, match=r"no coordinate system of he 'um'; known: global, raw"):
        read_section(path, mpp=section.slide.mpp, library="um")


def test_an_image_outside_the_store_wants_an_affine(store, section):
    image = write_image(store.parent / "he.png", pixels_of(section))
    with pytest.raises(BadOption, match=r"affine is None; wanted the map from the coordinate system to pixels"):
        read_section(store, mpp=section.slide.mpp, image=image)
    made = read_section(store, mpp=section.slide.mpp, image=image, affine=[2, 0, -14, 0, 2, 6])
    same(made, section)


def test_the_diameter_of_squares_is_their_side(store, section):
    import geopandas
    from shapely import box
    from spatialdata.models import ShapesModel

    sdata = spatial_data_of(section)
    circles = sdata.shapes["spots"]
    radius = circles["radius"].iloc[0]
    squares = [box(p.x - radius, p.y - radius, p.x + radius, p.y + radius) for p in circles.geometry]
    frame = geopandas.GeoDataFrame(geometry=squares, index=circles.index)
    sdata.shapes["spots"] = ShapesModel.parse(frame, transformations=circles.attrs["transform"])
    sdata.write(store.parent / "S4.zarr")
    same(read_section(store.parent / "S4.zarr", mpp=section.slide.mpp), section)


def test_what_is_refused(store, section, monkeypatch):
    with pytest.raises(ScaleError, match=r"does not say how many micrometres"):
        read_section(store)
    with pytest.raises(BadOption, match=r"spots is .*wanted an element of the store"):
        read_section(store, mpp=1.0, spots=write_image(store.parent / "x.png", np.zeros((8, 8, 3), np.uint8)))
    chunk = max(
        (path for path in (store / "images" / "he").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )
    slide = read_section(store, mpp=section.slide.mpp).slide
    before = slide.fingerprint()
    chunk.write_bytes(b"damaged")
    damaged = read_section(store, mpp=section.slide.mpp).slide
    assert damaged.fingerprint() != before
    with pytest.raises(BadInput, match=r"a chunk cannot be read"):
        damaged.read(0, 0, damaged.width_px, damaged.height_px)
    monkeypatch.setitem(__import__("sys").modules, "spatialdata", None)
    with pytest.raises(MissingExtra, match=r"pip install 'cmrcnet\[spatialdata\]'"):
        read_section(store, mpp=1.0)


def test_indices_that_point_outside(store, section):
    import zarr

    group = zarr.open_group(store / "tables" / "table", mode="r+")
    if "X" not in group or not hasattr(group["X"], "keys"):
        sdata = spatial_data_of(section)
        sdata.tables["table"].X = sparse.csr_matrix(sdata.tables["table"].X)
        store = store.parent / "S5.zarr"
        sdata.write(store)
        group = zarr.open_group(store / "tables" / "table", mode="r+")
    group["X/indices"][3] = 4_000_000
    with pytest.raises(BadInput, match=r"a matrix is damaged: an index is 4000000|it is damaged"):
        read_section(store, mpp=section.slide.mpp)


@pytest.mark.parametrize("place", ["tables/table/X/indices/zarr.json", "images/he/s0/c/0/0/0"])
def test_a_pipe_in_a_store(store, section, place):
    (store / place).unlink()
    os.mkfifo(store / place)
    with pytest.raises(BadInput, match=f"{place} is a pipe, socket or device"):
        read_section(store, mpp=section.slide.mpp)


@pytest.mark.parametrize(
    ("array", "shape", "chunk", "why"),
    [
        ("X/data", 10**12, 10**12, r"X/data declares [\d,]+ bytes and holds"),
        ("obs/instance", 2**24, 2**24, r"obs/instance declares 1,073,741,824 bytes and holds"),  # texts
        ("obs/instance", 10**6, 5, r"obs/instance declares 200,000 chunks and holds 2 files"),
    ],
)
def test_an_array_that_declares_more_than_it_holds(store, section, array, shape, chunk, why):
    path = store / "tables" / "table" / array / "zarr.json"
    facts = json.loads(path.read_text())
    facts["shape"], facts["chunk_grid"]["configuration"]["chunk_shape"] = [shape], [chunk]
    path.write_text(json.dumps(facts))
    with pytest.raises(BadInput, match=why):
        read_section(store, mpp=section.slide.mpp)
