"""Slide-seq and Curio Seeker: beads and bins against sums by hand, and each missing file named."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.io import mmwrite

from cmrcnet.errors import BadInput, BadOption, MissingInput, ScaleError, SectionError
from cmrcnet.readers.registry import read_section, sniff
from cmrcnet.testing import assert_section
from tests.readers.written_formats import write_image

UNIT_UM = 0.65
AFFINE = [0, 1.3, 10, -1.3, 0, 800]  # a quarter turn, 0.5 um per px


@pytest.fixture
def beads():
    """Barcodes, places and counts (beads, genes); beads 12 um apart."""
    rng = np.random.default_rng(0)
    row, column = np.mgrid[:20, :25].reshape(2, -1)
    places = np.column_stack([column, row]) * 12 / UNIT_UM + rng.uniform(-1, 1, (500, 2)) + 30
    return [f"BEAD{i:04d}" for i in range(500)], places, rng.poisson(0.4, (500, 6)), [f"GENE{i}" for i in range(6)]


@pytest.fixture
def image(tmp_path):
    return write_image(tmp_path / "he.png", np.full((900, 900, 3), 190, np.uint8))


def to_image(places):
    return np.column_stack([1.3 * places[:, 1] + 10, -1.3 * places[:, 0] + 800])


def write(folder, beads, kind, *, prefix="", gz=""):
    folder.mkdir()
    names, places, counts, genes = beads
    order = np.random.default_rng(1).permutation(len(names))
    positions = pd.DataFrame(places, index=names, columns=["xcoord", "ycoord"]).iloc[order]
    if kind == "slide-seq":
        table = pd.DataFrame(counts.T, index=pd.Index(genes, name="GENE"), columns=names)
        table.to_csv(folder / f"{prefix}MappedDGEForR.csv{gz}")
        positions.rename_axis("barcodes").to_csv(folder / f"{prefix}BeadLocationsForR.csv{gz}")
    elif kind == "numbered":
        pd.DataFrame(counts.T, index=genes, columns=names).to_csv(folder / f"{prefix}MappedDGEForR.csv{gz}")
        positions.rename_axis("barcodes").reset_index().to_csv(folder / f"{prefix}BeadLocationsForR.csv{gz}")
    else:
        mmwrite(folder / f"{prefix}MoleculesPerMatchedBead.mtx", sparse.csc_matrix(counts.T.astype(float)))
        (folder / f"{prefix}barcodes.tsv").write_text("\n".join(names) + "\n")
        (folder / f"{prefix}genes.tsv").write_text("\n".join(genes) + "\n")
        positions.set_axis(["SPATIAL_1", "SPATIAL_2"], axis=1).to_csv(folder / f"{prefix}MatchedBeadLocation.csv")
    return folder


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ("slide-seq", {}),
        ("slide-seq", {"prefix": "Puck_1_", "gz": ".gz"}),
        ("numbered", {}),
        ("curio", {"prefix": "S1_"}),
    ],
)
def test_beads(tmp_path, beads, image, kind, layout):
    folder = write(tmp_path / "puck", beads, kind, **layout)
    assert sniff(folder) == "slide_seq"
    section = read_section(folder, image=image, mpp=0.5, affine=AFFINE)
    assert section.name == (layout.get("prefix", "").rstrip("_") or "puck")
    assert section.spots.barcodes == tuple(beads[0]) and section.genes == tuple(beads[3])
    assert np.array_equal(section.counts.toarray(), beads[2])
    np.testing.assert_allclose(section.spots.centre_px, to_image(beads[1]), atol=1e-6)
    assert section.spots.diameter_um == 10
    assert any("has 0.65 um" in note for note in section.notes)
    assert_section(section)


@pytest.mark.parametrize("bin_um", [50.0, 100.0])
def test_bins(tmp_path, beads, image, bin_um):
    folder = write(tmp_path / "puck", beads, "curio")
    section = read_section(folder, image=image, mpp=0.5, affine=AFFINE, bin_um=bin_um)
    u, v = (beads[1] * UNIT_UM / [1, 1]).T[::-1]  # x of the image runs along y, its y against x
    squares = np.floor(np.column_stack([u, -v]) / bin_um)
    wanted = pd.DataFrame(beads[2]).groupby([squares[:, 0], squares[:, 1]]).sum()
    centres = (np.array(wanted.index.tolist()) + 0.5) * bin_um / 0.5 + [10, 800]
    found = {
        tuple(np.round(xy, 3)): row for xy, row in zip(section.spots.centre_px, section.counts.toarray(), strict=True)
    }
    inside = ((centres >= 0) & (centres <= 900)).all(axis=1)
    assert len(found) == inside.sum() > 5
    for xy, row in zip(centres[inside], wanted.to_numpy()[inside], strict=True):
        assert np.array_equal(found[tuple(np.round(xy, 3))], row)
    assert section.spots.diameter_um == bin_um
    assert_section(section)


def test_what_is_refused(tmp_path, beads, image):
    folder = write(tmp_path / "puck", beads, "slide-seq")
    with pytest.raises(BadOption, match="affine is None; wanted the map from bead coordinates"):
        read_section(folder, image=image, mpp=0.5)
    with pytest.raises(BadOption, match="image is None; wanted the H&E"):
        read_section(folder)
    with pytest.raises(ScaleError, match="does not say how many"):
        read_section(folder, image=image, affine=AFFINE)
    with pytest.raises(ScaleError, match=r"would lie 96 um apart.* 10 to 40 um apart"):
        read_section(folder, image=image, mpp=4.0, affine=AFFINE)
    path = folder / "BeadLocationsForR.csv"
    text = path.read_text()
    path.write_text(text.replace("BEAD00", "BEAD99"))
    with pytest.raises(SectionError, match=r"100 of 500 beads of MappedDGEForR.csv have no position"):
        read_section(folder, image=image, mpp=0.5, affine=AFFINE)
    path.write_text(text.replace("xcoord", "xcoord,extra"))
    with pytest.raises(BadInput, match="wanted barcodes, x and y"):
        read_section(folder, image=image, mpp=0.5, affine=AFFINE)
    path.write_text(text.replace("barcodes,xcoord,ycoord", ",,"))
    with pytest.raises(BadInput, match="columns have the same name, or none"):
        read_section(folder, image=image, mpp=0.5, affine=AFFINE)
    path.write_bytes(text.encode().replace(b"xcoord", b"x\xa4oord"))
    with pytest.raises(BadInput, match="it is no UTF-8 text"):
        read_section(folder, image=image, mpp=0.5, affine=AFFINE)
    path.unlink()
    with pytest.raises(MissingInput, match=r"BeadLocationsForR.csv does not exist; the Slide-seq tools write it"):
        read_section(folder, image=image, mpp=0.5, affine=AFFINE)
    curio = write(tmp_path / "curio", beads, "curio", prefix="S1_")
    (curio / "S1_genes.tsv").unlink()
    with pytest.raises(MissingInput, match=r"S1_genes.tsv does not exist; the Curio Seeker pipeline writes it"):
        read_section(curio, image=image, mpp=0.5, affine=AFFINE)
