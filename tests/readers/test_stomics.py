"""STOmics: molecules against sums by hand, the offset of the header, and what is refused."""

from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest

from cmrcnet.errors import BadInput, BadOption, ScaleError, SectionError
from cmrcnet.readers.long_tables import long_table
from cmrcnet.readers.registry import read_section, sniff
from cmrcnet.testing import assert_section
from tests.readers.written_formats import write_image

HEADER = "#FileFormat=GEMv0.2\n#SortedBy=None\n#BinType=Bin\n#BinSize=1\n#Stereo-seqChip=Y00710F6\n"


@pytest.fixture
def molecules():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"geneID": rng.integers(0, 6, 4000), "x": rng.integers(40, 560, 4000)})
    table["y"], table["MIDCount"] = rng.integers(60, 380, 4000), rng.integers(1, 5, 4000)
    table["geneID"] = "ENSG0000000000" + table["geneID"].astype(str)
    table.insert(1, "geneName", "GENE" + table["geneID"].str[-1])
    return table.drop_duplicates(["geneID", "x", "y"], ignore_index=True)


def write_gem(path, table, *, offset=(0, 0), header=HEADER):
    header += f"#OffsetX={offset[0]}\n#OffsetY={offset[1]}\n"
    text = header + table.to_csv(sep="\t", index=False)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture
def image(tmp_path):
    pixels = np.full((500, 700, 3), 235, np.uint8)
    pixels[60:380, 40:560] = [180, 90, 150]
    return write_image(tmp_path / "he.png", pixels)


@pytest.mark.parametrize("name", ["Y1.tissue.gem", "Y1.tissue.gem.gz"])
@pytest.mark.parametrize("offset", [(0, 0), (13, 25)])
def test_bins_on_the_registered_image(tmp_path, molecules, image, name, offset):
    moved = molecules.assign(x=molecules["x"] - offset[0], y=molecules["y"] - offset[1])
    path = write_gem(tmp_path / name, moved, offset=offset)
    assert sniff(path) == "stomics"
    section = read_section(path, image=image, mpp=0.5, bin_um=20)
    row, column = molecules["y"] // 40, molecules["x"] // 40
    wanted = molecules["MIDCount"].groupby([row, column, molecules["geneName"]]).sum().unstack(fill_value=0)
    assert len(section.spots) == len(wanted) and section.name == "Y1"
    found = {tuple(xy): counts for xy, counts in zip(section.spots.centre_px, section.counts.toarray(), strict=True)}
    for (y, x), counts in wanted.iterrows():
        at = found[(x * 40 + 20.0, y * 40 + 20.0)]
        assert [at[section.genes.index(gene)] for gene in wanted.columns] == counts.tolist()
    assert section.spots.diameter_um == 20 and section.absent_genes == "zero"
    assert any("OffsetX" in note for note in section.notes) == any(offset)
    assert_section(section)


def test_an_affine_to_another_image(tmp_path, molecules):
    image = write_image(tmp_path / "scan.png", np.full((900, 1000, 3), 180, np.uint8))
    path = write_gem(tmp_path / "a.gem", molecules)
    section = read_section(path, image=image, bin_um=50, affine=[0, 1.5, 30, -1.5, 0, 880])
    assert section.slide.mpp == pytest.approx(0.5 / 1.5)
    with pytest.raises(ScaleError, match="affine"):
        read_section(path, image=image, mpp=0.6, affine=[2, 0, 0, 0, 2, 0])


def test_blocks_are_summed(tmp_path, molecules, image, monkeypatch):
    path = write_gem(tmp_path / "a.gem", molecules)
    whole = read_section(path, image=image, mpp=0.5)
    monkeypatch.setattr("cmrcnet.readers.square_bins.MERGE_KEYS", 50)
    monkeypatch.setattr("cmrcnet.readers.stomics.long_table", lambda *a: long_table(*a, lines=37))
    parts = read_section(path, image=image, mpp=0.5)
    order = [parts.genes.index(gene) for gene in whole.genes]
    assert whole.spots.barcodes == parts.spots.barcodes
    assert np.array_equal(whole.counts.toarray(), parts.counts.toarray()[:, order])
    assert whole.counts.sum() == molecules["MIDCount"].sum()


def test_a_table_that_is_binned_already(tmp_path, molecules, image):
    table = molecules.assign(x=molecules["x"] // 20 * 20, y=molecules["y"] // 20 * 20)
    path = write_gem(tmp_path / "a.gem", table, header=HEADER.replace("BinSize=1\n", "BinSize=20\n"))
    with pytest.raises(BadOption, match=r"bin_um is 15.*a multiple of 10"):
        read_section(path, image=image, mpp=0.5, bin_um=15)
    fine = write_gem(tmp_path / "b.gem", molecules)
    ours, theirs = (read_section(each, image=image, mpp=0.5, bin_um=40) for each in (path, fine))
    assert np.array_equal(ours.counts.toarray(), theirs.counts.toarray())
    assert np.array_equal(ours.spots.centre_px, theirs.spots.centre_px)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda text: text.replace("\tMIDCount", "\tcounts"), r"lacks the column\(s\) MIDCount"),
        (lambda text: text + "ENSG1\tA\t5\t6\t-2\n", "negative"),
        (lambda text: text + "ENSG1\tA\t5\t6\t1.5\n", "fractional"),
        (lambda text: text + "ENSG1\tA\t5\tx\t1\n", "damaged"),
        (lambda text: text + "ENSG1\tA\t5.03e9999837220302\t6\t1\n", "damaged"),
        (lambda text: text + "ENSG1\tA\t5\n", "empty cell"),
        (lambda text: text + "ENSG1\tA\t5\t6\t1\t7\t8\n", "damaged"),
        (
            lambda text: (
                text.replace("\tMIDCount", "", 1).replace("\ty", "\ty\tMIDCount", 1).replace("geneID\t", "", 1)
            ),
            "more cells",
        ),
        (lambda text: text + "ENSG1\tA\t9e15\t6\t1\n", "from the origin"),
        (lambda text: text + 'ENSG1\t"A\t5\t6\t1\n', "damaged|quote"),
        (lambda text: text.replace("OffsetX=0", "OffsetX=a"), "no whole number"),
    ],
)
def test_what_is_refused(tmp_path, molecules, image, spoil, said):
    path = write_gem(tmp_path / "a.gem", molecules)
    path.write_text(spoil(path.read_text()))
    with pytest.raises((BadInput, SectionError), match=said):
        read_section(path, image=image, mpp=0.5)


def test_an_image_of_unknown_place(tmp_path, molecules, image):
    path = write_gem(tmp_path / "a.gem", molecules)
    with pytest.raises(BadOption, match=r"affine is None; wanted the map from DNBs .* or mpp 0.5"):
        read_section(path, image=image)
    with pytest.raises(BadOption, match="affine is None"):
        read_section(path, image=image, mpp=0.25)
    with pytest.raises(BadOption, match="image is None"):
        read_section(path)


def test_semicolons_and_decimal_commas(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("name;x;area\nA;1,25;3\nB;-2;4,5e1\n")
    blocks = list(long_table(path, "a table", {"name": ("name",)}, {"x": ("x",)}, optional={"area": ("area",)}))
    assert blocks[0]["x"].tolist() == [1.25, -2] and blocks[0]["area"].tolist() == [3, 45]
