"""One section written in the layout of every platform that is read, each under a rotation of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from scipy import sparse

from tests.readers.test_cell_tables import PIXEL_UM as COSMX_UM
from tests.readers.test_cell_tables import write_cosmx, write_merscope
from tests.readers.test_slide_seq import UNIT_UM as BEAD_UNIT_UM
from tests.readers.test_slide_seq import write as write_beads
from tests.readers.test_stomics import write_gem
from tests.readers.test_visium import write_cytassist
from tests.readers.written_formats import Made, ann_data_of, as_visium, write_hest, write_legacy, write_visium
from tests.readers.written_platforms import PIXEL_UM as XENIUM_UM
from tests.readers.written_platforms import MadeCells, SparseBins, write_cells_zarr, write_visium_hd, write_xenium

PIECES = 6
"""Cells, beads or places of molecules that the counts of one spot are divided among."""
QUARTER, FLIPPED = np.array([[0.0, 1.0], [-1.0, 0.0]]), np.array([[1.0, 0.0], [0.0, -1.0]])
"""From micrometres on the H&E to those of an assay."""
HE = "he.tif"


@dataclass(frozen=True, eq=False)
class Pieces:
    """The counts of each spot divided among places around its centre.

    `um` are micrometres on the H&E from `corner_um`, in which every spot lies near the middle of a square of the pitch:
    there bins of that side hold one spot each.
    """

    um: np.ndarray
    corner_um: np.ndarray
    counts: np.ndarray
    pitch_um: float
    mpp: float

    def in_assay(self, turn: np.ndarray, unit_um: float) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates (n, 2) above 0 in units of an assay, and the 2x3 affine from them to pixels of the H&E."""
        turned = self.um @ turn.T
        moved = np.ceil(np.maximum(-turned.min(axis=0), 0) / self.pitch_um) * self.pitch_um
        linear = turn.T / self.mpp
        affine = np.column_stack([linear * unit_um, self.corner_um / self.mpp - linear @ moved])
        return (turned + moved) / unit_um, affine


def in_pieces(made: Made, seed: int = 0) -> Pieces:
    """Divide the counts of every spot at random among `PIECES` places, an eighth of the pitch from its centre."""
    um = made.centre_px * made.mpp
    phase = np.angle(np.exp(2j * np.pi * um / made.pitch_um).mean(axis=0)) / (2 * np.pi) * made.pitch_um
    corner = phase - made.pitch_um / 2
    angles = 2 * np.pi * np.arange(PIECES) / PIECES
    ring = made.pitch_um / 8 * np.column_stack([np.cos(angles), np.sin(angles)])
    rng = np.random.default_rng(seed)
    left, parts = made.counts.copy(), []
    for more in range(PIECES - 1, -1, -1):
        parts.append(rng.binomial(left, 1 / (more + 1)))
        left = left - parts[-1]
    places = (um - corner)[:, None] + ring
    counts = np.stack(parts, axis=1).reshape(-1, made.counts.shape[1])
    return Pieces(places.reshape(-1, 2), corner, counts, made.pitch_um, made.mpp)


def _molecules(pieces: Pieces, xy: np.ndarray, genes: list[str]) -> pd.DataFrame:
    """One row a piece and gene that was counted: gene, x, y, count."""
    rows, columns = np.nonzero(pieces.counts)
    return pd.DataFrame(
        {"gene": np.array(genes)[columns], "x": xy[rows, 0], "y": xy[rows, 1], "count": pieces.counts[rows, columns]}
    )


def _row(counts: str, made: Made, **columns: object) -> dict[str, str]:
    stated = {"counts": counts, "image": HE, **columns}
    return {key: str(value) for key, value in stated.items()}


def _text(affine: np.ndarray) -> str:
    return " ".join(f"{value:.10g}" for value in affine.ravel())


def _legacy_st(folder: Path, made: Made) -> dict[str, str]:
    counts = write_legacy(folder, made)
    return _row(counts.name, made, spots="S1_spots.tsv", mpp=made.mpp)


