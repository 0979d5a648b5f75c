"""The prediction table keeps its contract, travels to disk, and opens in scanpy and squidpy."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pytest

from cmrcnet.errors import Damaged, ScaleError, ShapeMismatch
from cmrcnet.genes.scaling import Scaling
from cmrcnet.genes.table import check_prediction_table, prediction_table, scaling_of
from cmrcnet.search.exact import Neighbours
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import ArraySlide
from cmrcnet.testing import assert_prediction_table

GENES = ("TP53", "ENSG00000141510.14", "CD3E")
SPOTS = Spots(tuple("abcde"), np.array([[40, 30], [80, 30], [120, 30], [40, 90], [80, 90]], float), 55.0)
PROVENANCE = {"model": "f00d", "bank": "beef", "k": 50, "patients": ("P1", "P2"), "folds": None}


def slide(side=160, name="a slide", mpp=0.5):
    random = np.random.default_rng(0)
    return ArraySlide(random.integers(0, 255, (side, side, 3), dtype=np.uint8), mpp, name)


def table_of(**changes):
    random = np.random.default_rng(1)
    found = Neighbours(random.integers(0, 90, (5, 4)), random.random((5, 4)).astype(np.float32))
    options = {
        "mean": random.random((5, 3)),
        "neighbour_std": random.random((5, 3)).astype(np.float32),
        "genes": GENES,
        "spots": SPOTS,
        "slide": slide(),
        "neighbours": found,
        "provenance": PROVENANCE,
    }
    options.update(changes)
    return prediction_table(options.pop("mean"), options.pop("neighbour_std"), **options)


def test_it_keeps_the_contract_also_on_disk():
    assert_prediction_table(table_of())
    assert_prediction_table(table_of(neighbours=None))


def test_a_gene_without_a_prediction_is_nan_in_mean_and_spread_alike():
    values = np.random.default_rng(2).random((5, 3)).astype(np.float32)
    values[1, 2] = np.nan
    assert_prediction_table(table_of(mean=values, neighbour_std=values.copy()))


def test_places_are_given_in_pixels_and_micrometres():
    table = table_of()
    np.testing.assert_array_equal(table.obsm["spatial"], SPOTS.centre_px)
    np.testing.assert_array_equal(table.obs[["x_um", "y_um"]].to_numpy(), SPOTS.centre_px * 0.5)
    assert list(table.obs_names) == list(SPOTS.barcodes)


def test_similarity_is_the_mean_over_neighbours_and_absent_without_any():
    table = table_of()
    np.testing.assert_allclose(table.obs["similarity"], table.obsm["neighbour_similarity"].mean(axis=1), rtol=1e-6)
    alone = table_of(neighbours=None)
    assert alone.obs["similarity"].isna().all()
    assert "neighbour_ids" not in alone.obsm


def test_symbols_and_ensembl_ids_are_told_apart():
    var = table_of().var
    assert var["symbol"].tolist() == ["TP53", "", "CD3E"]
    assert var["ensembl_id"].tolist() == ["", "ENSG00000141510.14", ""]


def test_reliability_that_was_not_measured_says_so():
    var = table_of(reliability={"CD3E": 0.4}).var
    assert var["reliability_is"].tolist() == ["not measured", "not measured", "held-out Pearson"]
    assert var["reliability"].isna().tolist() == [True, True, False]
    assert table_of().obs["confidence"].isna().all()
    assert table_of(confidence=np.linspace(0, 1, 5)).obs["confidence"].iloc[-1] == 1


def test_the_units_of_x_and_all_provenance_travel_along(tmp_path):
    table_of().write_h5ad(tmp_path / "t.h5ad")
    ours = anndata.read_h5ad(tmp_path / "t.h5ad").uns["cmrcnet"]
    assert ours["units"] == "log1p of counts per 10,000"
    assert (ours["format"], ours["k"], ours["model"]) == (4, 50, "f00d")
    assert ours["patients"] == '["P1", "P2"]'
    assert ours["slide_fingerprint"] == slide().fingerprint()
    assert "median" in Scaling(target_sum="median").units
    assert scaling_of(anndata.read_h5ad(tmp_path / "t.h5ad")) == Scaling()


def test_the_picture_lies_under_the_spots():
    pixels = np.full((3000, 2400, 3), 255, np.uint8)
    pixels[1990:2010, 990:1010] = (200, 0, 0)
    spots = Spots(("a",), np.array([[1000.0, 2000.0]]), 100.0)
    shape = np.zeros((1, 3), np.float32)
    table = table_of(
        mean=shape, neighbour_std=shape, spots=spots, neighbours=None, slide=ArraySlide(pixels, 0.5, "plate 1/A")
    )
    library = table.uns["spatial"]["plate 1_A"]  # a slash would open a group in the file
    image, scale = library["images"]["hires"], library["scalefactors"]["tissue_hires_scalef"]
    assert max(image.shape) == 1200
    x, y = (table.obsm["spatial"][0] * scale).astype(int)
    assert image[y, x].tolist() == [200, 0, 0]
    assert library["scalefactors"]["spot_diameter_fullres"] == 200


@pytest.mark.parametrize("plotter", ["scanpy", "squidpy"])
def test_the_usual_tools_plot_it(plotter, tmp_path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    table_of().write_h5ad(tmp_path / "t.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, about each other
        table = anndata.read_h5ad(tmp_path / "t.h5ad")
        if plotter == "scanpy":
            import scanpy

            axes = scanpy.pl.spatial(table, color="TP53", show=False, return_fig=False)
            axis = axes[0]
        else:
            import squidpy

            axis = squidpy.pl.spatial_scatter(table, color="TP53", return_ax=True)
    assert axis.get_images()
    assert axis.collections
    plt.close("all")


@pytest.mark.parametrize("which", ["mean", "neighbour_std"])
def test_a_table_of_another_shape_is_refused(which):
    with pytest.raises(ShapeMismatch, match=rf"{which} has shape \(5, 2\); wanted \(5, 3\)"):
        table_of(**{which: np.zeros((5, 2), np.float32)})


def test_neighbours_of_other_places_are_refused():
    with pytest.raises(ShapeMismatch, match="neighbours"):
        table_of(neighbours=Neighbours(np.zeros((4, 2), int), np.zeros((4, 2), np.float32)))


def test_a_slide_of_unknown_scale_is_refused():
    with pytest.raises(ScaleError, match="mpp"):
        table_of(slide=slide(mpp=None))


def _set(table, name, value):
    holder, key = name
    getattr(table, holder)[key] = value


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda t: t.uns.pop("cmrcnet"), "is missing"),
        (lambda t: t.uns["cmrcnet"].update(format=9), "its format is 9"),
        (lambda t: t.uns["cmrcnet"].pop("units"), "lacks units"),
        (lambda t: t.layers.pop("neighbour_std"), "layers lacks neighbour_std"),
        (lambda t: t.obsm.pop("spatial"), "obsm lacks spatial"),
        (lambda t: t.var.drop(columns="reliability", inplace=True), "var lacks reliability"),
        (lambda t: _set(t, ("obs", "x_um"), t.obs["x_um"] * 2), "do not match the centres"),
        (lambda t: t.X.__setitem__((0, 0), np.inf), "X holds infinite values"),
        (lambda t: t.layers["neighbour_std"].__setitem__((0, 0), np.inf), "neighbour_std.* holds infinite values"),
        (lambda t: t.X.__setitem__((0, 0), np.nan), 'X and layers."neighbour_std". are not NaN at the same locations'),
        (lambda t: t.layers["neighbour_std"].__setitem__((0, 0), -1), "neighbour_std.* holds negative"),
        (lambda t: setattr(t, "X", np.asarray(t.X, np.float64)), "X is float64"),
        (lambda t: t.obsm.pop("neighbour_ids"), "neighbour_ids and neighbour_similarity"),
    ],
)
def test_each_broken_point_of_the_contract_is_named(spoil, sentence):
    table = table_of()
    check_prediction_table(table)
    spoil(table)
    with pytest.raises(Damaged, match=sentence):
        check_prediction_table(table)
