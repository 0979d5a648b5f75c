"""A prediction as a SpatialData store (zarr) that LazySlide's WSIData opens as well.

============================= ======================================================================================
``images["he"]``              thumbnail of the slide, with a scale to level-0 pixels
``shapes["tiles"]``           a square per location in level-0 pixels, with WSIData's ``tile_id x y tissue_id``
``tables["cmrcnet_tiles"]``   the prediction table, annotating ``tiles`` (``library_id``, ``tile_id``)
``attrs``                     WSIData's ``tile_spec`` and ``slide_properties``
============================= ======================================================================================

With spatialdata: ``spatialdata.read_zarr("OUT.zarr")``. With LazySlide: ``wsi = wsidata.open_wsi("SLIDE.svs",
store="OUT.zarr")``, then ``wsi["cmrcnet_tiles"]`` is the table, ``wsi.fetch.features_anndata("cmrcnet")`` joins it
with the tiles, and ``zs.pl.tiles(wsi, feature_key="cmrcnet", color=["ERBB2"])`` draws it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cmrcnet.errors import MissingExtra
from cmrcnet.export.stored_prediction import StoredPrediction
from cmrcnet.slides.patches import thumbnail
from cmrcnet.slides.slide import Slide

IMAGE, TILES, TABLE = "he", "tiles", "cmrcnet_tiles"
IMAGE_PX = 4096
"""Longest side of the image that is read from a slide."""
CHUNK = (1024, 128)
"""Locations x genes of a chunk."""


def write_spatial_data(prediction: StoredPrediction, path: Path, slide: Slide | None = None) -> None:
    """Write the store to a folder that is not there yet; the table is copied in chunks.

    The picture is that of `slide`, or the small one that the table carries. Without spatialdata it is a `MissingExtra`.
    """
    require_spatialdata()
    import spatialdata
    from spatialdata.models import Image2DModel, ShapesModel
    from spatialdata.transformations import Identity, Scale

    if slide is None:
        picture, step = prediction.picture
    else:
        step = max(1.0, max(slide.width_px, slide.height_px) / IMAGE_PX)
        picture = thumbnail(slide, step)
    scaled: Any = {"global": Scale([step, step], axes=("x", "y"))}
    store = spatialdata.SpatialData(
        images={IMAGE: Image2DModel.parse(picture.transpose(2, 0, 1), dims=("c", "y", "x"), transformations=scaled)},
        shapes={TILES: ShapesModel.parse(_tiles(prediction), transformations={"global": Identity()})},
        tables={TABLE: _frame(prediction)},
        attrs=_attributes(prediction),
    )
    store.write(path)
    _fill(prediction, path / "tables" / TABLE)
    store.write_consolidated_metadata()


def require_spatialdata() -> None:
    """Raise `MissingExtra` where spatialdata is not installed."""
    try:
        import spatialdata  # noqa: F401
    except ImportError as error:
        raise MissingExtra("spatialdata", "A .zarr", "'cmrcnet[spatialdata]'") from error


def _tiles(prediction: StoredPrediction):
    """The locations as squares."""
    import geopandas
    import shapely

    corner = prediction.centre_px - prediction.side_px / 2
    far = corner + prediction.side_px
    return geopandas.GeoDataFrame(
        {
            "tile_id": np.arange(len(prediction)),
            "x": corner[:, 0],
            "y": corner[:, 1],
            "tissue_id": np.zeros(len(prediction), np.int64),
        },
        geometry=shapely.box(corner[:, 0], corner[:, 1], far[:, 0], far[:, 1]),
    )


def _frame(prediction: StoredPrediction):
    """The table without its matrices."""
    import anndata
    import pandas as pd
    from spatialdata.models import TableModel

    obs = prediction.obs.copy()
    obs["tile_id"] = np.arange(len(obs))
    obs["library_id"] = pd.Categorical([TILES] * len(obs))
    frame = anndata.AnnData(obs=obs, var=prediction.var, uns={"cmrcnet": prediction.facts})
    frame.obsm["spatial"] = prediction.centre_px
    return TableModel.parse(frame, region=TILES, region_key="library_id", instance_key="tile_id")


def _attributes(prediction: StoredPrediction) -> dict[str, Any]:
    """Attributes that WSIData reads: how the tiles were cut, and the slide's properties."""
    mpp, side = float(prediction.facts["mpp"]), max(1, round(prediction.side_px))
    width, height = prediction.slide_px
    spec = {
        "height": side,
        "width": side,
        "stride_height": side,
        "stride_width": side,
        "mpp": mpp,
        "ops_level": 0,
        "ops_downsample": 1.0,
        "base_level": 0,
        "base_downsample": 1.0,
        "tissue_name": None,
    }
    return {"tile_spec": {TILES: spec}, "slide_properties": {"shape": [height, width], "mpp": mpp}}


def _fill(prediction: StoredPrediction, table: Path) -> None:
    """Copy X and the layers in chunks of locations."""
    import zarr

    group = zarr.open_group(table, mode="r+", use_consolidated=False)
    shape = (len(prediction), len(prediction.genes))
    chunks = tuple(min(most, size) for most, size in zip(CHUNK, shape, strict=True))
    arrays: dict[str | None, Any] = {}
    for name in (None, *prediction.layers):
        key = "X" if name is None else f"layers/{name}"
        arrays[name] = group.create_array(key, shape=shape, chunks=chunks, dtype=np.float32, overwrite=True)
        arrays[name].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    for start in range(0, len(prediction), CHUNK[0]):
        rows = slice(start, min(start + CHUNK[0], len(prediction)))
        for name, array in arrays.items():
            array[rows] = prediction.rows(rows, name)
