"""Visium HD and Xenium folders in the documented layouts, made from small arrays."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from PIL import Image
from scipy import sparse

from tests.readers.written_formats import write_10x_h5

# --- Visium HD ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class MadeBins:
    """Bins of 2 um: counts (rows, columns, genes), which are under tissue, and where they lie on a picture."""

    counts: np.ndarray
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
        positions.to_parquet(folder / "spatial" / "tissue_positions.parquet", index=False, row_group_size=300)
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
