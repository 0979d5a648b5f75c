"""Visium HD and Xenium folders in the documented layouts, made from small arrays."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from PIL import Image
from scipy import sparse

from tests.readers.written_formats import write_10x_h5, write_10x_mtx

# --- Visium HD ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class MadeBins:
    """Bins of 2 um: counts (rows, columns, genes), which are under tissue, and where they lie on a picture."""

    counts: Any
    tissue: np.ndarray
    genes: list[str]
    to_px: np.ndarray
    """2x3 matrix: (column, row) of a bin to x, y of its centre in pixels."""
    mpp: float
    image: np.ndarray

    def centre_px(self, bin_um: int = 2) -> np.ndarray:
        """x, y of the centre of each square of `bin_um` um, shape (rows, columns, 2), by hand."""
        by = bin_um // 2
        rows, columns = (-(-n // by) for n in self.tissue.shape)
        row, column = np.mgrid[:rows, :columns] * by + (by - 1) / 2
        return np.stack([column, row], axis=-1) @ self.to_px[:, :2].T + self.to_px[:, 2]

    def merged(self, bin_um: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sums over the bins under tissue, how many are under tissue, and how many there are."""
        by = bin_um // 2
        rows, columns, genes = self.counts.shape
        pad = [(0, -rows % by), (0, -columns % by)]
        counts = np.pad(self.counts * self.tissue[..., None], [*pad, (0, 0)])
        under, there = np.pad(self.tissue.astype(int), pad), np.pad(np.ones_like(self.tissue, int), pad)
        tall, wide = (n // by for n in under.shape)
        sums = counts.reshape(tall, by, wide, by, genes).sum(axis=(1, 3))
        return sums, *(each.reshape(tall, by, wide, by).sum(axis=(1, 3)) for each in (under, there))


@dataclass(frozen=True, eq=False)
class SparseBins(MadeBins):
    """The same with the counts as a sparse matrix, (rows times columns, genes): an array of many empty bins."""

    counts: sparse.csr_matrix

    def merged(self, bin_um: int) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
        """As `MadeBins.merged`, the sums as (squares, genes)."""
        by = bin_um // 2
        rows, columns = self.tissue.shape
        tall, wide = -(-rows // by), -(-columns // by)
        row, column = np.divmod(np.arange(rows * columns), columns)
        square, under = row // by * wide + column // by, self.tissue.ravel()
        sums = (
            sparse.csr_matrix((under * 1, (square, np.arange(len(square)))), (tall * wide, len(square))) @ self.counts
        )
        sizes = (np.bincount(square, weights, tall * wide).astype(int) for weights in (under, None))
        return sums, *(size.reshape(tall, wide) for size in sizes)


def made_bins(rows: int = 42, columns: int = 38, genes: int = 9, *, mpp: float = 0.5, seed: int = 0) -> MadeBins:
    """A turned array with a disc of tissue on a picture that is pink there."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[:rows, :columns]
    tissue = (row - rows / 2) ** 2 + (column - columns / 2) ** 2 < (0.45 * rows) ** 2
    counts = rng.poisson(0.3, (rows, columns, genes))
    counts[rows // 2, columns // 2] = 40_000  # sums beyond 16 bits
    turn, step = 0.1, 2 / mpp
    linear = step * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    to_px = np.column_stack([linear, [4 * step, 3 * step]])
    side = int(step * max(rows, columns) * 1.3)
    image = np.full((side, side, 3), 235, np.uint8)
    on = np.round(np.column_stack([column[tissue], row[tissue]]) @ linear.T + to_px[:, 2]).astype(int)
    for x, y in on:
        image[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] = rng.integers(90, 200, 3) // [1, 2, 1]
    return MadeBins(counts, tissue, [f"GENE{i + 1}" for i in range(genes)], to_px, mpp, image)


def write_visium_hd(
    outs: Path,
    made: MadeBins,
    sizes: tuple[int, ...] = (2, 8),
    *,
    shuffled: bool = False,
    kinds: list[str] | None = None,
    version: str = "spaceranger-3.1.2",
) -> Path:
    """`outs/binned_outputs/square_XXXum` as Space Ranger 3 writes it, with the slice file that spatialdata-io wants."""
    for um in sizes:
        folder = outs / "binned_outputs" / f"square_{um:03d}um"
        (folder / "spatial").mkdir(parents=True)
        sums, under, there = made.merged(um)
        rows, columns = under.shape
        row, column = (part.ravel() for part in np.mgrid[:rows, :columns])
        names = np.array([f"s_{um:03d}um_{r:05d}_{c:05d}-1" for r, c in zip(row, column, strict=True)])
        centres = made.centre_px(um).reshape(-1, 2)
        in_tissue = (2 * under >= there).ravel()
        positions = pd.DataFrame(
            {
                "barcode": names,
                "in_tissue": in_tissue.astype(np.int64),
                "array_row": row,
                "array_col": column,
                "pxl_row_in_fullres": centres[:, 1],
                "pxl_col_in_fullres": centres[:, 0],
            }
        )
        path = folder / "spatial" / "tissue_positions.parquet"
        positions.to_parquet(path, index=False, row_group_size=300 if len(names) < 30_000 else 100_000)
        matrix = sparse.csc_matrix(sums.reshape(rows * columns, -1)[in_tissue].T)
        barcodes = names[in_tissue]
        if shuffled:
            order = np.random.default_rng(1).permutation(len(barcodes))
            matrix, barcodes = matrix[:, order], barcodes[order]
        ids = [f"ENSG{i:011d}" for i in range(len(made.genes))]
        path = folder / "filtered_feature_bc_matrix.h5"
        write_10x_h5(path, matrix, list(barcodes), ids, made.genes, kinds or ["Gene Expression"] * len(made.genes))
        with h5py.File(path, "r+") as file:
            file.attrs["software_version"] = version
            file.attrs["filetype"] = "matrix"
        factors = {
            "spot_diameter_fullres": um / made.mpp,
            "bin_size_um": float(um),
            "microns_per_pixel": made.mpp,
            "fiducial_diameter_fullres": 100.0,
            "regist_target_img_scalef": 1.0,
            "tissue_hires_scalef": 0.5,
            "tissue_lowres_scalef": 0.25,
        }
        (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
        for kind, by in (("hires", 2), ("lowres", 4)):
            Image.fromarray(made.image).reduce(by).save(folder / "spatial" / f"tissue_{kind}_image.png")
    with h5py.File(outs / "feature_slice.h5", "w") as file:
        file.attrs["metadata_json"] = json.dumps({"hd_layout_json": json.dumps({"file_format": "1.0"})})
    return outs


# --- Xenium ------------------------------------------------------------------------------------------------------

XENIUM_KINDS = {
    "NegControlProbe_00042": "Negative Control Probe",
    "NegControlCodeword_0500": "Negative Control Codeword",
    "UnassignedCodeword_0018": "Unassigned Codeword",
    "DeprecatedCodeword_0321": "Deprecated Codeword",
    "Intergenic_Region_1001": "Genomic Control",
}
PIXEL_UM = 0.2125


@dataclass(frozen=True, eq=False)
class MadeCells:
    """Cells, their transcripts, and an H&E under a known alignment."""

    names: list[str]
    ids: np.ndarray
    centre_um: np.ndarray
    genes: list[str]
    counts: np.ndarray
    transcripts: pd.DataFrame
    alignment: np.ndarray
    """3x3, pixels of the H&E to pixels of the morphology image."""
    image: np.ndarray
    mpp: float

    def to_image(self, xy_um: np.ndarray) -> np.ndarray:
        """Micrometres to pixels of the H&E, by hand."""
        points = np.column_stack([np.asarray(xy_um) / PIXEL_UM, np.ones(len(xy_um))])
        return np.linalg.solve(self.alignment, points.T).T[:, :2]


def made_cells(cells: int = 150, genes: int = 7, *, seed: int = 0, mpp: float = 1.0) -> MadeCells:
    """Cells on 300 x 220 um, with transcripts of low quality and of controls, and an H&E turned by a quarter."""
    rng = np.random.default_rng(seed)
    names = [f"GENE{i + 1}" for i in range(genes)]
    centres = rng.uniform([20, 20], [280, 200], (cells, 2))
    counts = rng.poisson(3, (cells, genes))
    rows, columns = np.nonzero(counts)
    each = counts[rows, columns]
    table = pd.DataFrame({"feature_name": np.repeat(np.array(names)[columns], each), "qv": 30.0})
    xy = np.repeat(centres[rows], each, axis=0) + rng.normal(0, 2, (each.sum(), 2))
    table["x_location"], table["y_location"] = xy.T
    table["is_gene"] = True
    poor = table.sample(frac=0.3, random_state=1).assign(qv=rng.choice([0.0, 10.0, 19.9], round(0.3 * len(table))))
    controls = table.sample(100, random_state=2).assign(
        feature_name=rng.choice(list(XENIUM_KINDS), 100), is_gene=False, qv=35.0
    )
    table = pd.concat([table, poor, controls]).sample(frac=1, random_state=3, ignore_index=True)
    ids = np.column_stack([rng.choice(2**31, cells, replace=False), np.ones(cells)]).astype(np.uint32)
    letters = str.maketrans("0123456789abcdef", "abcdefghijklmnop")
    cell_names = [hex(int(prefix))[2:].translate(letters).rjust(8, "a") + "-1" for prefix, _ in ids]
    scale = mpp / PIXEL_UM  # x of the H&E runs along y of the DAPI image
    alignment = np.array([[0.0, -scale, 380 / PIXEL_UM], [scale, 0.0, -80 / PIXEL_UM], [0.0, 0.0, 1.0]])
    image = np.full((int(460 / mpp), int(380 / mpp), 3), 235, np.uint8)  # with a margin of 80 um
    made = MadeCells(cell_names, ids, centres, names, counts, table, alignment, image, mpp)
    for x, y in np.round(made.to_image(centres)).astype(int):
        image[max(y - 8, 0) : y + 8, max(x - 8, 0) : x + 8] = rng.integers(90, 200, 3) // [1, 2, 1]
    return made


def write_xenium(
    outs: Path,
    made: MadeCells,
    *,
    cells: str = "parquet",
    matrix: str = "h5",
    bytes_names: bool = False,
    with_is_gene: bool = True,
    version: str = "xenium-3.0.0.15",
    image: bool = True,
    group_rows: int = 500,
) -> Path:
    """The output folder of Xenium Onboard Analysis, with the H&E and its alignment from Xenium Explorer."""
    import tifffile
    import zarr

    outs.mkdir(parents=True)
    facts = {
        "major_version": 5,
        "minor_version": 0,
        "run_name": "made",
        "region_name": "region",
        "pixel_size": PIXEL_UM,
    }
    facts |= {"analysis_sw_version": version, "num_cells": len(made.names), "panel_name": "made"}
    (outs / "experiment.xenium").write_text(json.dumps(facts))
    table = pd.DataFrame(
        {"cell_id": made.names, "x_centroid": made.centre_um[:, 0], "y_centroid": made.centre_um[:, 1]}
    )
    table["transcript_counts"], table["cell_area"], table["nucleus_area"] = made.counts.sum(axis=1), 78.5, 30.0
    if bytes_names:
        table["cell_id"] = table["cell_id"].str.encode("utf-8")
    if cells == "parquet":
        table.to_parquet(outs / "cells.parquet", index=False, row_group_size=40)
    else:
        table.to_csv(outs / "cells.csv.gz", index=False)
    names = [*made.genes, *XENIUM_KINDS]
    kinds = ["Gene Expression"] * len(made.genes) + list(XENIUM_KINDS.values())
    noise = np.random.default_rng(5).poisson(0.1, (len(made.names), len(XENIUM_KINDS)))
    values = sparse.csc_matrix(np.hstack([made.counts, noise]).T)  # features x cells
    ids = [f"ENSG{i:011d}" for i in range(len(names))]
    if matrix == "h5":
        write_10x_h5(outs / "cell_feature_matrix.h5", values, made.names, ids, names, kinds)
    elif matrix == "mtx":
        write_10x_mtx(outs / "cell_feature_matrix", values, made.names, ids, names, kinds, "mtx.gz")
    else:
        store = zarr.storage.ZipStore(outs / "cell_feature_matrix.zarr.zip", mode="w")
        short = ["gene"] * len(made.genes) + [kind.lower().replace(" ", "_") for kind in XENIUM_KINDS.values()]
        facts = {"feature_keys": names, "feature_ids": ids, "feature_types": short}
        group = zarr.open_group(store, mode="w", zarr_format=2).create_group("cell_features", attributes=facts)
        rows = values.tocsr()
        for key in ("indptr", "indices", "data"):
            group.create_array(key, data=getattr(rows, key).astype(np.uint32))
        group.create_array("cell_id", data=made.ids)
        store.close()
    transcripts = made.transcripts.assign(z_location=10.0, cell_id="UNASSIGNED", overlaps_nucleus=1)
    if bytes_names:
        transcripts["feature_name"] = transcripts["feature_name"].str.encode("utf-8")
    if not with_is_gene:
        transcripts = transcripts.drop(columns="is_gene")
    transcripts.to_parquet(outs / "transcripts.parquet", index=False, row_group_size=group_rows)
    if image:
        tifffile.imwrite(outs / "made_he_image.ome.tif", made.image, photometric="rgb", metadata={"axes": "YXS"})
        np.savetxt(outs / "made_he_imagealignment.csv", made.alignment, delimiter=",")
    return outs


def write_cells_zarr(outs: Path, made: MadeCells) -> None:
    """`cells.zarr.zip`, of which spatialdata-io reads the cell ids."""
    import zarr

    store = zarr.storage.ZipStore(outs / "cells.zarr.zip", mode="w")
    group = zarr.open_group(store, mode="w", zarr_format=2)
    group.create_array("cell_id", data=made.ids)
    summary = group.create_array("cell_summary", data=np.column_stack([made.centre_um, np.zeros(len(made.ids))]))
    summary.attrs["column_names"] = ["cell_centroid_x", "cell_centroid_y", "z_level"]
    store.close()