def _visium(folder: Path, made: Made) -> dict[str, str]:
    write_visium(folder / "outs", as_visium(made))
    return _row("outs", made)


def _visium_cytassist(folder: Path, made: Made) -> dict[str, str]:
    write_cytassist(write_visium(folder / "outs", as_visium(made)), as_visium(made))
    return _row("outs", made)


def _visium_hd(folder: Path, made: Made) -> dict[str, str]:
    pieces, across = in_pieces(made), round(made.pitch_um / 2)
    places = np.round(made.array_xy - made.array_xy.min(axis=0)).astype(int)  # column and row of each spot
    design = np.column_stack([places, np.ones(len(places))])
    fit = np.linalg.lstsq(design, made.centre_px, rcond=None)[0].T  # 2x3, from the array to pixels
    linear = fit[:, :2] / across
    to_px = np.column_stack([linear, fit[:, 2] - linear.sum(axis=1) * (across - 1) / 2])
    columns, rows = (places.max(axis=0) + 1) * across
    tissue = np.zeros((rows, columns), bool)
    for column, row in places * across:
        tissue[row : row + across, column : column + across] = True
    angles = 2 * np.pi * np.arange(PIECES) / PIECES
    ring = np.round(across / 8 * np.column_stack([np.cos(angles), np.sin(angles)]))
    column, row = (places[:, None] * across + across // 2 + ring).reshape(-1, 2).astype(int).T
    values = sparse.coo_matrix(pieces.counts)
    counts = sparse.csr_matrix(
        (values.data, ((row * columns + column)[values.row], values.col)), (rows * columns, len(made.genes))
    )
    write_visium_hd(folder / "outs", SparseBins(counts, tissue, made.genes, to_px, made.mpp, made.image), (2, 8))
    return _row("outs", made, bin_um=f"{made.pitch_um:g}")


def _xenium(folder: Path, made: Made) -> dict[str, str]:
    pieces = in_pieces(made)
    xy, affine = pieces.in_assay(QUARTER, 1.0)
    to_um = np.linalg.inv(np.vstack([affine, [0, 0, 1]]))
    to_um[:2] /= XENIUM_UM
    molecules = _molecules(pieces, xy, made.genes)
    molecules = molecules.loc[molecules.index.repeat(molecules["count"])].reset_index(drop=True)
    transcripts = pd.DataFrame({"feature_name": molecules["gene"], "qv": 40.0, "is_gene": True})
    transcripts["x_location"], transcripts["y_location"] = molecules["x"], molecules["y"]
    rng = np.random.default_rng(1)
    ids = np.column_stack([rng.choice(2**31, len(xy), replace=False), np.ones(len(xy))]).astype(np.uint32)
    letters = str.maketrans("0123456789abcdef", "abcdefghijklmnop")
    names = [f"{prefix:08x}".translate(letters) + "-1" for prefix, _ in ids.tolist()]
    cells = MadeCells(names, ids, xy, made.genes, pieces.counts, transcripts, to_um, made.image, made.mpp)
    write_xenium(folder / "outs", cells, group_rows=100_000)
    write_cells_zarr(folder / "outs", cells)
    return _row("outs", made, image="outs/made_he_image.ome.tif", bin_um=f"{made.pitch_um:g}")


def _with_controls(pieces: Pieces) -> np.ndarray:
    return np.hstack([pieces.counts, np.ones((len(pieces.counts), 2), int)])


def _cosmx(folder: Path, made: Made) -> dict[str, str]:
    pieces = in_pieces(made)
    xy, affine = pieces.in_assay(FLIPPED, COSMX_UM)
    write_cosmx(folder / "flat", (xy * COSMX_UM, _with_controls(pieces)), genes=made.genes)
    return _row("flat", made, mpp=made.mpp, affine=_text(affine), bin_um=f"{made.pitch_um:g}")


def _merscope(folder: Path, made: Made) -> dict[str, str]:
    pieces = in_pieces(made)
    xy, affine = pieces.in_assay(FLIPPED @ QUARTER, 1.0)
    write_merscope(folder / "region", (xy, _with_controls(pieces)), genes=made.genes)
    (folder / "region" / "images").mkdir()
    transform = "region/images/micron_to_mosaic_pixel_transform.csv"
    np.savetxt(folder / transform, [*affine, [0, 0, 1]])
    return _row("region", made, mpp=made.mpp, affine=transform, bin_um=f"{made.pitch_um:g}")


def _stomics(folder: Path, made: Made) -> dict[str, str]:
    pieces = in_pieces(made)
    xy, affine = pieces.in_assay(QUARTER, 0.5)
    table = _molecules(pieces, np.round(xy).astype(int), made.genes)
    table.columns = ["geneName", "x", "y", "MIDCount"]
    table.insert(0, "geneID", "ENSG" + table["geneName"])
    write_gem(folder / "S1.tissue.gem.gz", table)
    return _row("S1.tissue.gem.gz", made, affine=_text(affine), bin_um=f"{made.pitch_um:g}")


def _beads(folder: Path, made: Made, kind: str, **layout: str) -> dict[str, str]:
    pieces = in_pieces(made)
    xy, affine = pieces.in_assay(-np.eye(2) if kind == "curio" else QUARTER, BEAD_UNIT_UM)
    names = [f"BEAD{i:05d}" for i in range(len(xy))]
    write_beads(folder / "puck", (names, xy, pieces.counts, made.genes), kind, **layout)
    return _row("puck", made, mpp=made.mpp, affine=_text(affine), bin_um=f"{made.pitch_um:g}")


def _slide_seq(folder: Path, made: Made) -> dict[str, str]:
    return _beads(folder, made, "slide-seq")


def _curio(folder: Path, made: Made) -> dict[str, str]:
    return _beads(folder, made, "curio", prefix="S1_")


def _spatialdata(folder: Path, made: Made) -> dict[str, str]:
    from cmrcnet.readers.registry import read_section
    from tests.slides.test_spot_tables import spatial_data_of

    counts = write_legacy(folder / "source", made)
    section = read_section(counts, mpp=made.mpp, spots=folder / "source" / "S1_spots.tsv", patient="A")
    spatial_data_of(section).write(folder / "S1.zarr")
    return _row("S1.zarr", made, image="", mpp=made.mpp)


def _ann_data(folder: Path, made: Made) -> dict[str, str]:
    ann_data_of(made).write_h5ad(folder / "S1.h5ad")
    return _row("S1.h5ad", made, mpp=made.mpp, spot_diameter_um=100)


def _hest(folder: Path, made: Made) -> dict[str, str]:
    write_hest(folder / "hest", made, technology="Spatial Transcriptomics")
    return _row("hest", made, image="")


PLATFORMS: dict[str, Callable[[Path, Made], dict[str, str]]] = {
    "legacy_st": _legacy_st,
    "visium": _visium,
    "visium_cytassist": _visium_cytassist,
    "visium_hd": _visium_hd,
    "xenium": _xenium,
    "cosmx": _cosmx,
    "merscope": _merscope,
    "stomics": _stomics,
    "slide_seq": _slide_seq,
    "curio": _curio,
    "spatialdata": _spatialdata,
    "ann_data": _ann_data,
    "hest": _hest,
}
"""Writes a section into a folder, and gives the columns of its row of a cohort file, paths relative to the folder."""


def write_platform(platform: str, folder: Path, made: Made) -> dict[str, str]:
    """Write a section in the layout of a platform, with its H&E; gives its row of a cohort file."""
    folder.mkdir(parents=True)
    made = replace(made, genes=list(made.genes))
    tifffile.imwrite(folder / HE, made.image, tile=(256, 256), photometric="rgb")
    return PLATFORMS[platform](folder, made)
