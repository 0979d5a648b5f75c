"""Small sections written into the true layout of each format, so that readers meet what they meet in the field."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from PIL import Image
from scipy import io, sparse


@dataclass(frozen=True, eq=False)
class Made:
    """What a section holds, before it is written."""

    barcodes: list[str]
    array_xy: np.ndarray  # (spots, 2), place on the array
    centre_px: np.ndarray  # (spots, 2), x, y
    genes: list[str]
    counts: np.ndarray  # (spots, genes), whole numbers
    image: np.ndarray  # (height, width, 3)
    mpp: float
    pitch_um: float

    @property
    def spots(self) -> int:
        return len(self.barcodes)


def made_up(
    *, columns: int = 6, rows: int = 5, genes: int = 12, pitch_um: float = 200.0, mpp: float = 4.0, seed: int = 0
) -> Made:
    """A square array of spots, each with counts, on a picture that shows a dark dot at every centre."""
    rng = np.random.default_rng(seed)
    pitch = pitch_um / mpp
    array = np.array([[x, y] for y in range(1, rows + 1) for x in range(1, columns + 1)], dtype=float)
    centres = array * pitch + 3.0
    width, height = int((columns + 2) * pitch), int((rows + 2) * pitch)
    image = np.full((height, width, 3), 230, np.uint8)
    for x, y in np.round(centres).astype(int):
        image[y - 2 : y + 3, x - 2 : x + 3] = (120, 40, 90)
    counts = rng.negative_binomial(1, 0.1, (len(array), genes))
    counts[counts < 3] = 0
    counts[:, 0] += 1
    return Made(
        barcodes=[f"{int(x)}x{int(y)}" for x, y in array],
        array_xy=array,
        centre_px=centres,
        genes=[f"GENE{i + 1}" for i in range(genes)],
        counts=counts,
        image=image,
        mpp=mpp,
        pitch_um=pitch_um,
    )


def from_shared(csv: Path, section: str, side_px: int = 1800) -> Made:
    """A corner of a real section, read by pandas and Pillow alone."""
    row = pd.read_csv(csv, dtype=str).set_index("section").loc[section]
    with gzip.open(csv.parent / row["counts"], "rt") as file:
        genes = file.readline().rstrip("\n").split("\t")[1:]
    counts = pd.read_csv(csv.parent / row["counts"], sep="\t", header=None, skiprows=1, index_col=0)
    spots = pd.read_csv(csv.parent / row["spots"], sep="\t", dtype={"x": str, "y": str})
    spots.index = spots["spot"] if "spot" in spots else spots["x"] + "x" + spots["y"]
    spots = spots[spots["selected"] == 1]
    spots = spots.loc[[name for name in counts.index if name in spots.index]]
    middle = spots[["pixel_x", "pixel_y"]].median().to_numpy()
    corner = np.maximum(np.round(middle - side_px / 2), 0).astype(int)
    centres = spots[["pixel_x", "pixel_y"]].to_numpy() - corner
    inside = ((centres > 50) & (centres < side_px - 50)).all(axis=1)
    spots, centres = spots[inside], centres[inside]
    with Image.open(csv.parent / row["image"]) as picture:
        image = np.asarray(picture.crop((*corner, *(corner + side_px))))
    often = Counter(genes)
    kept = [i for i, gene in enumerate(genes) if i < 2000 or often[gene] > 1]  # enough, and every double name
    genes, counts = [genes[i] for i in kept], counts.iloc[:, kept]
    return Made(
        barcodes=list(spots.index),
        array_xy=spots[["x", "y"]].astype(float).to_numpy(),
        centre_px=centres,
        genes=genes,
        counts=counts.loc[list(spots.index)].to_numpy(),
        image=image,
        mpp=float(row["um_per_px"]),
        pitch_um=200.0,
    )


def as_visium(made: Made) -> Made:
    """The same spots under 10x barcodes, as if they lay 100 um apart; a barcode says nothing about its place."""
    letters = "ACGT"
    barcodes = []
    for i in range(made.spots):
        digits = [letters[(i // 4**place) % 4] for place in range(16)]
        barcodes.append("".join(digits) + "-1")
    return replace(made, barcodes=barcodes, mpp=made.mpp * 100 / made.pitch_um, pitch_um=100.0)


# --- legacy ST ---------------------------------------------------------------------------------------------------


def write_image(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_legacy(
    folder: Path, made: Made, name: str = "S1", *, spot_column: bool = False, sep: str = "\t", turned: bool = False
) -> Path:
    """`S1_counts.tsv.gz`, `S1_spots.tsv`, `S1.png`. Gives the counts."""
    folder.mkdir(parents=True, exist_ok=True)
    ending = ".csv" if sep in ",;" else ".tsv"
    counts = folder / f"{name}_counts{ending}.gz"
    rows, columns, values = made.barcodes, made.genes, made.counts
    if turned:
        rows, columns, values = columns, rows, values.T
    with gzip.open(counts, "wt", compresslevel=1) as file:
        file.write(sep.join(["", *columns]) + "\n")
        for row, numbers in zip(rows, values, strict=True):
            file.write(sep.join([row, *map(str, numbers)]) + "\n")
    spots = pd.DataFrame({"x": made.array_xy[:, 0], "y": made.array_xy[:, 1]}).map(lambda v: f"{v:g}")
    spots["pixel_x"], spots["pixel_y"], spots["selected"] = made.centre_px[:, 0], made.centre_px[:, 1], 1
    if spot_column:
        spots.insert(0, "spot", made.barcodes)
    spots.to_csv(folder / f"{name}_spots.tsv", sep="\t", index=False)
    write_image(folder / f"{name}.png", made.image)
    return counts


def edit_spots(counts: Path, change) -> None:
    """Let `change` work on the spot file as a data frame of text."""
    path = counts.with_name(counts.name.split("_counts")[0] + "_spots.tsv")
    change(pd.read_csv(path, sep="\t", dtype=str)).to_csv(path, sep="\t", index=False)


# --- Visium ------------------------------------------------------------------------------------------------------


def write_visium(
    outs: Path,
    made: Made,
    *,
    matrix: str = "h5",
    header: bool = True,
    off_tissue: int = 0,
    other_features: int = 0,
    written_spot_um: float = 65.0,
) -> Path:
    """`outs/` as Space Ranger writes it; the last `off_tissue` spots are listed as not under tissue."""
    types = ["Gene Expression"] * len(made.genes) + ["Antibody Capture"] * other_features
    names = made.genes + [f"CD{i}" for i in range(other_features)]
    ids = [f"ENSG{i:011d}" for i in range(len(names))]
    values = np.hstack([made.counts, np.ones((made.spots, other_features), made.counts.dtype)])
    by_feature = sparse.csc_matrix(values.T)  # features x barcodes
    outs.mkdir(parents=True, exist_ok=True)
    if matrix == "h5":
        write_10x_h5(outs / "filtered_feature_bc_matrix.h5", by_feature, made.barcodes, ids, names, types)
    else:
        write_10x_mtx(outs / "filtered_feature_bc_matrix", by_feature, made.barcodes, ids, names, types, matrix)
    spatial = outs / "spatial"
    spatial.mkdir(exist_ok=True)
    table = pd.DataFrame(
        {
            "barcode": made.barcodes,
            "in_tissue": [1] * (made.spots - off_tissue) + [0] * off_tissue,
            "array_row": made.array_xy[:, 1].astype(int),
            "array_col": made.array_xy[:, 0].astype(int),
            "pxl_row_in_fullres": np.round(made.centre_px[:, 1]).astype(int),
            "pxl_col_in_fullres": np.round(made.centre_px[:, 0]).astype(int),
        }
    ).sample(frac=1, random_state=0)  # Space Ranger lists them in another order than the matrix
    table.to_csv(
        spatial / ("tissue_positions.csv" if header else "tissue_positions_list.csv"), index=False, header=header
    )
    pictures = {"hires": 0.5, "lowres": 0.25}
    factors = {
        "spot_diameter_fullres": written_spot_um / made.mpp,
        "fiducial_diameter_fullres": written_spot_um / made.mpp * 1.6154,
        **{f"tissue_{kind}_scalef": scale for kind, scale in pictures.items()},
    }
    (spatial / "scalefactors_json.json").write_text(json.dumps(factors))
    for kind, scale in pictures.items():
        small = Image.fromarray(made.image).reduce(round(1 / scale))
        small.save(spatial / f"tissue_{kind}_image.png")
    return outs


def write_10x_h5(path: Path, by_feature: sparse.csc_matrix, barcodes, ids, names, types, *, version: int = 3) -> None:
    """CellRanger's HDF5 layout: version 3 (group `matrix`) or 2 (a group named after the genome)."""
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix" if version == 3 else "GRCh38")
        group["barcodes"] = np.array(barcodes, dtype="S")
        group.create_dataset("data", data=by_feature.data.astype(np.int32), compression="gzip")
        group.create_dataset("indices", data=by_feature.indices.astype(np.int64), compression="gzip")
        group["indptr"] = by_feature.indptr.astype(np.int64)
        group["shape"] = np.array(by_feature.shape, dtype=np.int32)
        if version == 2:
            group["genes"], group["gene_names"] = np.array(ids, dtype="S"), np.array(names, dtype="S")
            return
        features = group.create_group("features")
        features["id"], features["name"] = np.array(ids, dtype="S"), np.array(names, dtype="S")
        features["feature_type"] = np.array(types, dtype="S")
        features["genome"] = np.array(["GRCh38"] * len(names), dtype="S")
        features["_all_tag_keys"] = np.array(["genome"], dtype="S")


