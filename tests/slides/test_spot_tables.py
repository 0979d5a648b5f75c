"""Sections from AnnData and SpatialData objects in memory: the same section comes back, and bad tables are refused."""

from __future__ import annotations

import sys
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest

from cmrcnet import Section, read_section, synthetic_cohort
from cmrcnet.errors import BadInput, BadOption, MissingExtra, ScaleError, SectionError, UnknownName
from cmrcnet.slides.slide import ArraySlide
from cmrcnet.slides.table_kinds import check_counts
from cmrcnet.testing import assert_section


@pytest.fixture(scope="module")
def section() -> Section:
    return synthetic_cohort(patients=1, spots=20, genes=40).read("P1S1")


def pixels_of(section: Section) -> np.ndarray:
    return section.slide.read(0, 0, section.slide.width_px, section.slide.height_px)


def table_of(section: Section, **uns) -> anndata.AnnData:
    """The section as a table of its own, with what Space Ranger and scanpy keep beside the counts."""
    obs = pd.DataFrame({"patient": section.patient}, index=list(section.spots.barcodes))
    table = anndata.AnnData(section.counts.copy(), obs, pd.DataFrame(index=list(section.genes)))
    table.obsm["spatial"] = np.array(section.spots.centre_px)
    diameter_px = section.spots.diameter_um / section.slide.mpp
    table.uns["spatial"] = {"lib": {"scalefactors": {"spot_diameter_fullres": diameter_px}}, **uns}
    return table


def assert_same(made: Section, section: Section) -> None:
    assert_section(made)
    np.testing.assert_array_equal(made.counts.toarray(), section.counts.toarray())
    np.testing.assert_allclose(made.spots.centre_px, section.spots.centre_px, atol=1e-9)
    assert made.spots.barcodes == section.spots.barcodes and made.genes == section.genes
    assert made.spots.diameter_um == pytest.approx(section.spots.diameter_um)
    assert made.slide.mpp == section.slide.mpp and made.patient == section.patient
    np.testing.assert_array_equal(pixels_of(made), pixels_of(section))


def test_an_anndata_round_trip(section):
    made = Section.from_anndata(table_of(section), section.slide)
    assert_same(made, section)
    assert made.name == section.slide.name and made.notes == ()


def test_a_path_and_an_array_are_opened(section, tmp_path):
    from PIL import Image

    Image.fromarray(pixels_of(section)).save(tmp_path / "C6.png")
    made = Section.from_anndata(table_of(section), tmp_path / "C6.png", mpp=section.slide.mpp)
    assert_same(made, section)
    assert made.name == "C6"
    assert_same(Section.from_anndata(table_of(section), pixels_of(section), mpp=section.slide.mpp), section)


