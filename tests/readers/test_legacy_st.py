"""First-generation Spatial Transcriptomics against pandas, in every way in which it is written."""

from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest

from cmrcnet.errors import BadInput, BadOption, MissingInput, SectionError
from cmrcnet.readers.registry import read_section, sniff
from tests.readers.written_formats import cut, edit_spots, made_up, write_legacy


def read(counts, **options):
    return read_section(counts, **{"mpp": 4.0, **options})


@pytest.mark.parametrize("spot_column", [False, True])
def test_a_section_in_its_true_layout(tmp_path, made, spot_column):
    counts = write_legacy(tmp_path, made, spot_column=spot_column)
    assert sniff(counts) == "legacy_st"
    section = read(counts, mpp=made.mpp, patient="P", metadata={"site": "breast"})
    theirs = pd.DataFrame(made.counts, index=made.barcodes, columns=made.genes)
    theirs = theirs.loc[:, ~theirs.columns.str.startswith("__")].T.groupby(level=0, sort=False).sum().T
    assert section.spots.barcodes == tuple(made.barcodes)
    assert section.genes == tuple(theirs.columns)
    np.testing.assert_array_equal(section.counts.toarray(), theirs.to_numpy())
    np.testing.assert_allclose(section.spots.centre_px, made.centre_px)
    assert (section.name, section.patient, section.absent_genes) == ("S1", "P", "zero")
    assert section.metadata == {"site": "breast"}
    assert section.spots.diameter_um == 100
    assert (section.slide.width_px, section.slide.height_px) == (made.image.shape[1], made.image.shape[0])


@pytest.mark.parametrize("sep", ["\t", ",", ";"])
def test_one_row_a_gene_is_turned_and_said(tmp_path, small, sep):
    straight = read(write_legacy(tmp_path / "a", small))
    turned = read(write_legacy(tmp_path / "b", small, sep=sep, turned=True))
    assert any("one row a gene" in note for note in turned.notes)
    assert not any("one row a gene" in note for note in straight.notes)
    assert (straight.genes, straight.spots.barcodes) == (turned.genes, turned.spots.barcodes)
    assert (straight.counts != turned.counts).nnz == 0


def test_whole_cohort_files_agree_with_pandas(her2st_csv):
    folder = her2st_csv.parent
    section = read_section(
        folder / "B4_counts.tsv.gz", spots=folder / "B4_spots.tsv", image=folder / "B4.jpg", mpp=0.6878
    )
    counts = pd.read_csv(folder / "B4_counts.tsv.gz", sep="\t", index_col=0)
    spots = pd.read_csv(folder / "B4_spots.tsv", sep="\t")
    spots.index = spots["x"].astype(str) + "x" + spots["y"].astype(str)
    both = [name for name in counts.index if name in spots.index]
    assert section.spots.barcodes == tuple(both) and len(both) == 283
    np.testing.assert_array_equal(section.counts.toarray(), counts.loc[both].to_numpy())
    np.testing.assert_array_equal(section.spots.centre_px, spots.loc[both, ["pixel_x", "pixel_y"]].to_numpy())


def test_spots_unlisted_unselected_and_uncounted(tmp_path, small):
    counts = write_legacy(tmp_path, small)

    def change(spots):
        spots.loc[0, "selected"] = "0"
        extra = spots.iloc[[1]].assign(x="99", y="99")
        return pd.concat([spots.drop(index=[2, 3]), extra])

    edit_spots(counts, change)
    section = read(counts)
    assert section.spots.barcodes == tuple(b for i, b in enumerate(small.barcodes) if i not in (0, 2, 3))
    kept = [i for i in range(small.spots) if i not in (0, 2, 3)]
    np.testing.assert_array_equal(section.counts.toarray(), small.counts[kept])
    np.testing.assert_allclose(section.spots.centre_px, small.centre_px[kept])
    said = " ".join(section.notes)
    assert "2 of 30 counted spots are not in the spot file: dropped" in said
    assert "1 of 29 spots of the spot file have no counts" in said
    assert "1 counted spots are not selected" in said


