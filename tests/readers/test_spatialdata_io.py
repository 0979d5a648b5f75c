"""Folders of platforms, and a store, against an independent reader, spatialdata-io, where it is installed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cmrcnet.readers.registry import read_section
from tests.readers.test_cell_tables import SHIFT, affine, to_image, write_merscope
from tests.readers.written_formats import write_image
from tests.readers.written_platforms import (
    made_bins,
    made_cells,
    write_cells_zarr,
    write_visium_hd,
    write_xenium,
)

spatialdata_io = pytest.importorskip("spatialdata_io")
pytestmark = pytest.mark.filterwarnings("ignore")


def matrix_to(element, system: str) -> np.ndarray:
    """2x3 matrix from the coordinates of an element to a coordinate system of its SpatialData object."""
    from spatialdata.transformations import get_transformation

    axes = ("x", "y")
    return get_transformation(element, system).to_affine_matrix(axes, axes)[:2]


def centroids(shapes) -> np.ndarray:
    return np.column_stack([shapes.geometry.centroid.x, shapes.geometry.centroid.y])


def test_visium_hd_bins_and_their_sums(tmp_path):
    made = made_bins()
    outs = write_visium_hd(tmp_path / "outs", made, (2, 8))
    image = write_image(tmp_path / "he.png", made.image)
    sdata = spatialdata_io.visium_hd(outs, dataset_id="made", load_segmentations_only=False, bins_as_squares=True)
    for um in (2, 8):
        ours, theirs = read_section(outs, image=image, bin_um=um), sdata.tables[f"square_{um:03d}um"]
        assert ours.spots.barcodes == tuple(theirs.obs_names) and ours.genes == tuple(theirs.var_names)
        assert np.array_equal(ours.counts.toarray(), theirs.X.toarray())
        shapes = sdata.shapes[f"made_square_{um:03d}um"]
        np.testing.assert_allclose(ours.spots.centre_px, centroids(shapes), atol=1e-6)
        side = np.sqrt(shapes.geometry.area)
        np.testing.assert_allclose(ours.spots.diameter_um, side * ours.slide.mpp, rtol=1e-6)
    fine = sdata.tables["square_002um"]
    for um in (6, 16):
        ours = read_section(outs, image=image, bin_um=um)
        row, column = (fine.obs[key].to_numpy() * 2 // um for key in ("array_row", "array_col"))
        names = [f"s_{um:03d}um_{r:05d}_{c:05d}-1" for r, c in zip(row, column, strict=True)]
        theirs = pd.DataFrame(fine.X.toarray(), columns=fine.var_names).groupby(names).sum()
        assert set(ours.spots.barcodes) <= set(theirs.index)
        assert np.array_equal(ours.counts.toarray(), theirs.loc[list(ours.spots.barcodes)].to_numpy())


@pytest.fixture
def xenium(tmp_path):
    made = made_cells()
    outs = write_xenium(tmp_path / "outs", made)
    write_cells_zarr(outs, made)
    off = (
        "cells_boundaries",
        "nucleus_boundaries",
        "cells_labels",
        "nucleus_labels",
        "morphology_mip",
        "morphology_focus",
    )
    sdata = spatialdata_io.xenium(outs, **dict.fromkeys(off, False), cells_as_circles=True)
    to_dapi = matrix_to(sdata.images["he_image"], "global")
    back = np.linalg.inv(np.vstack([to_dapi, [0, 0, 1]]))[:2]
    return made, outs, sdata, back


def moved(xy: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return xy @ matrix[:, :2].T + matrix[:, 2]


def test_xenium_cells_on_the_image(xenium):
    _, outs, sdata, to_image = xenium
    ours, theirs = read_section(outs, image=outs / "made_he_image.ome.tif"), sdata.tables["table"]
    assert ours.spots.barcodes == tuple(theirs.obs["cell_id"]) and ours.genes == tuple(theirs.var_names)
    assert np.array_equal(ours.counts.toarray(), theirs.X.toarray())
    circles = sdata.shapes["cell_circles"]
    centres = moved(moved(centroids(circles), matrix_to(circles, "global")), to_image)
    np.testing.assert_allclose(ours.spots.centre_px, centres, atol=1e-6)
    np.testing.assert_allclose(ours.spots.diameter_um, 2 * circles["radius"], rtol=1e-6)


def test_xenium_bins_on_the_image(xenium):
    made, outs, sdata, to_image = xenium
    bin_um = 40.0
    ours = read_section(outs, image=outs / "made_he_image.ome.tif", bin_um=bin_um)
    points = sdata.points["transcripts"].compute()
    points = points[(points["qv"] >= 20) & points["is_gene"]]
    on_image = moved(moved(points[["x", "y"]].to_numpy(), matrix_to(sdata.points["transcripts"], "global")), to_image)
    assert ours.slide.mpp == pytest.approx(made.mpp)
    half = bin_um / ours.slide.mpp / 2
    for centre, row in zip(ours.spots.centre_px, ours.counts.toarray(), strict=True):
        inside = (np.abs(on_image - centre) < half).all(axis=1)
        names = points["feature_name"][inside].value_counts()
        assert [names.get(gene, 0) for gene in ours.genes] == row.tolist()


def test_a_store_that_spatialdata_io_made_of_visium_hd(tmp_path):
    made = made_bins()
    outs = write_visium_hd(tmp_path / "outs", made, (2, 8))
    image = write_image(tmp_path / "he.tif", made.image)
    sdata = spatialdata_io.visium_hd(
        outs, dataset_id="made", load_segmentations_only=False, bins_as_squares=True, fullres_image_file=image
    )
    store = tmp_path / "made.zarr"
    sdata.write(store)
    picture = store / "images" / "made_full_image"
    for um in (2, 8):
        theirs = read_section(store / "tables" / f"square_{um:03d}um", image=picture, mpp=made.mpp)
        ours = read_section(outs, image=image, bin_um=um)
        assert ours.spots.barcodes == theirs.spots.barcodes and ours.genes == theirs.genes
        assert np.array_equal(ours.counts.toarray(), theirs.counts.toarray())
        np.testing.assert_allclose(ours.spots.centre_px, theirs.spots.centre_px, atol=1e-6)
        assert theirs.spots.diameter_um == um
        size = (theirs.slide.width_px, theirs.slide.height_px)
        assert np.array_equal(theirs.slide.read(0, 0, *size), made.image)


def test_a_merscope_region(tmp_path):
    from spatialdata_io.readers.merscope import _get_table

    rng = np.random.default_rng(0)
    folder = write_merscope(tmp_path / "region", (rng.uniform(20, 200, (120, 2)) + SHIFT, rng.poisson(2, (120, 7))))
    cells = pd.read_csv(folder / "cell_metadata.csv", index_col=0, dtype={0: str})
    cells.iloc[::-1].to_csv(folder / "cell_metadata.csv")  # they need the order of the counts
    theirs = _get_table(
        folder / "cell_by_gene.csv", folder / "cell_metadata.csv", "region", "slide", "slide_region", "x"
    )
    image = write_image(tmp_path / "he.png", np.full((440, 600, 3), 190, np.uint8))
    ours = read_section(folder, image=image, affine=affine(1.0))
    order = theirs.obs_names.get_indexer(list(ours.spots.barcodes))
    assert ours.genes == tuple(theirs.var_names)
    assert np.array_equal(ours.counts.toarray(), np.asarray(theirs.X)[order])
    np.testing.assert_allclose(ours.spots.centre_px, to_image(theirs.obsm["spatial"][order]), atol=1e-6)
