"""CosMx and MERSCOPE: cells and bins against sums by hand, the size of a pixel, and each missing file named."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cmrcnet.errors import BadInput, BadOption, MissingInput, ScaleError
from cmrcnet.readers.registry import read_section, sniff
from cmrcnet.testing import assert_section
from tests.readers.written_formats import write_image

GENES = [f"GENE{i + 1}" for i in range(5)]
CONTROLS = {"cosmx": ["NegPrb3", "SystemControl7"], "merscope": ["Blank-1", "Blank-12"]}
SHIFT = np.array([-5000.0, 3000.0])
PIXEL_UM = 0.12028


@pytest.fixture
def cells():
    """Micrometres of 120 cells and their counts, controls last."""
    rng = np.random.default_rng(0)
    return rng.uniform([20, 20], [280, 200], (120, 2)) + SHIFT, rng.poisson(2, (120, 7))


@pytest.fixture
def image(tmp_path):
    return write_image(tmp_path / "he.png", np.full((440, 600, 3), 190, np.uint8))


def to_image(xy_um):
    """0.5 um per px, y upwards."""
    xy = (np.asarray(xy_um) - SHIFT) / 0.5
    return np.column_stack([xy[:, 0], 440 - xy[:, 1]])


def affine(unit_um):
    """The same, from units of the assay."""
    return [2 * unit_um, 0, -2 * SHIFT[0], 0, -2 * unit_um, 440 + 2 * SHIFT[1]]


def write_cosmx(folder, cells, *, pixel_um=PIXEL_UM, area=True, gz="", quoted=False, named=False, genes=GENES):
    folder.mkdir()
    xy, counts = cells
    ids = pd.DataFrame({"fov": np.arange(len(xy)) // 50 + 1, "cell_ID": np.arange(len(xy)) % 50 + 1})
    table = pd.concat([ids, pd.DataFrame(counts, columns=[*genes, *CONTROLS["cosmx"]])], axis=1)
    outside = pd.DataFrame([[fov, 0, *[9] * counts.shape[1]] for fov in (1, 2, 3)], columns=table.columns)
    quoting = 2 if quoted else 0
    table = pd.concat([outside, table])
    if named:
        table.insert(0, "cell", [f"c_1_{fov}_{cell}" for fov, cell in zip(table["fov"], table["cell_ID"], strict=True)])
    table.to_csv(folder / f"R1_exprMat_file.csv{gz}", index=False, quoting=quoting)
    metadata = ids.assign(note="a, b", CenterX_global_px=xy[:, 0] / pixel_um, CenterY_global_px=xy[:, 1] / pixel_um)
    if area:
        metadata["Area"], metadata["Area.um2"] = 78.5 / pixel_um**2, 78.5
    metadata.sample(frac=1, random_state=0).to_csv(folder / f"R1_metadata_file.csv{gz}", index=False)
    return folder


def write_merscope(folder, cells, *, molecules=True, genes=GENES):
    folder.mkdir()
    xy, counts = cells
    names = [str(10**18 + 7 * i) for i in range(len(xy))]
    features = [*genes, *CONTROLS["merscope"]]
    pd.DataFrame(counts, columns=features, index=pd.Index(names, name="cell")).to_csv(folder / "cell_by_gene.csv")
    table = pd.DataFrame({"fov": 0, "volume": 900.0, "center_x": xy[:, 0], "center_y": xy[:, 1]}, index=names)
    table.iloc[::-1].to_csv(folder / "cell_metadata.csv")
    rows, columns = np.nonzero(counts)
    each = counts[rows, columns]
    found = pd.DataFrame({"global_x": np.repeat(xy[rows, 0], each), "global_y": np.repeat(xy[rows, 1], each)})
    found["gene"] = np.repeat(np.array(features)[columns], each)
    if molecules:
        found.to_csv(folder / "detected_transcripts.csv")
    return folder


@pytest.mark.parametrize(
    "layout", [{}, {"gz": ".gz"}, {"quoted": True}, {"area": False}, {"pixel_um": 0.18}, {"named": True}]
)
def test_cosmx_cells(tmp_path, cells, image, layout):
    folder = write_cosmx(tmp_path / "flat", cells, **layout)
    assert sniff(folder) == "cosmx"
    unit = layout.get("pixel_um", PIXEL_UM)
    section = read_section(folder, image=image, mpp=0.5, affine=affine(unit))
    assert section.name == "R1" and section.spots.barcodes[:2] == ("1_1", "1_2") and section.genes == tuple(GENES)
    assert np.array_equal(section.counts.toarray(), cells[1][:, :5])
    np.testing.assert_allclose(section.spots.centre_px, to_image(cells[0]), atol=1e-6)
    assert section.spots.diameter_um == pytest.approx(10, rel=1e-3)
    assert any(f"A pixel of CosMx has {unit:.5g} um" in note for note in section.notes)
    assert any("cell 0 in 3 fields" in note for note in section.notes)
    assert_section(section)


def test_the_first_instruments_are_told_by_the_affine(tmp_path, cells, image):
    folder = write_cosmx(tmp_path / "flat", cells, pixel_um=0.18, area=False)
    section = read_section(folder, image=image, mpp=0.5, affine=affine(0.18))
    assert any("A pixel of CosMx has 0.18 um" in note for note in section.notes)
    with pytest.raises(ScaleError, match="does not say how many"):
        read_section(folder, image=image, affine=affine(0.18))
    with pytest.raises(ScaleError, match=r"a pixel of CosMx has 0\.36 um"):
        read_section(folder, image=image, mpp=1.0, affine=affine(0.18))


@pytest.mark.parametrize("kind", ["cosmx", "merscope", "merscope without molecules"])
@pytest.mark.parametrize("bin_um", [30.0, 56.0])
def test_bins(tmp_path, cells, image, kind, bin_um):
    if kind == "cosmx":
        folder, unit = write_cosmx(tmp_path / "flat", cells), PIXEL_UM
    else:
        folder, unit = write_merscope(tmp_path / "region", cells, molecules=kind == "merscope"), 1.0
    section = read_section(folder, image=image, mpp=0.5, affine=affine(unit), bin_um=bin_um)
    squares = np.floor(cells[0] / bin_um)
    wanted = pd.DataFrame(cells[1][:, :5]).groupby([squares[:, 0], squares[:, 1]]).sum()
    centres = to_image((np.array(wanted.index.tolist()) + 0.5) * bin_um)
    inside = ((centres >= 0) & (centres <= [600, 440])).all(axis=1)
    found = {
        tuple(np.round(xy, 3)): row for xy, row in zip(section.spots.centre_px, section.counts.toarray(), strict=True)
    }
    assert len(found) == inside.sum() > 10
    for xy, row in zip(centres[inside], wanted.to_numpy()[inside], strict=True):
        assert np.array_equal(found[tuple(np.round(xy, 3))], row)
    assert section.spots.diameter_um == bin_um
    assert_section(section)


def test_merscope_cells(tmp_path, cells, image):
    folder = write_merscope(tmp_path / "region", cells)
    assert sniff(folder) == "merscope"
    section = read_section(folder, image=image, affine=affine(1.0))
    assert section.name == "region" and section.spots.barcodes[1] == "1000000000000000007"
    assert section.genes == tuple(GENES) and np.array_equal(section.counts.toarray(), cells[1][:, :5])
    np.testing.assert_allclose(section.spots.centre_px, to_image(cells[0]), atol=1e-6)
    assert section.slide.mpp == pytest.approx(0.5)
    assert_section(section)


def test_the_transform_of_the_mosaic_is_an_affine(tmp_path, cells, image):
    folder = write_merscope(tmp_path / "region", cells)
    (folder / "images").mkdir()
    path = folder / "images" / "micron_to_mosaic_pixel_transform.csv"
    np.savetxt(path, [*np.reshape(affine(1.0), (2, 3)), [0, 0, 1]])
    section = read_section(folder, image=image, affine=path)
    np.testing.assert_allclose(section.spots.centre_px, to_image(cells[0]), atol=1e-6)


def test_missing_files_are_named(tmp_path, cells, image):
    cosmx, merscope = write_cosmx(tmp_path / "flat", cells), write_merscope(tmp_path / "region", cells)
    for folder in (cosmx, merscope):
        with pytest.raises(BadOption, match="affine is None; wanted the map from"):
            read_section(folder, image=image)
        with pytest.raises(BadOption, match="image is None; wanted the H&E"):
            read_section(folder)
    (cosmx / "R1_metadata_file.csv").rename(cosmx / "R2_metadata_file.csv")
    with pytest.raises(MissingInput, match=r"R1_metadata_file.csv does not exist; AtoMx writes it"):
        read_section(cosmx / "R1_exprMat_file.csv", image=image, affine=affine(1))
    (cosmx / "R2_exprMat_file.csv").write_text("fov,cell_ID,A\n1,1,1\n")
    with pytest.raises(BadInput, match=r"2 files could be its table \(R1_exprMat_file.csv, R2_exprMat_file.csv\)"):
        read_section(cosmx, image=image, affine=affine(1))
    (merscope / "cell_metadata.csv").unlink()
    with pytest.raises(MissingInput, match=r"cell_metadata.csv does not exist; the MERSCOPE instrument"):
        read_section(merscope, image=image, affine=affine(1))


def test_tables_that_do_not_belong_together(tmp_path, cells, image):
    cosmx, merscope = write_cosmx(tmp_path / "flat", cells), write_merscope(tmp_path / "region", cells)
    table = pd.read_csv(cosmx / "R1_metadata_file.csv")
    table.assign(cell_ID=table["cell_ID"] + 5).to_csv(cosmx / "R1_metadata_file.csv", index=False)
    with pytest.raises(BadInput, match=r"cells are not in the table of cells"):
        read_section(cosmx, image=image, mpp=0.5, affine=affine(PIXEL_UM))
    text = (merscope / "cell_metadata.csv").read_text()
    (merscope / "cell_metadata.csv").write_text(text.replace("center_x", "centre_x"))
    with pytest.raises(BadInput, match=r"lacks the column\(s\) center_x"):
        read_section(merscope, image=image, mpp=0.5, affine=affine(1))
