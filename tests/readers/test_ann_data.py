"""Plain AnnData files, with a picture beside them or inside."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import sparse

from cmrcnet.errors import BadInput, BadOption, ScaleError, SectionError, UnknownName
from cmrcnet.readers.cohort import read_cohort
from cmrcnet.readers.registry import read_section, sniff
from tests.readers.written_formats import ann_data_of, as_visium, cut, write_image, write_visium


def write(folder, table, name="S1.h5ad"):
    path = folder / name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table.write_h5ad(path)
    return path


def read(path, made, **options):
    image = write_image(path.with_suffix(".png"), made.image)
    given = {"image": image, "mpp": made.mpp, "spot_diameter_um": 100.0}
    return read_section(path, **{**given, **options})


def test_counts_and_centres(tmp_path, made):
    table = ann_data_of(made)
    keep = ~table.var_names.str.startswith("__") & ~table.var_names.duplicated(keep=False)
    path = write(tmp_path, table[:, keep].copy())
    assert sniff(path) == "ann_data"
    section = read(path, made)
    np.testing.assert_array_equal(section.counts.toarray(), made.counts[:, keep])
    np.testing.assert_array_equal(section.spots.centre_px, made.centre_px)
    assert section.spots.barcodes == tuple(made.barcodes)
    assert section.absent_genes == "unmeasured"


@pytest.mark.parametrize("place", ["layers", "raw", "X"])
@pytest.mark.parametrize("dense", [True, False])
def test_counts_are_found_where_they_are_whole(tmp_path, small, place, dense):
    table = ann_data_of(small)
    counts = table.X.toarray() if dense else table.X
    if place == "layers":
        table.layers["counts"] = counts
    if place == "raw":
        table.X = counts
        table.raw = table.copy()
    table.X = counts if place == "X" else sparse.csr_matrix(np.log1p(small.counts))
    section = read(write(tmp_path, table), small)
    np.testing.assert_array_equal(section.counts.toarray(), small.counts)
    said = {"layers": 'Counts are those of layers["counts"].', "raw": "Counts are those of raw."}
    assert said.get(place) in section.notes or place == "X"


def test_normalised_values_are_refused(tmp_path, small):
    table = ann_data_of(small)
    table.X = table.X.log1p()
    with pytest.raises(SectionError, match=r"in X, .* fractional, .*log-normalised .*layers\[.counts.\]"):
        read(write(tmp_path, table), small)


@pytest.mark.parametrize(("value", "said"), [(np.nan, "NaN"), (-1, "negative")])
def test_other_values_that_are_no_counts(tmp_path, small, value, said):
    table = ann_data_of(small)
    dense = table.X.toarray()
    dense[2, 3] = value
    table.X = sparse.csr_matrix(dense)
    with pytest.raises(SectionError, match=said):
        read(write(tmp_path, table), small)


def test_a_visium_file_as_scanpy_makes_it(tmp_path, small):
    import scanpy as sc

    visium = as_visium(small)
    outs = write_visium(tmp_path / "outs", visium, off_tissue=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = sc.read_visium(outs, library_id="lib")
    table.obsm["spatial"] = table.obsm["spatial"].astype(float)
    path = write(tmp_path, table)
    section = read_section(path)  # the picture inside, positions brought onto it
    direct = read_section(outs)
    np.testing.assert_allclose(section.spots.centre_px, direct.spots.centre_px)
    np.testing.assert_array_equal(section.counts.toarray(), direct.counts.toarray())
    assert section.slide.mpp == pytest.approx(direct.slide.mpp)
    assert section.spots.diameter_um == 55
    size = section.slide.width_px, section.slide.height_px
    ours, theirs = section.slide.read(0, 0, *size), direct.slide.read(0, 0, *size)
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    full = read_section(path, image=write_image(tmp_path / "full.png", visium.image))
    np.testing.assert_allclose(full.spots.centre_px, 2 * section.spots.centre_px)
    assert full.slide.mpp == pytest.approx(section.slide.mpp / 2)
    lowres = read_section(path, image=outs / "spatial" / "tissue_lowres_image.png")  # known by its name
    np.testing.assert_allclose(lowres.spots.centre_px, full.spots.centre_px / 4)
    assert lowres.slide.mpp == pytest.approx(4 * full.slide.mpp)


def test_the_stated_diameter_may_give_the_scale(tmp_path, small):
    table = ann_data_of(small)
    pictures = {"hires": small.image / 255}
    factors = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 100 / small.mpp}
    table.uns["spatial"] = {"lib": {"images": pictures, "scalefactors": factors}}
    path = write(tmp_path, table)
    section = read_section(path, spot_diameter_um=100)
    assert section.slide.mpp == pytest.approx(small.mpp)
    np.testing.assert_array_equal(section.slide.read(0, 0, 20, 10), small.image[:10, :20])
    with pytest.raises(BadOption, match=r"spot_diameter_um is None; wanted the diameter of the spots of S1"):
        read_section(path, mpp=small.mpp)


def test_what_is_missing_is_named(tmp_path, small):
    table = ann_data_of(small)
    path = write(tmp_path, table)
    with pytest.raises(BadOption, match=r"image is None; wanted the picture of S1"):
        read_section(path, mpp=4.0, spot_diameter_um=100)
    with pytest.raises(ScaleError, match=r"S1 does not say"):
        read(path, small, mpp=None)
    del table.obsm["spatial"]
    table.obsm["X_pca"] = small.centre_px
    with pytest.raises(BadInput, match=r"has no spot positions: .*obsm holds X_pca"):
        read(write(tmp_path, table), small)


def test_two_libraries_in_one_file(tmp_path, small):
    table = ann_data_of(small)
    library = {"images": {"hires": small.image}, "scalefactors": {"tissue_hires_scalef": 1.0}}
    table.uns["spatial"] = {"a": library, "b": {**library, "scalefactors": {"tissue_hires_scalef": 0.5}}}
    path = write(tmp_path, table)
    with pytest.raises(BadOption, match=r"library is None; wanted one of a, b"):
        read(path, small)  # also with a picture: two sections never lie on one
    table.obs["library_id"] = ["a"] * 10 + ["b"] * (small.spots - 10)
    path = write(tmp_path, table)
    with pytest.raises(BadOption, match=r'library is None; wanted one of a, b, .*obs\["library_id"\]'):
        read(path, small)
    section = read(path, small, library="b")
    assert section.name == "b" and section.spots.barcodes == tuple(small.barcodes[10:])
    np.testing.assert_array_equal(section.counts.toarray(), small.counts[10:])
    inside = read_section(path, mpp=4.0, spot_diameter_um=100, library="b")
    np.testing.assert_array_equal(inside.spots.centre_px, small.centre_px[10:] * 0.5)
    with pytest.raises(UnknownName, match=r"no library in .*S1.h5ad 'c'; known: a, b"):
        read(path, small, library="c")


def test_a_library_column_of_a_cohort_file(tmp_path, small):
    table = ann_data_of(small)
    table.obs["sample"] = ["a"] * 15 + ["b"] * (small.spots - 15)
    write(tmp_path, table)
    write_image(tmp_path / "S1.png", small.image)
    rows = [f"{name},P1,S1.h5ad,S1.png,4.0,100,{name}" for name in "ab"]
    csv = tmp_path / "cohort.csv"
    csv.write_text("\n".join(["section,patient,counts,image,mpp,spot_diameter_um,library", *rows]))
    a, b = read_cohort(csv)
    assert a.spots.barcodes == tuple(small.barcodes[:15]) and b.spots.barcodes == tuple(small.barcodes[15:])


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int32", "uint64", "float16", "float32"])
@pytest.mark.parametrize("dense", [True, False])
def test_sums_of_a_repeated_gene_do_not_wrap(tmp_path, small, kind, dense):
    table = ann_data_of(small)
    if kind == "float16" and not dense:
        pytest.skip("SciPy makes no sparse matrix of float16")
    counts = np.full(small.counts.shape, 120).astype(kind)
    table.X = counts if dense else sparse.csr_matrix(counts)
    table.var_names = ["A"] * 3 + [f"G{i}" for i in range(table.n_vars - 3)]
    section = read(write(tmp_path, table), small)
    assert (section.counts[:, section.genes.index("A")].toarray() == 360).all()


def test_patient_and_tissue_columns(tmp_path, small):
    table = ann_data_of(small)
    table.obs["patient"] = "P3"
    table.obs["in_tissue"] = [1] * (small.spots - 5) + [0] * 5
    section = read(write(tmp_path, table), small)
    assert section.patient == "P3"
    assert section.spots.barcodes == tuple(small.barcodes[:-5])
    np.testing.assert_array_equal(section.counts.toarray(), small.counts[:-5])


def test_duplicate_names(tmp_path, small):
    table = ann_data_of(small)
    table.obs_names = ["a", "a", *small.barcodes[2:]]
    with pytest.raises(SectionError, match=r"the spots of S1 repeat the barcode.s. a"):
        read(write(tmp_path, table), small)


@pytest.mark.parametrize("damage", ["cut", "text"])
def test_damaged_files(tmp_path, small, damage):
    path = write(tmp_path, ann_data_of(small))
    if damage == "cut":
        cut(path, 0.5)
    else:
        path.write_text("no HDF5")
    with pytest.raises(BadInput, match=r"truncated, damaged or of another kind"):
        read(path, small)