def write_10x_mtx(folder: Path, by_feature, barcodes, ids, names, types, layout: str) -> None:
    """`mtx.gz`: features.tsv.gz and friends (version 3); `mtx`: genes.tsv and friends (version 2)."""
    folder.mkdir(parents=True)
    if layout == "mtx.gz":
        lines = ["\t".join(cells) for cells in zip(ids, names, types, strict=True)]
        with gzip.open(folder / "features.tsv.gz", "wt") as file:
            file.write("\n".join(lines) + "\n")
        with gzip.open(folder / "barcodes.tsv.gz", "wt") as file:
            file.write("\n".join(barcodes) + "\n")
        with gzip.open(folder / "matrix.mtx.gz", "wb") as file:
            io.mmwrite(file, by_feature.astype(np.int64))
    else:
        (folder / "genes.tsv").write_text("\n".join(map("\t".join, zip(ids, names, strict=True))) + "\n")
        (folder / "barcodes.tsv").write_text("\n".join(barcodes) + "\n")
        io.mmwrite(folder / "matrix.mtx", by_feature.astype(np.int64))


# --- AnnData and HEST --------------------------------------------------------------------------------------------


def ann_data_of(made: Made):
    """X counts, obsm["spatial"] centres."""
    import anndata

    table = anndata.AnnData(sparse.csr_matrix(made.counts.astype(np.float32)))
    table.obs_names, table.var_names = list(made.barcodes), list(made.genes)
    table.obsm["spatial"] = made.centre_px.copy()
    return table