def test_shuffled_spot_file_changes_nothing(tmp_path, small):
    counts = write_legacy(tmp_path, small)
    before = read(counts)
    edit_spots(counts, lambda spots: spots.sample(frac=1, random_state=1))
    after = read(counts)
    assert before.spots.barcodes == after.spots.barcodes
    np.testing.assert_array_equal(before.spots.centre_px, after.spots.centre_px)


def test_fractional_names_and_the_x_that_r_adds(tmp_path, small):
    small.barcodes[:] = [f"{x + 0.907:.3f}x{y + 0.1:.3f}" for x, y in small.array_xy]
    counts = write_legacy(tmp_path, small, spot_column=True, turned=True)
    header, rest = gzip.decompress(counts.read_bytes()).decode().split("\n", 1)
    counts.write_bytes(gzip.compress((header.replace("\t", "\tX") + "\n" + rest).encode()))
    assert read(counts).spots.barcodes == tuple(small.barcodes)


def test_the_adjusted_coordinates_may_name_the_spots(tmp_path, small):
    counts = write_legacy(tmp_path, small)
    edit_spots(
        counts,
        lambda spots: spots.assign(new_x=spots["x"], new_y=spots["y"], x=[f"{v}7" for v in spots["x"]]),
    )
    assert read(counts).spots.barcodes == tuple(small.barcodes)


def test_files_beside_the_counts_are_found_and_told(tmp_path, small):
    counts = write_legacy(tmp_path, small)
    notes = read(counts).notes
    assert any("Spot file found beside the counts: S1_spots.tsv" in note for note in notes)
    assert any("Picture found beside the counts: S1.png" in note for note in notes)


def test_without_a_spot_file_or_picture_it_says_what_to_give(tmp_path, small):
    counts = write_legacy(tmp_path, small)
    (tmp_path / "S1.png").unlink()
    with pytest.raises(
        BadOption, match=r"image is None; wanted the picture on which the spots of S1_counts.tsv.gz lie"
    ):
        read(counts)
    (tmp_path / "S1_spots.tsv").unlink()
    with pytest.raises(BadOption, match=r"spots is None; wanted the spot file of .* 10x15 do not say where"):
        read(counts)
    with pytest.raises(MissingInput, match=r"spot file .*nowhere.tsv does not exist"):
        read(counts, spots=tmp_path / "nowhere.tsv")


def test_missing_columns_are_named(tmp_path, small):
    counts = write_legacy(tmp_path, small)
    edit_spots(counts, lambda spots: spots.drop(columns=["pixel_y"]))
    with pytest.raises(BadInput, match=r"lacks the column.s. pixel_y"):
        read(counts)
    edit_spots(counts, lambda spots: spots.assign(pixel_y="1").drop(columns=["x"]))
    with pytest.raises(BadInput, match=r"spot .or x and y."):
        read(counts)


def test_names_that_do_not_meet(tmp_path, small):
    counts = write_legacy(tmp_path, small)
    edit_spots(counts, lambda spots: spots.assign(x=[f"{v}9" for v in spots["x"]]))
    with pytest.raises(BadInput, match=r"names spots like 19x1, the counts like 1x1"):
        read(counts)


def test_duplicate_spots_on_either_side(tmp_path, small):
    counts = write_legacy(tmp_path, small)
    edit_spots(counts, lambda spots: pd.concat([spots, spots.iloc[[4]]]))
    with pytest.raises(SectionError, match=r"the lines of the spot file repeat the barcode.s. 5x1"):
        read(counts)
    small.barcodes[7] = small.barcodes[8]
    with pytest.raises(SectionError, match=r"the counts repeat the barcode.s. 3x2"):
        read(write_legacy(tmp_path / "b", small))


@pytest.mark.parametrize("part", ["S1_counts.tsv.gz", "S1.png"])
def test_truncated_files(tmp_path, part):
    counts = write_legacy(tmp_path, made_up(genes=400))
    cut(tmp_path / part)
    with pytest.raises(BadInput, match=r"truncated"):
        read(counts)
