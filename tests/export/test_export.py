"""What other programs read of a prediction, read back by other libraries."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from cmrcnet.errors import BadOption, MissingExtra, OutputExists, UnknownName
from cmrcnet.export.formats import export
from cmrcnet.slides.slide import ArraySlide
from tests.export.conftest import COLUMNS, MPP, PITCH_PX, ROWS, gradient_table


def test_qupath_gets_a_square_a_place_in_level_0_pixels(prediction, tmp_path):
    from shapely.geometry import shape

    export(prediction, tmp_path / "a.geojson", genes=["ACROSS", "UNMEASURED"])
    found = json.loads((tmp_path / "a.geojson").read_text())
    assert found["type"] == "FeatureCollection" and len(found["features"]) == len(prediction)
    assert len({feature["id"] for feature in found["features"]}) == len(prediction)
    for feature, barcode, centre in zip(found["features"], prediction.obs.index, prediction.centre_px, strict=True):
        square = shape(feature["geometry"])
        assert square.is_valid and square.area == PITCH_PX**2 and list(square.centroid.coords[0]) == list(centre)
        said = feature["properties"]
        assert (said["objectType"], said["name"]) == ("tile", barcode)
        column = int(barcode[1:6])
        wanted = {"similarity": 0.75, "ACROSS": column} | ({} if column < 2 else {"UNMEASURED": 1})
        assert said["measurements"] == wanted


def test_a_raster_has_a_pixel_a_place_and_its_size(prediction, tmp_path):
    import tifffile

    export(prediction, tmp_path / "a.ome.tiff", genes=["DOWN", "ACROSS"])
    with tifffile.TiffFile(tmp_path / "a.ome.tiff") as tiff:
        assert tiff.is_ome
        down, across = tiff.asarray()
        for said in ('Name="DOWN"', 'Name="ACROSS"', 'PhysicalSizeX="50.0"', 'PhysicalSizeYUnit="µm"'):
            assert said in tiff.ome_metadata
    wanted = np.repeat(np.arange(ROWS, dtype=np.float32)[:, None], COLUMNS, axis=1)
    wanted[2, 3] = np.nan
    np.testing.assert_array_equal(down, wanted)
    np.testing.assert_array_equal(across[0], np.arange(COLUMNS))


def test_places_that_share_a_pixel_are_averaged(prediction):
    from cmrcnet.export.gene_maps import raster

    prediction.centre_px[:] = [10.0, 10.0]
    found = raster(prediction, np.arange(34, dtype=np.float32))
    assert found[0, 0] == np.mean(np.arange(34)) and np.isnan(found).sum() == found.size - 1


def test_heat_maps_show_each_gene_where_it_is(prediction, tmp_path):
    """The map of ACROSS gets brighter to the right, that of DOWN downwards."""
    from PIL import Image

    export(prediction, tmp_path / "a.png", genes=["ACROSS", "DOWN"])
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(float)
    assert picture.shape[1] > 2 * picture.shape[0]
    maps = [panel.mean(axis=2) for panel in np.array_split(picture, 3, axis=1)[1:]]
    middle = slice(int(0.4 * picture.shape[0]), int(0.75 * picture.shape[0]))
    across, down = (panel[middle, int(0.05 * panel.shape[1]) : int(0.75 * panel.shape[1])] for panel in maps)
    assert np.polyfit(np.arange(across.shape[1]), across.mean(axis=0), 1)[0] > 0.1
    assert np.polyfit(np.arange(down.shape[0]), down.mean(axis=1), 1)[0] > 0.1


def test_spatialdata_reads_the_store(prediction, tmp_path):
    spatialdata = pytest.importorskip("spatialdata")
    export(prediction, tmp_path / "a.zarr")
    store = spatialdata.read_zarr(tmp_path / "a.zarr")
    table, wanted = store.tables["cmrcnet_tiles"], gradient_table()
    np.testing.assert_array_equal(table.X, wanted.X)
    np.testing.assert_array_equal(table.layers["neighbour_std"], wanted.layers["neighbour_std"])
    assert list(table.obs_names) == list(wanted.obs_names) and list(table.var_names) == list(wanted.var_names)
    assert table.uns["cmrcnet"]["units"] == wanted.uns["cmrcnet"]["units"]
    assert store.images["he"].shape == (3, 500, 700)
    # The table annotates the squares, and the squares lie where the locations are.
    tiles, joined = spatialdata.join_spatialelement_table(
        sdata=store, spatial_element_names="tiles", table_name="cmrcnet_tiles"
    )
    centres = tiles["tiles"].centroid
    np.testing.assert_allclose(np.column_stack([centres.x, centres.y]), joined.obsm["spatial"])


def test_the_picture_of_a_store_lies_on_the_places(prediction, tmp_path, monkeypatch):
    spatialdata = pytest.importorskip("spatialdata")
    monkeypatch.setattr("cmrcnet.export.spatial_store.IMAGE_PX", 70)
    slide = ArraySlide(np.full((500, 700, 3), 99, np.uint8), MPP, "gradient")
    export(prediction, tmp_path / "a.zarr", slide=slide)
    store = spatialdata.read_zarr(tmp_path / "a.zarr")
    assert store.images["he"].shape == (3, 50, 70) and int(store.images["he"].max()) == 99
    extent = spatialdata.get_extent(store, elements=["he"])
    assert extent["x"] == (0, 700) and extent["y"] == (0, 500)


def test_lazyslide_finds_its_tiles(prediction, tmp_path):
    """The rules of `wsidata.io`: what `add_tiles` and `add_features` write."""
    spatialdata = pytest.importorskip("spatialdata")
    export(prediction, tmp_path / "a.zarr")
    store = spatialdata.read_zarr(tmp_path / "a.zarr")
    assert {"tile_id", "x", "y", "tissue_id", "geometry"} <= set(store.shapes["tiles"].columns)
    assert store.tables["cmrcnet_tiles"].uns["spatialdata_attrs"] == {
        "region": "tiles",
        "region_key": "library_id",
        "instance_key": "tile_id",
    }
    assert store.attrs["tile_spec"]["tiles"]["width"] == PITCH_PX
    assert store.attrs["slide_properties"] == {"shape": [500, 700], "mpp": MPP}


def test_wsidata_itself_opens_the_store(prediction, tmp_path):
    wsidata = pytest.importorskip("wsidata")
    from tests.slides.slide_making import write_tiled_pyramid

    slide = write_tiled_pyramid(tmp_path / "a.tiff", np.full((500, 700, 3), 99, np.uint8), levels=1)
    export(prediction, tmp_path / "a.zarr")
    wsi = wsidata.open_wsi(slide, store=str(tmp_path / "a.zarr"))
    np.testing.assert_array_equal(wsi["cmrcnet_tiles"].X, gradient_table().X)
    assert wsi.tile_spec("tiles").width == PITCH_PX and wsi.properties.mpp == MPP
    joined = wsi.fetch.features_anndata("cmrcnet")
    np.testing.assert_array_equal(joined.X, gradient_table().X)


def test_a_store_replaces_a_store_of_ours_and_nothing_else(prediction, tmp_path):
    pytest.importorskip("spatialdata")
    export(prediction, tmp_path / "a.zarr")
    with pytest.raises(OutputExists, match="exists already"):
        export(prediction, tmp_path / "a.zarr")
    export(prediction, tmp_path / "a.zarr", overwrite=True)
    (tmp_path / "b.zarr").mkdir()
    (tmp_path / "b.zarr" / "zarr.json").write_text("{}")
    with pytest.raises(OutputExists, match="did not write"):
        export(prediction, tmp_path / "b.zarr", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "b.zarr"]


def test_bad_wishes_are_refused_and_leave_nothing(prediction, tmp_path, monkeypatch):
    with pytest.raises(BadOption, match=r"wanted a name that ends in \.geojson, \.png, .* or \.zarr"):
        export(prediction, tmp_path / "a.csv")
    with pytest.raises(BadOption, match=r"wanted nothing together with \.zarr, which holds every gene"):
        export(prediction, tmp_path / "a.zarr", genes=["DOWN"])
    for name in ("a.geojson", "a.png", "a.ome.tiff"):
        with pytest.raises(UnknownName, match="There is no gene in the prediction 'ACTB'"):
            export(prediction, tmp_path / name, genes=["ACTB"])
    monkeypatch.setitem(sys.modules, "spatialdata", None)
    with pytest.raises(MissingExtra, match=r"needs spatialdata, .*; run: pip install 'cmrcnet\[spatialdata\]'"):
        export(prediction, tmp_path / "a.zarr")
    assert list(tmp_path.iterdir()) == []