def test_it_is_the_section_that_the_reader_makes_of_the_file(section, tmp_path):
    from PIL import Image

    table = table_of(section)
    Image.fromarray(pixels_of(section)).save(tmp_path / "full.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table.write_h5ad(tmp_path / "S.h5ad")
    diameter = section.spots.diameter_um
    read = read_section(
        tmp_path / "S.h5ad", image=tmp_path / "full.png", mpp=section.slide.mpp, spot_diameter_um=diameter
    )
    made = Section.from_anndata(table, tmp_path / "full.png", mpp=section.slide.mpp, name="S")
    assert_same(made, read)


def test_a_layer_and_given_names_and_diameter(section):
    table = table_of(section)
    table.layers["counts"] = table.X
    table.X = table.X.log1p()
    options = {"spot_diameter_um": 55.0, "patient": "Q", "name": "T", "absent_genes": "zero"}
    made = Section.from_anndata(table, section.slide, layer="counts", **options)
    np.testing.assert_array_equal(made.counts.toarray(), section.counts.toarray())
    assert (made.spots.diameter_um, made.patient, made.name, made.absent_genes) == (55.0, "Q", "T", "zero")
    with pytest.raises(SectionError, match=r"counts of P1S1 are not raw counts: .* fractional"):
        Section.from_anndata(table, section.slide, name="P1S1")
    with pytest.raises(UnknownName, match=r"There is no layer 'raw'; known: counts"):
        Section.from_anndata(table, section.slide, layer="raw")


def test_spots_off_tissue_and_a_few_off_the_image_are_dropped_with_a_note(section):
    table = table_of(section)
    table.obs["in_tissue"] = [0, *[1] * 19]
    table.obsm["spatial"][1] = (-5, 10)
    made = Section.from_anndata(table, section.slide)
    assert made.spots.barcodes == section.spots.barcodes[2:]
    assert made.notes == (
        "1 of 20 spots are not under tissue: dropped.",
        "1 of 19 spots have their centre outside the image: dropped.",
    )
    table.obsm["spatial"] += 10_000
    with pytest.raises(SectionError, match=r"19 of 19 spots of P1S1 lie outside its image"):
        Section.from_anndata(table, section.slide, name="P1S1")


def test_one_library_of_several_is_taken(section):
    table = table_of(section, other={"scalefactors": {"spot_diameter_fullres": 1.0}})
    table.obs["library_id"] = ["lib", "other"] * 10
    table.obs["patient"] = ["P1", "P2"] * 10
    with pytest.raises(BadOption, match=r'wanted one of lib, other, because .* sections by obs\["library_id"\]'):
        Section.from_anndata(table, section.slide)
    made = Section.from_anndata(table, section.slide, library="lib")
    assert made.spots.barcodes == section.spots.barcodes[::2] and made.patient == "P1"
    np.testing.assert_array_equal(made.counts.toarray(), section.counts.toarray()[::2])
    assert made.spots.diameter_um == pytest.approx(section.spots.diameter_um)
    table.obs["patient"], table.obs["library_id"] = [7.0, np.nan] * 10, [1.0, 2.0] * 10
    made = Section.from_anndata(table, section.slide, library="1", spot_diameter_um=55.0)
    assert made.spots.barcodes == section.spots.barcodes[::2] and made.patient == "7"
    table.obs["library_id"] = ["lib", "other"] * 10
    cut_out = table[table.obs["library_id"] == "lib"].copy()  # keeps both entries of uns
    assert Section.from_anndata(cut_out, section.slide).spots.barcodes == section.spots.barcodes[::2]


@pytest.mark.parametrize(("value", "said"), [(-1, "negative"), (2**31 + 5, r"too large \(did they wrap\?\)")])
@pytest.mark.parametrize("kind", [np.int8, np.int64, np.uint32, np.float64])
def test_wrapped_counts_are_refused(value, said, kind):
    if not np.can_cast(np.min_scalar_type(value), kind):
        pytest.skip("the type does not hold this value")
    with pytest.raises(SectionError, match=f"1 values are {said}, the first .* at spot b, gene g"):
        check_counts(np.array([[0], [value]], kind), "S1", barcodes=["a", "b"], genes=["g"])


def test_counts_that_were_rounded_are_refused():
    check_counts(np.array([[2048]], np.float16), "S1")
    with pytest.raises(SectionError, match=r"float16, which rounds counts above 2,048, up to 2,050 here"):
        check_counts(np.array([[2050]], np.float16), "S1")


def test_text_is_no_count():
    with pytest.raises(SectionError, match=r"its values are of type <U1"):
        check_counts(np.array([["1"]]), "S1")


def test_bad_tables_are_refused(section):
    def made(change, **options):
        table = table_of(section)
        change(table)
        return Section.from_anndata(table, section.slide, name="P1S1", **options)

    with pytest.raises(BadInput, match=r'obsm\["spatial"\] is missing'):
        made(lambda table: table.obsm.pop("spatial"))
    with pytest.raises(BadOption, match=r"spot_diameter_um is None; wanted the diameter of the spots of P1S1"):
        made(lambda table: table.uns.clear())
    with pytest.raises(BadOption, match=r"library is None; wanted one of lib, b, because P1S1 holds several"):
        made(lambda table: table.uns["spatial"].update(b={}))
    with pytest.raises(BadInput, match=r"has 2 entries, and no column of obs .* says which spot is of which"):
        made(lambda table: table.uns["spatial"].update(b={}), library="lib")
    with pytest.raises(UnknownName, match=r"library in P1S1 'c'; known: lib"):
        made(lambda table: None, library="c")
    with pytest.raises(SectionError, match=r"repeat the barcode.s. a"):
        made(lambda table: setattr(table, "obs_names", ["a", "a", *section.spots.barcodes[2:]]))
    with pytest.raises(SectionError, match=r"P1S1 repeats the gene.s. g"):
        made(lambda table: setattr(table, "var_names", ["g", "g", *section.genes[2:]]))
    with pytest.raises(SectionError, match=r"P1S1 holds 20 spots and 0 genes"):
        made(lambda table: setattr(table, "X", table.X * 0))
    with pytest.raises(ScaleError, match=r"does not say how many micrometres"):
        Section.from_anndata(table_of(section), ArraySlide(pixels_of(section)))
    with pytest.raises(BadOption, match=r"mpp is 0.5; wanted None for a slide that is open already"):
        Section.from_anndata(table_of(section), section.slide, mpp=0.5)
    table = table_of(section)
    del table.obs["patient"]
    assert Section.from_anndata(table, section.slide, name="S").patient == "S"


def spatial_data_of(section: Section, scale: float = 0.5, pyramid: bool = True):
    """The section in a coordinate system of its own: image scaled and moved, spots given in other units."""
    spatialdata = pytest.importorskip("spatialdata")
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Scale, Sequence, Translation

    image = Image2DModel.parse(
        pixels_of(section).transpose(2, 0, 1),
        dims=("c", "y", "x"),
        scale_factors=[2] if pyramid else None,
        transformations={"global": Sequence([Scale([scale, scale], ("x", "y")), Translation([7, -3], ("x", "y"))])},
    )
    world = np.array(section.spots.centre_px) * scale + (7, -3)
    radius_px = section.spots.diameter_um / section.slide.mpp / 2
    order = np.random.default_rng(0).permutation(len(world))
    spots = ShapesModel.parse(
        world[order] / 10,
        geometry=0,
        radius=radius_px * scale / 10,
        index=pd.Index([f"spot {i}" for i in order]),
        transformations={"global": Scale([10.0, 10.0], ("x", "y"))},
    )
    table = table_of(section)
    del table.uns["spatial"], table.obsm["spatial"]
    table.obs["region"] = pd.Categorical(["spots"] * len(world))
    table.obs["instance"] = [f"spot {i}" for i in range(len(world))]
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="instance")
    return spatialdata.SpatialData(images={"he": image}, shapes={"spots": spots}, tables={"table": table})


