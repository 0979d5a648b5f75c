"""Prediction tables, opened and drawn by the packages themselves, as they are."""

from __future__ import annotations

import shutil

import anndata
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

pytestmark = pytest.mark.filterwarnings("ignore")
mpl.use("Agg")


def test_scanpy_draws_a_gene_and_ranks_genes(stored):
    import scanpy as sc

    table = anndata.read_h5ad(stored)
    gene = table.var_names[0]
    axes = sc.pl.embedding(table, "spatial", color=gene, show=False)
    assert len(axes.collections[0].get_offsets()) == table.n_obs
    table.obs["half"] = np.where(table.obsm["spatial"][:, 0] > np.median(table.obsm["spatial"][:, 0]), "right", "left")
    table.obs["half"] = table.obs["half"].astype("category")
    sc.tl.rank_genes_groups(table, "half", method="wilcoxon")
    assert set(sc.get.rank_genes_groups_df(table, "left")["names"]) == set(table.var_names)


def test_squidpy_draws_on_the_slide_and_finds_neighbours(stored):
    import squidpy as sq

    table = anndata.read_h5ad(stored)
    axis = sq.pl.spatial_scatter(table, color=table.var_names[0], return_ax=True)
    assert axis is not None
    sq.gr.spatial_neighbors(table, coord_type="generic", n_neighs=6)
    sq.gr.spatial_autocorr(table, mode="moran", n_perms=None)
    assert np.isfinite(table.uns["moranI"]["I"]).any()


def test_spatialdata_plot_draws_tiles_over_the_picture(store):
    import spatialdata
    import spatialdata_plot  # noqa: F401

    sdata = spatialdata.read_zarr(store)
    gene = sdata.tables["cmrcnet_tiles"].var_names[0]
    figure, axis = plt.subplots()
    sdata.pl.render_images("he").pl.render_shapes("tiles", color=gene, table_name="cmrcnet_tiles").pl.show(ax=axis)
    assert axis.collections and axis.images
    figure.canvas.draw()


def test_napari_spatialdata_takes_the_store(store):
    import spatialdata
    from napari_spatialdata.utils._utils import get_elements_meta_mapping

    mapping, _ = get_elements_meta_mapping([spatialdata.read_zarr(store)], "global", [])
    assert {"he", "tiles"} <= set(mapping)


@pytest.fixture
def wsi(store, section, tmp_path):
    """The slide as LazySlide opens it, with our store."""
    import wsidata

    from tests.slides.slide_making import write_tiled_pyramid

    pixels = section.slide.read(0, 0, section.slide.width_px, section.slide.height_px)
    shutil.copytree(store, tmp_path / "copy.zarr")
    slide = write_tiled_pyramid(tmp_path / "slide.tiff", pixels, levels=1)
    return wsidata.open_wsi(slide, store=str(tmp_path / "copy.zarr"))


def test_lazyslide_reads_the_table_beside_its_tiles_and_its_tiles_are_locations(wsi, stored):
    table = anndata.read_h5ad(stored)
    np.testing.assert_allclose(wsi["cmrcnet_tiles"].X, table.X, rtol=1e-6)
    joined = wsi.fetch.features_anndata("cmrcnet")
    assert joined.n_obs == table.n_obs and list(joined.var_names) == list(table.var_names)
    centres = wsi["tiles"][["x", "y"]].to_numpy() + wsi.tile_spec("tiles").width / 2
    np.testing.assert_allclose(centres, table.obsm["spatial"], atol=1)


def test_lazyslide_draws_a_gene_on_the_tiles(wsi):
    import lazyslide as zs

    zs.pl.tiles(wsi, feature_key="cmrcnet", color=[wsi["cmrcnet_tiles"].var_names[0]])
    assert plt.gcf().axes
