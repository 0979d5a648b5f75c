"""First-generation Spatial Transcriptomics against pandas, in every way in which it is written."""

from __future__ import annotations

import gzip
from dataclasses import replace

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


@pytest.mark.parametrize(
    ("in_counts", "x", "y"),
    [("{:.3f}x{:.3f}", "{:g}", "{:g}"), ("{:g}x{:g}", "{:.1f}", "{:.2f}"), ("X{:g}x{:g}", "{:.1f}", "{:g}")],
)
def test_names_of_spots_are_compared_as_numbers(tmp_path, small, in_counts, x, y):
    array = small.array_xy + np.array([0.01, 0.1]) if "3f" in in_counts else small.array_xy
    small.barcodes[:] = [in_counts.format(a, b) for a, b in array]
    counts = write_legacy(tmp_path, small)
    edit_spots(counts, lambda s: s.assign(x=[x.format(a) for a, _ in array], y=[y.format(b) for _, b in array]))
    section = read(counts)
    assert section.spots.barcodes == tuple(name.removeprefix("X") for name in small.barcodes)
    np.testing.assert_array_equal(section.counts.toarray(), small.counts)
    np.testing.assert_allclose(section.spots.centre_px, small.centre_px)
    assert not any("dropped" in note or "left out" in note for note in section.notes)


@pytest.mark.parametrize("rounded", ["spots", "counts"])
def test_names_that_one_file_rounds(tmp_path, small, rounded):
    rng = np.random.default_rng(0)
    fine = [
        f"{x + dx:.3f}x{y + dy:.3f}"
        for (x, y), (dx, dy) in zip(small.array_xy, rng.uniform(-0.2, 0.2, (small.spots, 2)), strict=True)
    ]
    coarse = ["x".join(f"{float(part):.2f}" for part in name.split("x")) for name in fine]
    names = {"spots": (fine, coarse), "counts": (coarse, fine)}[rounded]
    counts = write_legacy(tmp_path, replace(small, barcodes=names[0]))
    spots = pd.read_csv(tmp_path / "S1_spots.tsv", sep="\t").drop(columns="spot", errors="ignore")
    spots["x"], spots["y"] = np.array([name.split("x") for name in names[1]]).T
    spots.to_csv(tmp_path / "S1_spots.tsv", sep="\t", index=False)
    section = read_section(counts, mpp=small.mpp)
    assert section.spots.barcodes == tuple(names[0])
    np.testing.assert_array_equal(section.counts.toarray(), small.counts)
    np.testing.assert_allclose(section.spots.centre_px, small.centre_px, atol=0.01)
    assert any("rounded in one file" in note for note in section.notes)
    spots["x"], spots["y"] = np.round(spots["x"].astype(float), 1), "1.5"  # of which several spots are the rounding
    spots.to_csv(tmp_path / "S1_spots.tsv", sep="\t", index=False)
    with pytest.raises(BadInput, match="none is the same; name the spots alike in both"):
        read_section(counts, mpp=small.mpp)


def test_decimal_commas_and_nothing_selected(tmp_path, small):
    small.barcodes[:] = [f"{a + 0.01:g}x{b + 0.1:g}" for a, b in small.array_xy]
    counts = write_legacy(tmp_path, small)
    spots = pd.DataFrame({"x": small.array_xy[:, 0] + 0.01, "y": small.array_xy[:, 1] + 0.1})
    spots["pixel_x"], spots["pixel_y"] = small.centre_px.T
    spots["selected"] = ["NA", "TRUE", "1"] * (len(spots) // 3)
    spots.to_csv(tmp_path / "S1_spots.tsv", sep=";", decimal=",", index=False)
    np.testing.assert_array_equal(read(counts).counts.toarray(), small.counts)
    edit = (tmp_path / "S1_spots.tsv").read_text().replace(";TRUE", ";perhaps", 1)
    (tmp_path / "S1_spots.tsv").write_text(edit)
    with pytest.raises(BadInput, match="line 3 has 'perhaps' as selected; wanted 0, 1, TRUE, FALSE or nothing"):
        read(counts)


@pytest.mark.parametrize("side", ["counts", "spots"])
def test_a_share_of_unmatched_spots_is_an_error(tmp_path, small, side):
    counts = write_legacy(tmp_path, small)

    def change(spots):
        other = spots.iloc[:4].assign(x="77", y=["1", "2", "3", "4"])
        return pd.concat([spots.iloc[4:], other] if side == "counts" else [spots, other])

    edit_spots(counts, change)
    said = "4 of 30 counted spots are not in" if side == "counts" else "4 of 34 spots of the spot file have no counts"
    with pytest.raises(SectionError, match=f"{said}.*check that S1_counts.tsv.gz and S1_spots.tsv are of one section"):
        read(counts)
    if side == "spots":  # the way out that the sentence names
        edit_spots(counts, lambda spots: spots.assign(selected=["1"] * 30 + ["0"] * 4))
        assert len(read(counts).spots) == 30


def test_several_files_beside_the_counts_are_named_and_hidden_ones_ignored(tmp_path, small):
    counts = write_legacy(tmp_path, small)
    for path in list(tmp_path.iterdir()):
        path.with_name("._" + path.name).write_bytes(b"\0\5\x16\7" * 9)
    assert len(read(counts).spots) == 30
    (tmp_path / "S1.jpg").write_bytes((tmp_path / "S1.png").read_bytes())
    with pytest.raises(BadOption, match=r"image is None; .*2 files could be it: S1.jpg, S1.png"):
        read(counts)
    (tmp_path / "S1_spots.csv").write_bytes((tmp_path / "S1_spots.tsv").read_bytes())
    with pytest.raises(BadOption, match=r"spots is None; .*2 files could be it: S1_spots.csv, S1_spots.tsv"):
        read(counts)
