"""A table of locations without any counts."""

from __future__ import annotations

import numpy as np
import pytest

from cmrcnet.errors import BadInput, MissingInput, SectionError, TooFew
from cmrcnet.readers.annotations import read_spots
from cmrcnet.readers.registry import read_section


def _written(path, text):
    path.write_text(text)
    return path


def test_names_come_from_the_array_place(tmp_path):
    table = _written(tmp_path / "a.tsv", "x\ty\tpixel_x\tpixel_y\tselected\n1\t2\t10.5\t20\t1\n3\t4\t30\t40\t0\n")
    spots = read_spots(table)
    assert spots.barcodes == ("1x2",)
    np.testing.assert_array_equal(spots.centre_px, [[10.5, 20.0]])
    assert spots.diameter_um == 100.0


def test_rows_are_numbered_where_there_are_no_names(tmp_path):
    assert read_spots(_written(tmp_path / "a.csv", "pixel_x,pixel_y\n1,2\n3,4\n")).barcodes == ("1", "2")


@pytest.mark.parametrize(
    ("text", "error", "sentence"),
    [
        ("spot,pixel_x\na,1\n", BadInput, "lacks the column.s. pixel_y"),
        ("spot,pixel_x,pixel_y\na,1,2\na,3,4\n", SectionError, "repeat the barcode.s. a"),
        ("spot,pixel_x,pixel_y\na,1,left\n", BadInput, "which is no number"),
        ("spot,pixel_x,pixel_y,selected\na,1,2,0\n", TooFew, "0 spots in .*a.csv, but at least 1"),
    ],
)
def test_refusals(tmp_path, text, error, sentence):
    with pytest.raises(error, match=sentence):
        read_spots(_written(tmp_path / "a.csv", text))


def test_a_missing_table(tmp_path):
    with pytest.raises(MissingInput, match="does not exist"):
        read_spots(tmp_path / "nowhere.csv")


def test_the_places_are_those_of_the_section(her2st_csv):
    folder = her2st_csv.parent
    section = read_section(folder / "C6_counts.tsv.gz", mpp=0.6877)
    listed = read_spots(folder / "C6_spots.tsv")
    place = dict(zip(listed.barcodes, listed.centre_px, strict=True))
    np.testing.assert_array_equal([place[barcode] for barcode in section.spots.barcodes], section.spots.centre_px)
