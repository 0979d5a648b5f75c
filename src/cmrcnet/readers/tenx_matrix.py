"""A count matrix as CellRanger and Space Ranger write it: one `.h5` file, or a folder of three Matrix Market files.

Read with h5py and SciPy directly; the tests compare with scanpy. Layout: 10x Genomics, "Feature-barcode matrices".
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadInput, MissingInput
from cmrcnet.readers.delimited import read_bytes

GENES = "Gene Expression"
"""The feature type that is a gene; others (antibodies, CRISPR guides) are left out."""

H5 = "a 10x count matrix (.h5)"
FOLDER = "a 10x count matrix (folder of matrix.mtx, barcodes.tsv, features.tsv)"


@dataclass(frozen=True, eq=False)
class TenxMatrix:
    """Spots by genes, as stored.

    Parameters
    ----------
    barcodes : tuple of str
    genes : tuple of str
        Symbols; may repeat.
    counts : scipy.sparse.csr_matrix, shape (barcodes, genes)
    notes : tuple of str
    """

    barcodes: tuple[str, ...]
    genes: tuple[str, ...]
    counts: sparse.csr_matrix
    notes: tuple[str, ...] = ()


def read_tenx_matrix(path: Path) -> TenxMatrix:
    """Read a 10x matrix from its `.h5` file or its folder.

    Raises
    ------
    MissingInput, BadInput
    """
    return _read_folder(path) if Path(path).is_dir() else _read_h5(path)


def _read_h5(path: Path) -> TenxMatrix:
    import h5py

    if not Path(path).is_file():
        raise MissingInput(path, "The count matrix")
    try:
        with h5py.File(path, "r") as file:
            if "matrix" in file:
                group, features = file["matrix"], file["matrix/features"]
                names, types = _texts(features["name"]), _texts(features["feature_type"])
            else:  # CellRanger 2: one group a genome
                genomes = [name for name in file if isinstance(file[name], h5py.Group) and "gene_names" in file[name]]
                if len(genomes) != 1:
                    raise BadInput(path, H5, f"it holds no group 'matrix' and {len(genomes)} genomes")
                group = file[genomes[0]]
                names, types = _texts(group["gene_names"]), [GENES] * len(group["gene_names"])
            barcodes = _texts(group["barcodes"])
            shape = tuple(int(n) for n in group["shape"][:])
            matrix = sparse.csc_matrix((group["data"][:], group["indices"][:], group["indptr"][:]), shape=shape)
    except BadInput:
        raise
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise BadInput(path, H5, f"the file is truncated, damaged or of another kind ({_short(error)})") from error
    return _matrix(path, H5, barcodes, names, types, matrix)


def _read_folder(path: Path) -> TenxMatrix:
    from scipy.io import mmread

    barcodes_path = _one_of(path, "barcodes.tsv")
    features_path = _one_of(path, "features.tsv", "genes.tsv")
    matrix_path = _one_of(path, "matrix.mtx")
    barcodes = _lines(barcodes_path)
    features = [line.split("\t") for line in _lines(features_path)]
    names = [cells[1] if len(cells) > 1 else cells[0] for cells in features]
    types = [cells[2] if len(cells) > 2 else GENES for cells in features]
    try:
        if matrix_path.suffix == ".gz":
            with gzip.open(matrix_path, "rb") as file:
                matrix = mmread(file)
        else:
            matrix = mmread(matrix_path)
    except (OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        raise BadInput(matrix_path, FOLDER, f"the file is truncated or damaged ({_short(error)})") from error
    return _matrix(path, FOLDER, barcodes, names, types, sparse.csc_matrix(matrix))


def _matrix(
    path: Path, what: str, barcodes: list[str], names: list[str], types: list[str], matrix: sparse.csc_matrix
) -> TenxMatrix:
    """Features x barcodes as stored, turned; genes only."""
    if matrix.shape != (len(names), len(barcodes)) or len(types) != len(names):
        raise BadInput(
            path, what, f"{len(names)} features and {len(barcodes)} barcodes do not fit {matrix.shape} counts"
        )
    genes = np.flatnonzero([kind == GENES for kind in types])
    notes: tuple[str, ...] = ()
    if len(genes) < len(names):
        others = ", ".join(sorted(set(types) - {GENES}))
        notes = (f"{len(names) - len(genes)} features are of another kind ({others}): left out.",)
    counts = sparse.csr_matrix(matrix.T)[:, genes]
    return TenxMatrix(tuple(barcodes), tuple(names[i] for i in genes), counts, notes)


def _one_of(folder: Path, *names: str) -> Path:
    for name in names:
        for path in (folder / f"{name}.gz", folder / name):
            if path.is_file():
                return path
    raise MissingInput(
        folder / names[0], "The file", "a 10x matrix folder holds matrix.mtx, barcodes.tsv, features.tsv"
    )


def _lines(path: Path) -> list[str]:
    try:
        text = read_bytes(path, FOLDER).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(path, FOLDER, "it is no UTF-8 text") from error
    return [line.rstrip("\r") for line in text.split("\n") if line.strip()]


def _texts(dataset) -> list[str]:
    return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in dataset[:]]


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__