def write_hest(
    root: Path,
    made: Made,
    name: str = "TENX1",
    *,
    tables: str = "st",
    slide: bool = True,
    patches: bool = True,
    metadata: bool = True,
    off_tissue: int = 0,
    technology: str = "Visium",
) -> Path:
    """A HEST folder; the last `off_tissue` spots of the table have no patch."""
    import tifffile

    (root / tables).mkdir(parents=True, exist_ok=True)
    ann_data_of(made).write_h5ad(root / tables / f"{name}.h5ad")
    if slide:
        (root / "wsis").mkdir(exist_ok=True)
        tifffile.imwrite(root / "wsis" / f"{name}.tif", made.image, tile=(256, 256), photometric="rgb")
    if metadata:
        (root / "metadata").mkdir(exist_ok=True)
        facts = {"id": name, "patient": "Patient 7", "st_technology": technology}
        facts["pixel_size_um_estimated"] = made.mpp
        (root / "metadata" / f"{name}.json").write_text(json.dumps(facts))
    if patches:
        (root / "patches").mkdir(exist_ok=True)
        kept = made.spots - off_tissue
        side = 112 / made.mpp  # level-0 pixels of 224 px at 0.5 um
        corners = np.round(made.centre_px[:kept] - side / 2).astype(int)
        rng = np.random.default_rng(1)
        order = rng.permutation(kept)  # not the order of the table
        with h5py.File(root / "patches" / f"{name}.h5", "w") as file:
            file["barcode"] = np.array(made.barcodes[:kept], dtype="S")[order][:, None]
            file["coords"] = corners[order]
            file["img"] = rng.integers(0, 256, (kept, 224, 224, 3), dtype=np.uint8)
    return root


def cut(path: Path, share: float = 0.6) -> None:
    """Truncate a file, as an interrupted copy does."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
