"""Visium HD: every bin size against sums by hand, in bounded memory, and each missing or contradicting file named."""

from __future__ import annotations

import json
from dataclasses import replace

import h5py
import numpy as np
import pandas as pd
import pytest

from cmrcnet.errors import BadInput, BadOption, MissingInput, ScaleError, SectionError
from cmrcnet.readers.cohort import read_cohort
from cmrcnet.readers.registry import read_section, sniff
from cmrcnet.readers.visium_hd import read_bin_grid, summed_counts
from cmrcnet.testing import assert_section
from tests.readers.written_formats import cut, write_image
from tests.readers.written_platforms import made_bins, write_visium_hd

pytest.importorskip("pyarrow")


@pytest.fixture
def made():
    return made_bins()


@pytest.fixture
def outs(tmp_path, made):
    write_image(tmp_path / "he.png", made.image)
    return write_visium_hd(tmp_path / "CRC1" / "outs", made)


def read(outs, **options):
    return read_section(outs, image=outs.parents[1] / "he.png", **options)


def by_hand(made, bin_um):
    """Sums and centres of the bins of which at least half is under tissue, in the order of rows and columns."""
    sums, under, there = made.merged(bin_um)
    kept = (2 * under >= there) & (under > 0)
    return sums[kept], made.centre_px(bin_um)[kept], np.argwhere(kept)


@pytest.mark.parametrize("bin_um", [2, 4, 6, 8, 10, 14, 38])
def test_every_bin_size_is_the_sum_by_hand(outs, made, bin_um):
    section = read(outs, bin_um=bin_um)
    sums, centres, places = by_hand(made, bin_um)
    assert section.name == "CRC1"
    assert section.spots.barcodes == tuple(f"s_{bin_um:03d}um_{r:05d}_{c:05d}-1" for r, c in places)
    assert np.array_equal(section.counts.toarray(), sums)
    assert section.spots.diameter_um == bin_um and section.slide.mpp == made.mpp
    whole = (places + 1).max(axis=1) * bin_um // 2 <= min(made.tissue.shape)  # those over the edge are cut there
    np.testing.assert_allclose(section.spots.centre_px[whole], centres[whole], atol=1e-6)
    assert_section(section)


def test_bins_at_the_edge_of_the_array_are_centred_on_what_there_is(outs, made):
    there = made.centre_px(2)[38:, :19].reshape(-1, 2).mean(axis=0)  # 42 rows: the third row of bins has four
    grid = read_bin_grid(outs / "binned_outputs/square_002um/spatial/tissue_positions.parquet", 19)
    assert grid.columns == 2 and grid.listed[4] == 4 * 19
    np.testing.assert_allclose(grid.centre_px[4], there, atol=1e-6)


def test_a_folder_of_the_wanted_size_is_used_as_it_is(outs, made):
    as_written = read(outs, bin_um=8)
    assert not any("sums of bins" in note for note in as_written.notes)
    (outs / "binned_outputs" / "square_008um").rename(outs / "away")
    summed = read(outs, bin_um=8)
    assert any("sums of bins of 2 um" in note for note in summed.notes)
    assert summed.spots.barcodes == as_written.spots.barcodes
    assert (summed.counts != as_written.counts).nnz == 0


@pytest.mark.parametrize("block", [1, 40, 10**9])
@pytest.mark.parametrize("shuffled", [False, True])
def test_blocks_of_any_size_and_columns_in_any_order(tmp_path, block, shuffled):
    made = made_bins(23, 16)
    outs = write_visium_hd(tmp_path / "outs", made, (2,), shuffled=shuffled)
    folder = outs / "binned_outputs" / "square_002um"
    grid = read_bin_grid(folder / "spatial" / "tissue_positions.parquet", 5)
    found = summed_counts(folder / "filtered_feature_bc_matrix.h5", grid, block_values=block)
    sums, _, places = by_hand(made, 10)
    assert np.array_equal(grid.places(found.bins), places)
    assert np.array_equal(found.values.toarray(), sums)


def test_sums_are_wider_than_what_is_stored(tmp_path, made):
    outs = write_visium_hd(tmp_path / "outs", made, (2,))
    path = outs / "binned_outputs" / "square_002um" / "filtered_feature_bc_matrix.h5"
    with h5py.File(path, "r+") as file:
        data = np.full(len(file["matrix/data"]), 255)
        del file["matrix/data"]
        file["matrix/data"] = data.astype(np.uint8)
    grid = read_bin_grid(path.parent / "spatial" / "tissue_positions.parquet", 19)
    sums, _, _ = by_hand(replace(made, counts=np.where(made.counts > 0, 255, 0)), 38)
    assert sums.max() > 20_000
    assert np.array_equal(summed_counts(path, grid).values.toarray(), sums)


