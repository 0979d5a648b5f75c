"""An affine between the assay's coordinates and the H&E: its spellings, its faults, and each reader under it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from cmrcnet.errors import BadInput, BadOption, MissingInput, ScaleError
from cmrcnet.readers.affine import Affine, read_affine
from cmrcnet.readers.cohort import read_cohort
from cmrcnet.readers.inspection import inspect
from cmrcnet.readers.registry import read_section
from tests.readers.written_formats import (
    ann_data_of,
    as_visium,
    made_up,
    write_hest,
    write_image,
    write_legacy,
    write_visium,
)

TURNED = Affine(0.0, -0.5, 390.0, 0.5, 0.0, 3.0)
"""From a picture of half the scale (twice the pixels), turned by a quarter, to the H&E."""
SIX = (0.5, -0.1, 12.5, 0.1, 0.5, -7.25)


def spellings(folder):
    matrix = np.array([*SIX, 0, 0, 1]).reshape(3, 3)
    np.save(folder / "m.npy", matrix)
    (folder / "m.json").write_text(json.dumps(matrix[:2].tolist()))
    (folder / "flat.json").write_text(json.dumps(list(SIX)))
    np.savetxt(folder / "m.csv", matrix, delimiter=",")
    np.savetxt(folder / "m.txt", matrix[:2])
    (folder / "m.tsv").write_text("\ufeff0.5;-0.1;12.5\r\n0.1;0.5;-7.25\r\n\r\n", encoding="utf-8")
    (folder / "six.txt").write_text(" ".join(map(str, SIX)))
    return ["m.npy", "m.json", "flat.json", "m.csv", "m.txt", "m.tsv", "six.txt"]


def test_every_spelling_is_the_same_matrix(tmp_path):
    wanted = Affine(*SIX)
    values = [
        SIX,
        list(SIX),
        np.array(SIX).reshape(2, 3),
        "0.5 -0.1 12.5 0.1 0.5 -7.25",
        "0.5, -0.1, 12.5, 0.1,0.5,-7.25",
    ]
    for value in values:
        assert read_affine(value) == wanted
    for name in spellings(tmp_path):
        assert read_affine(name, folder=tmp_path) == wanted, name
        assert read_affine(tmp_path / name) == wanted, name
    assert read_affine("0,5 -0,1 12,5 0,1 0,5 -7,25", decimal_comma=True) == wanted
    assert Affine.of(read_affine(wanted.text).matrix) == wanted


def test_apply_and_inverse_by_hand():
    affine = Affine(*SIX)
    assert affine.apply([[10.0, 20.0]]).tolist() == [[0.5 * 10 - 0.1 * 20 + 12.5, 0.1 * 10 + 0.5 * 20 - 7.25]]
    assert affine.scale == pytest.approx(np.sqrt(0.26))
    xy = np.random.default_rng(0).normal(size=(5, 2))
    np.testing.assert_allclose(affine.inverse().apply(affine.apply(xy)), xy, atol=1e-12)


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        ("1 0 0 0 1", BadInput, "5 numbers"),
        ("1 0 0 0 1 0 0", BadInput, "7 numbers"),
        ("1 0 0 0 nan 0", BadOption, "finite"),
        ("1 0 0 0 1e999 0", BadOption, "finite"),
        ("1 2 0 2 4 0", BadOption, "singular"),
        ("0 0 0 0 0 0", BadOption, "singular"),
        ("1 0 0 0 3 0", BadOption, "one axis 3 times"),
        ("1e-9 0 0 0 1e-9 0", BadOption, "plausible scale"),
        ([[1, 0, 0], [0, 1, 0], [1e-4, 0, 1]], BadInput, "projective"),
        ([[1, 0], [0, 1]], BadInput, "2 x 2 numbers"),
        ([[1, 0, 0], [0, 1]], BadInput, "rows of one length"),
        ("absent.csv", MissingInput, "six numbers"),
    ],
)
def test_what_is_no_affine(value, error, said):
    with pytest.raises(error, match=said):
        read_affine(value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.csv", "x,y,z\n1,0,0\n0,1,0\n"),
        ("m.csv", ""),
        ("m.json", '{"a": 1}'),
        ("m.json", "[" * 50_000),
        ("m.npy", "no array"),
        ("m.txt", "1 " * 100_000),
        ("m.txt", "1 0 0\n0 1\n"),
    ],
)
def test_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=name):
        read_affine(tmp_path / name)


def moved(made):
    """The same section with its spots in the pixels of another picture, of half the scale and turned."""
    return replace(made, centre_px=TURNED.inverse().apply(made.centre_px), mpp=made.mpp / 2)


def written(folder, kind, made, assay):
    """A section of one format whose positions are those of `assay`, with the H&E of `made`; source and options."""
    image = write_image(folder / "he.png", made.image)
    options = {"image": image, "mpp": made.mpp}
    if kind == "legacy_st":
        return write_legacy(folder, assay), options
    if kind == "visium":
        return write_visium(folder / "outs", assay), options
    if kind == "hest":
        return write_hest(folder / "hest", assay), options
    ann_data_of(assay).write_h5ad(folder / "S1.h5ad")
    return folder / "S1.h5ad", {**options, "spot_diameter_um": 100.0}


@pytest.mark.parametrize("kind", ["legacy_st", "visium", "ann_data", "hest"])
def test_each_reader_maps_its_spots_to_the_image(tmp_path, kind):
    made = as_visium(made_up()) if kind in ("visium", "hest") else made_up()
    source, options = written(tmp_path, kind, made, moved(made))
    section = read_section(source, affine=TURNED.text, **options)
    rows = [section.spots.barcodes.index(barcode) for barcode in made.barcodes]
    rounded = 0.51 * np.sqrt(2) if kind == "visium" else 1e-6  # Space Ranger writes whole pixels, which are halved
    assert np.abs(section.spots.centre_px[rows] - made.centre_px).max() <= rounded
    assert section.slide.mpp == made.mpp
    assert np.array_equal(section.counts[rows].toarray(), made.counts)
    assert any("affine" in note for note in section.notes)


def test_the_column_of_a_cohort_file(tmp_path):
    made = made_up()
    write_legacy(tmp_path, moved(made))
    write_image(tmp_path / "he.png", made.image)
    np.savetxt(tmp_path / "m.csv", TURNED.matrix, delimiter=",")
    csv = tmp_path / "cohort.csv"
    for cell in (TURNED.text, "m.csv"):
        csv.write_text(f"section,patient,counts,image,mpp,affine,site\nS1,A,S1_counts.tsv.gz,he.png,4,{cell},lung\n")
        section = read_cohort(csv).read("S1")
        np.testing.assert_allclose(section.spots.centre_px, made.centre_px, atol=1e-6)
        assert section.metadata == {"site": "lung"}
    csv.write_text("section,patient,counts,image,mpp,affine\nS1,A,S1_counts.tsv.gz,he.png,4,1 0 0 0 1\n")
    with pytest.raises(BadInput, match=r"line 2 \(S1\).*5 numbers"):
        read_cohort(csv)


def test_scale_that_the_affine_contradicts(tmp_path):
    made = as_visium(made_up())
    source, options = written(tmp_path, "visium", made, moved(made))
    with pytest.raises(ScaleError, match="affine"):
        read_section(source, affine=TURNED.inverse().text, **options)  # the wrong way round
    with pytest.raises(ScaleError, match="affine"):
        read_section(source, affine=TURNED.text, **{**options, "mpp": made.mpp * 1.3})


def test_an_unknown_scale_follows_from_the_affine(tmp_path):
    made = as_visium(made_up())
    source, options = written(tmp_path, "visium", made, moved(made))
    section = read_section(source, affine=TURNED.text, image=options["image"])
    assert section.slide.mpp == pytest.approx(made.mpp, rel=0.01)
    assert any("follows from the affine" in note for note in section.notes)


def test_an_affine_needs_an_image_and_bins_a_format_that_has_them(tmp_path):
    counts = write_legacy(tmp_path, made_up())
    with pytest.raises(BadOption, match="image is None"):
        read_section(counts, mpp=4, affine="1 0 0 0 1 0")
    with pytest.raises(BadOption, match="bin_um is 8"):
        read_section(counts, mpp=4, bin_um=8)
    assert inspect(counts, mpp=4).problems == ()