@pytest.mark.parametrize("pyramid", [True, False])
def test_a_spatialdata_round_trip(section, pyramid):
    sdata = spatial_data_of(section, pyramid=pyramid)
    assert_same(Section.from_spatialdata(sdata, image="he", mpp=section.slide.mpp, name="P1S1"), section)
    made = Section.from_spatialdata(sdata, image="he", shapes="spots", mpp=section.slide.mpp, spot_diameter_um=55.0)
    assert made.spots.diameter_um == 55 and made.name == "he"


def test_elements_that_are_not_there(section):
    sdata = spatial_data_of(section)
    for options, said in (
        ({"image": "if"}, r"no image in the SpatialData object 'if'; known: he"),
        ({"image": "he", "table": "counts"}, r"no table in the SpatialData object 'counts'; known: table"),
        ({"image": "he", "shapes": "cells"}, r"no shapes in the SpatialData object 'cells'; known: spots"),
        ({"image": "he", "coordinate_system": "um"}, r"no coordinate system of he 'um'; known: global"),
    ):
        with pytest.raises(UnknownName, match=said):
            Section.from_spatialdata(sdata, mpp=1.0, **options)
    with pytest.raises(ScaleError, match=r"does not say how many micrometres"):
        Section.from_spatialdata(sdata, image="he")


def test_without_spatialdata_its_extra_is_named(section, monkeypatch):
    monkeypatch.setitem(sys.modules, "spatialdata", None)
    with pytest.raises(MissingExtra, match=r"pip install 'cmrcnet\[spatialdata\]'"):
        Section.from_spatialdata(None, image="he")
