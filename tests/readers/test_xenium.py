"""Xenium: cells and bins against counts by hand, the alignment both ways, and each missing file named."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import tifffile

from cmrcnet.errors import BadInput, BadOption, MissingInput, ScaleError, SectionError
from cmrcnet.readers.cohort import read_cohort
from cmrcnet.readers.registry import read_section, sniff
from cmrcnet.readers.xenium import counted_bins
from cmrcnet.testing import assert_section
from tests.readers.written_formats import cut, write_image
from tests.readers.written_platforms import PIXEL_UM, XENIUM_KINDS, made_cells, write_xenium

pytest.importorskip("pyarrow")

HE = "made_he_image.ome.tif"


@pytest.fixture
def made():
    return made_cells()


@pytest.fixture
def outs(tmp_path, made):
    return write_xenium(tmp_path / "output-XETG1", made)


def read(outs, **options):
    return read_section(outs, **{"image": outs / HE, **options})


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"cells": "csv"},
        {"matrix": "mtx"},
        {"matrix": "zarr"},
        {"bytes_names": True},
        {"version": "xenium-1.3.0.5"},
    ],
)
def test_cells_in_every_layout(tmp_path, made, layout):
    outs = write_xenium(tmp_path / "output-XETG1", made, **layout)
    section = read(outs)
    assert section.name == "output-XETG1"
    assert section.spots.barcodes == tuple(made.names)
    assert section.genes == tuple(made.genes)
    assert np.array_equal(section.counts.toarray(), made.counts)
    np.testing.assert_allclose(section.spots.centre_px, made.to_image(made.centre_um), atol=1e-6)
    assert section.slide.mpp == pytest.approx(made.mpp)
    assert section.spots.diameter_um == pytest.approx(10, rel=1e-3)  # 78.5 um2
    assert any("5 features are of another kind" in note for note in section.notes)
    assert any("aligned by made_he_imagealignment.csv" in note for note in section.notes)
    assert_section(section)


def test_cells_are_joined_by_name_and_not_by_place(outs, made):
    path = outs / "cells.parquet"
    pd.read_parquet(path).sample(frac=1, random_state=0).to_parquet(path, index=False)
    section = read(outs)
    np.testing.assert_allclose(section.spots.centre_px, made.to_image(made.centre_um), atol=1e-6)


def by_hand(made, bin_um):
    """Counts of each square in the frame of the H&E: x of the H&E runs along y, its y against x."""
    table = made.transcripts[(made.transcripts["qv"] >= 20) & made.transcripts["is_gene"]]
    u, v = table["y_location"], -table["x_location"]
    square = [np.floor(v / bin_um).rename("v"), np.floor(u / bin_um).rename("u")]
    return pd.crosstab(square, table["feature_name"])[made.genes]


@pytest.mark.parametrize("bin_um", [8.0, 27.5, 100.0])
@pytest.mark.parametrize(
    "layout", [{}, {"bytes_names": True}, {"with_is_gene": False}, {"matrix": "mtx", "with_is_gene": False}]
)
def test_bins_of_any_size(tmp_path, made, bin_um, layout):
    outs = write_xenium(tmp_path / "outs", made, **layout)
    section = read(outs, bin_um=bin_um)
    wanted = by_hand(made, bin_um)
    centre_um = np.array([[-(v + 0.5) * bin_um, (u + 0.5) * bin_um] for v, u in wanted.index])
    away = np.linalg.norm(centre_um[:, None] - made.centre_um, axis=2).min(axis=1)
    near = away <= max(20, bin_um / np.sqrt(2))
    centre_px = made.to_image(centre_um)
    near &= (centre_px >= 0).all(axis=1) & (centre_px <= np.array(made.image.shape[1::-1])).all(axis=1)
    found = {
        tuple(np.round(xy, 3)): row for xy, row in zip(section.spots.centre_px, section.counts.toarray(), strict=True)
    }
    columns = [section.genes.index(gene) for gene in made.genes]
    assert len(found) == near.sum()
    for xy, row in zip(centre_px[near], wanted.to_numpy()[near], strict=True):
        assert np.array_equal(found[tuple(np.round(xy, 3))][columns], row)
    assert section.spots.diameter_um == bin_um
    assert any("quality below 20" in note for note in section.notes)
    assert any("100 of" in note and "controls" in note for note in section.notes)
    assert not set(section.genes) & set(XENIUM_KINDS)
    assert_section(section)


def test_a_gene_that_was_seen_nowhere_stays_in_the_panel(outs, made):
    path = outs / "transcripts.parquet"
    table = pd.read_parquet(path)
    table[table["feature_name"] != "GENE3"].to_parquet(path, index=False)
    section = read(outs, bin_um=30)
    assert "GENE3" in section.genes and section.counts[:, section.genes.index("GENE3")].sum() == 0


def test_batches_are_summed(outs, made, monkeypatch):
    monkeypatch.setattr("cmrcnet.readers.square_bins.MERGE_KEYS", 100)
    whole = counted_bins(outs / "transcripts.parquet", made.genes, np.eye(2), 25.0)
    import cmrcnet.readers.xenium as module

    batches = module.parquet_batches
    monkeypatch.setattr(module, "parquet_batches", lambda *a, **k: batches(*a, **k, rows=37))
    parts = counted_bins(outs / "transcripts.parquet", made.genes, np.eye(2), 25.0)
    assert np.array_equal(whole[0], parts[0]) and (whole[2] != parts[2]).nnz == 0
    assert whole[2].sum() == made.counts.sum()


def test_an_affine_of_the_user_comes_first(outs, made):
    to_image = np.linalg.inv(made.alignment)[:2]
    to_image[:, :2] /= PIXEL_UM
    (outs / "made_he_imagealignment.csv").unlink()
    section = read(outs, affine=to_image)
    np.testing.assert_allclose(section.spots.centre_px, made.to_image(made.centre_um), atol=1e-6)
    with pytest.raises(ScaleError, match="affine"):
        read(outs, affine=to_image * 2, mpp=made.mpp)


def test_the_matrix_of_xenium_explorer_is_no_affine(outs):
    with pytest.raises(BadInput, match=r"alignment of Xenium Explorer.*and not back"):
        read(outs, affine=outs / "made_he_imagealignment.csv")


def test_a_scale_that_the_alignment_contradicts(outs, made):
    with pytest.raises(ScaleError, match="affine"):
        read(outs, mpp=2 * made.mpp)
    np.savetxt(outs / "made_he_imagealignment.csv", np.linalg.inv(made.alignment), delimiter=",")  # the other way round
    with pytest.raises(ScaleError, match="affine"):
        read(outs, mpp=made.mpp)


def test_an_image_that_is_registered_already(outs, made):
    (outs / "made_he_imagealignment.csv").unlink()
    size = (round(220 / PIXEL_UM), round(300 / PIXEL_UM))
    tifffile.imwrite(outs / "morphology.ome.tif", np.zeros((2, *size), np.uint16), photometric="minisblack")
    image = write_image(outs / "registered.png", np.full((size[0] // 2, size[1] // 2, 3), 200, np.uint8))
    section = read(outs, image=image)
    np.testing.assert_allclose(section.spots.centre_px, made.centre_um / (2 * PIXEL_UM), rtol=2e-3)
    assert section.slide.mpp == pytest.approx(2 * PIXEL_UM, rel=2e-3)
    assert any("taken as registered" in note for note in section.notes)
    with pytest.raises(BadInput, match=r"made_he_image.ome.tif has no alignment, and its 380 x 460 px"):
        read(outs)
    with pytest.raises(BadInput, match=r"of 0.5 um are not the size of morphology.ome.tif"):
        read(outs, image=image, mpp=0.5)


def test_an_alignment_of_another_image_is_not_taken(outs):
    other = (outs / "made_he_imagealignment.csv").rename(outs / "made_if_imagealignment.csv")
    with pytest.raises(BadInput, match=rf"has no alignment.*as made_he_imagealignment.csv.*found: {other.name}"):
        read(outs)


@pytest.mark.parametrize(
    ("missing", "options", "said"),
    [
        ("experiment.xenium", {"format": "xenium"}, "Xenium Onboard Analysis and Xenium Ranger write"),
        ("cells.parquet", {}, r"cell table .*version seen: xenium-3.0.0.15"),
        ("cell_feature_matrix.h5", {}, r"count matrix .*version seen: xenium-3.0.0.15"),
        ("transcripts.parquet", {"bin_um": 50}, r"transcripts .*version seen: xenium-3.0.0.15"),
    ],
)
def test_missing_files_are_named_with_what_writes_them(outs, missing, options, said):
    (outs / missing).unlink()
    with pytest.raises(MissingInput, match=said):
        read(outs, **options)


def test_the_version_of_xenium_ranger_is_shown(outs):
    facts = json.loads((outs / "experiment.xenium").read_text())
    (outs / "experiment.xenium").write_text(json.dumps({**facts, "xenium_ranger": {"version": "xenium-3.1.0.0"}}))
    (outs / "cells.parquet").unlink()
    with pytest.raises(MissingInput, match=r"xenium-3.1.0.0"):
        read(outs)


def test_bins_below_the_resolution(outs):
    with pytest.raises(BadOption, match=r"bin_um is 0.5; wanted 2 um or more"):
        read(outs, bin_um=0.5)


def test_files_of_the_mac_finder_are_no_files_of_the_section(outs):
    (outs / "morphology_focus").mkdir()
    (outs / "morphology_focus" / "._ch0000_dapi.ome.tif").write_bytes(b"finder")
    (outs / "made_he_imagealignment.csv").rename(outs / "._made_he_imagealignment.csv")
    with pytest.raises(BadInput, match=r"there is no morphology image.*beside the image, or give"):
        read(outs)


def test_a_spot_file_is_not_left_aside_in_silence(outs):
    with pytest.raises(BadOption, match=r"spots is 'cells.parquet'; wanted nothing"):
        read(outs, spots=outs / "cells.parquet")


def test_no_image(outs):
    with pytest.raises(BadOption, match="image is None"):
        read_section(outs)


def test_the_columns_of_the_cohort_file(tmp_path, made):
    write_xenium(tmp_path / "X1" / "outs", made)
    csv = tmp_path / "cohort.csv"
    head = "section,patient,counts,image,bin_um\n"
    csv.write_text(f"{head}X1,A,X1/outs,X1/outs/{HE},50\nX2,B,X1,X1/outs/{HE},\n")
    cohort = read_cohort(csv)
    assert cohort.read("X1").spots.diameter_um == 50
    assert cohort.read("X2").spots.barcodes == tuple(made.names)
    assert sniff(tmp_path / "X1") == sniff(tmp_path / "X1" / "outs" / "experiment.xenium") == "xenium"


@pytest.mark.parametrize(
    ("file", "change", "options", "error", "said"),
    [
        ("cells.parquet", lambda t: t.drop(columns="x_centroid"), {}, BadInput, "lacks the column"),
        ("cells.parquet", lambda t: t.assign(x_centroid=np.nan), {}, BadInput, "empty cells"),
        ("cells.parquet", lambda t: pd.concat([t, t[:2]]), {}, SectionError, "repeat"),
        ("cells.parquet", lambda t: t[:100], {}, BadInput, "50 of its 150 cells are not in the cell table"),
        ("cells.parquet", lambda t: t[:0], {}, Exception, "0 cells"),
        ("transcripts.parquet", lambda t: t.drop(columns="qv"), {"bin_um": 50}, BadInput, "lacks the column"),
        (
            "transcripts.parquet",
            lambda t: t.assign(x_location=np.inf),
            {"bin_um": 50},
            BadInput,
            "empty cells or no numbers",
        ),
        ("transcripts.parquet", lambda t: t.assign(x_location=1e12), {"bin_um": 50}, SectionError, "from the origin"),
        ("transcripts.parquet", lambda t: t.assign(feature_name=None), {"bin_um": 50}, BadInput, "empty cells"),
        ("transcripts.parquet", lambda t: t[:0], {"bin_um": 50}, SectionError, "0 spots"),
    ],
)
def test_tables_that_cannot_be_right(outs, file, change, options, error, said):
    change(pd.read_parquet(outs / file)).to_parquet(outs / file, index=False)
    with pytest.raises(error, match=said):
        read(outs, **options)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"pixel_size": "x"}', '{"pixel_size": 0}', '{"pixel_size": 1e400}', "[" * 99_999]
)
def test_damaged_experiments(outs, content):
    (outs / "experiment.xenium").write_text(content)
    with pytest.raises(BadInput, match=r"experiment.xenium cannot be read"):
        read(outs)


@pytest.mark.parametrize("layout", [{"matrix": "zarr"}, {"cells": "csv"}, {}])
def test_truncated_files(tmp_path, made, layout):
    outs = write_xenium(tmp_path / "outs", made, **layout)
    names = {"zarr": "cell_feature_matrix.zarr.zip", "csv": "cells.csv.gz"}
    name = next((names[value] for value in layout.values()), "cells.parquet")
    cut(outs / name)
    with pytest.raises(BadInput, match=name):
        read(outs)