def test_the_fine_matrix_is_never_held(tmp_path):
    import tracemalloc

    made = made_bins(160, 160, genes=60)
    made = replace(made, counts=np.random.default_rng(0).poisson(3, made.counts.shape))
    outs = write_visium_hd(tmp_path / "outs", made, (2,))
    path = outs / "binned_outputs" / "square_002um" / "filtered_feature_bc_matrix.h5"
    grid = read_bin_grid(path.parent / "spatial" / "tissue_positions.parquet", 20)
    summed_counts(path, grid)  # imports
    with h5py.File(path, "r") as file:
        fine_bytes = 12 * len(file["matrix/data"])  # an index of 8 bytes and a count of 4
    tracemalloc.start()
    found = summed_counts(path, grid, block_values=10_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(found.values.toarray(), by_hand(made, 40)[0])
    assert peak < fine_bytes / 2, peak


def test_where_the_folder_may_be_given_and_the_default(outs, made):
    for path in (outs, outs.parent, outs / "binned_outputs"):
        assert sniff(path) == "visium_hd"
        assert read(outs).spots.barcodes[0].startswith("s_008um")
    section = read_section(outs / "binned_outputs" / "square_002um", image=outs.parents[1] / "he.png")
    assert section.spots.barcodes[0].startswith("s_002um")
    assert len(section.spots) == made.tissue.sum()


def test_other_features_are_left_out_and_told(tmp_path, made):
    kinds = ["Gene Expression"] * 6 + ["Antibody Capture", "CRISPR Guide Capture", "Gene Expression"]
    outs = write_visium_hd(tmp_path / "outs", made, (2,), kinds=kinds)
    write_image(tmp_path / "he.png", made.image)
    section = read_section(outs, image=tmp_path / "he.png", bin_um=8)
    assert section.genes == (*made.genes[:6], made.genes[8])
    assert np.array_equal(section.counts.toarray(), by_hand(made, 8)[0][:, [0, 1, 2, 3, 4, 5, 8]])
    assert any("2 features are of another kind (Antibody Capture, CRISPR" in note for note in section.notes)


def test_the_reduced_picture_has_its_own_scale(outs, made):
    section = read_section(outs)
    assert section.slide.mpp == 2 * made.mpp
    np.testing.assert_allclose(section.spots.centre_px, read(outs).spots.centre_px / 2, atol=1e-9)
    assert any("reduced picture" in note for note in section.notes)


def test_an_affine_and_the_column_of_the_cohort(outs, made):
    csv = outs.parents[1] / "cohort.csv"
    head = "section,patient,format,counts,image,bin_um,affine\n"
    csv.write_text(head + "C1,A,visium_hd,CRC1/outs,he.png,12,0.5 0 3 0 0.5 -1\n")
    section = read_cohort(csv).read("C1")
    np.testing.assert_allclose(section.spots.centre_px, read(outs, bin_um=12).spots.centre_px * 0.5 + [3, -1])
    assert section.slide.mpp == pytest.approx(2 * made.mpp)
    csv.write_text(head + "C1,A,visium_hd,CRC1/outs,he.png,5,\n")
    with pytest.raises(BadOption, match=r"line 2 \(C1\): bin_um is 5.*multiple of 2"):
        read_cohort(csv)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("filtered_feature_bc_matrix.h5", "Space Ranger 3 or later writes outs/binned_outputs/square_002um/filtered"),
        (
            "spatial/tissue_positions.parquet",
            r"square_002um/spatial/tissue_positions.parquet .version seen: spaceranger-3.1.2",
        ),
        ("spatial/scalefactors_json.json", "scale factors"),
    ],
)
def test_missing_files_are_named_with_where_they_are_written(outs, missing, said):
    (outs / "binned_outputs" / "square_002um" / missing).unlink()
    with pytest.raises(MissingInput, match=said):
        read(outs, bin_um=6)


def test_missing_bins_and_pictures(outs):
    for path in (outs / "binned_outputs").glob("*/spatial/*.png"):
        path.unlink()
    with pytest.raises(BadOption, match="microscope image"):
        read_section(outs)
    (outs / "binned_outputs" / "square_002um").rename(outs / "away")
    assert len(read(outs, bin_um=16).spots)
    with pytest.raises(MissingInput, match=r"square_002um does not exist; bins of 10 um are summed from it"):
        read(outs, bin_um=10)
    (outs / "binned_outputs" / "square_008um").rename(outs / "away too")
    with pytest.raises(MissingInput, match="Space Ranger 3 or later"):
        read(outs, format="visium_hd")


def change_positions(outs, change):
    path = outs / "binned_outputs" / "square_002um" / "spatial" / "tissue_positions.parquet"
    table = pd.read_parquet(path)
    change(table).to_parquet(path, index=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.drop(columns="array_row"), "lacks the column"),
        (lambda t: t.assign(array_row=t["array_row"] + 1), "other places than"),
        (lambda t: t.assign(array_row=-t["array_row"]), "rows and columns"),
        (lambda t: t.assign(array_row=t["array_row"] * 10**6), "rows and columns"),
        (lambda t: t.assign(pxl_col_in_fullres=np.nan), "empty cells"),
        (lambda t: t.assign(array_row="a"), "no numbers"),
        (
            lambda t: t.assign(barcode=t["barcode"].str.replace("-1", "-2").where(t.index % 2 == 0, t["barcode"])),
            "alike",
        ),
        (lambda t: t.assign(barcode="x"), "names no bin"),
        (lambda t: t.assign(barcode=t["barcode"].where(t.index != 5)), "alike"),
        (lambda t: pd.concat([t, t[:3]]), "several times"),
        (lambda t: t[:0], "no bin"),
        (lambda t: t[t["array_row"] < 20], "no position"),
    ],
)
def test_positions_that_cannot_be_right(outs, change, said):
    change_positions(outs, change)
    with pytest.raises(BadInput, match=said):
        read(outs, bin_um=4)


def change_matrix(outs, name, change):
    path = outs / "binned_outputs" / "square_002um" / "filtered_feature_bc_matrix.h5"
    with h5py.File(path, "r+") as file:
        values = change(file["matrix"][name][:])
        del file["matrix"][name]
        file["matrix"][name] = values


def with_value(index, value):
    def change(values):
        values[index] = value
        return values

    return change


@pytest.mark.parametrize(
    ("name", "change", "error", "said"),
    [
        ("indices", with_value(5, 10**6), BadInput, "index of a feature"),
        ("indices", with_value(5, -1), BadInput, "index of a feature"),
        ("indptr", with_value(5, 10**6), BadInput, "indptr"),
        ("indptr", with_value(0, 2), BadInput, "indptr"),
        ("indptr", lambda values: values[:-1], BadInput, "do not fit"),
        ("data", lambda values: values[:-1], BadInput, "indptr"),
        ("data", with_value(5, -100_000), SectionError, "raw counts"),
        ("data", lambda values: values + 0.5, SectionError, "raw counts"),
        ("shape", lambda values: values + 1, BadInput, "do not fit"),
        ("barcodes", with_value(1, b"s_002um_00009_00009-1"), SectionError, "repeats 1 barcode"),
        ("barcodes", with_value(1, b"s_002um_00001_00001-2"), BadInput, "not written alike"),
        ("barcodes", lambda values: np.char.replace(values, b"002um", b"008um"), BadInput, "bins are of 8 um"),
    ],
)
def test_matrices_that_cannot_be_right(outs, name, change, error, said):
    change_matrix(outs, name, change)
    with pytest.raises(error, match=said):
        read(outs, bin_um=4)


def test_truncated_files(outs):
    folder = outs / "binned_outputs" / "square_002um"
    cut(folder / "filtered_feature_bc_matrix.h5")
    with pytest.raises(BadInput, match="truncated"):
        read(outs, bin_um=4)
    cut(folder / "spatial" / "tissue_positions.parquet")
    with pytest.raises(BadInput, match="truncated"):
        read(outs, bin_um=4)


def test_a_scale_that_the_bins_contradict(outs):
    path = outs / "binned_outputs" / "square_002um" / "spatial" / "scalefactors_json.json"
    factors = json.loads(path.read_text())
    path.write_text(json.dumps({**factors, "microns_per_pixel": factors["microns_per_pixel"] * 1.2}))
    with pytest.raises(ScaleError, match="microns_per_pixel"):
        read(outs, bin_um=4)
    del factors["microns_per_pixel"]
    path.write_text(json.dumps(factors))
    assert read(outs, bin_um=4).slide.mpp == pytest.approx(0.5)
