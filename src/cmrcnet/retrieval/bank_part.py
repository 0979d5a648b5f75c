"""One section of a bank: what was measured there, where, and what the model makes of it. Written once, never changed.

Its folder: ``vectors.npy``, the expression gene by gene (CSC: ``expression_data.npy``, ``expression_rows.npy``,
``expression_ends.npy``), ``gene_checks.npy`` (a CRC-32 a gene, so that damage is noticed where it is read and the rest
need not be read for it), ``genes.json`` and ``spots.csv.gz``; from a model that works on expression components also
``scores.npy`` and the sums that turn scores into genes (``gram.npy``, ``products.npy``, ``sums.npy``,
``squares.npy``). The arrays are memory-mapped.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from cmrcnet.errors import Damaged, ShapeMismatch
from cmrcnet.heads.gene_decoder import SectionStatistics
from cmrcnet.search.stacked_columns import csc_of
from cmrcnet.storage.arrays import open_array, write_array
from cmrcnet.storage.hashing import fingerprint_stream

if TYPE_CHECKING:
    import pandas as pd

LOCATION_COLUMNS = ("barcode", "x", "y")
_MOMENTS = ("gram", "products", "sums", "squares")
_AT_ONCE = 2**22
"""Numbers that are written at once."""


@dataclass(frozen=True, eq=False)
class BankPart:
    """One section's measured spots.

    Parameters
    ----------
    section, patient : str
    spots : pandas.DataFrame
        Columns barcode, x, y (level-0 px of the section's slide).
    vectors : numpy.ndarray, shape (spots, dim), float32
        Gene embeddings, unit length.
    expression : scipy.sparse.csc_matrix, shape (spots, genes), float32
        Log-normalised, of the section's own genes; rows rising within a gene.
    genes : tuple of str
    measures_all : bool
        Whether a gene that is not listed was looked for and not found (0), or not looked for.
    scores : numpy.ndarray, shape (spots, rank), float32, or None
        Expression scores, from a model that works on components.
    moments : SectionStatistics or None
        Together with `scores`.
    gene_checks : numpy.ndarray, shape (genes,), uint32, or None
        CRC-32 of each gene's values and rows; None for a part that was never on disk.
    source : str
        The cohort file that it was read from, "" where that is not known. No part of the fingerprint.
    """

    section: str
    patient: str
    spots: pd.DataFrame
    vectors: np.ndarray
    expression: sparse.csc_matrix
    genes: tuple[str, ...]
    measures_all: bool
    scores: np.ndarray | None = None
    moments: SectionStatistics | None = None
    gene_checks: np.ndarray | None = None
    source: str = ""
    hint: str = field(default="", repr=False)
    where: str = field(default="the bank", repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "genes", tuple(self.genes))
        for what, want, got in (
            ("vectors", (len(self.spots), "dim"), self.vectors.shape),
            ("expression", (len(self.spots), len(self.genes)), self.expression.shape),
        ):
            if len(got) != 2 or any(isinstance(w, int) and w != g for w, g in zip(want, got, strict=True)):
                raise ShapeMismatch(f"{what} of section {self.section}", want=want, got=got)

    def __len__(self) -> int:
        return len(self.spots)

    @property
    def widths(self) -> tuple[int, int | None]:
        """Dim of the vectors and rank of the scores (None without scores): alike in all parts of a bank."""
        return self.vectors.shape[1], None if self.scores is None else self.scores.shape[1]

    @cached_property
    def fingerprint(self) -> str:
        """Name of the content."""
        matrix = self.expression
        arrays = [self.vectors, matrix.data, matrix.indices.astype(np.int32), matrix.indptr.astype(np.int64)]
        arrays += [] if self.scores is None else [self.scores]
        names = [self.section, self.patient, list(self.genes), self.measures_all]
        return fingerprint_stream([names, *(np.asarray(self.spots[c], str) for c in LOCATION_COLUMNS), *arrays])

    def require_genes(self, first: int, last: int) -> None:
        """Refuse damage in the expression of genes `first` to `last` (not included): `Damaged`.

        Each is looked at once in the life of this object.
        """
        if self.gene_checks is None or self._seen_whole[first:last].all():
            return
        for gene in np.flatnonzero(~self._seen_whole[first:last]) + first:
            if _crc_of_gene(self.expression, gene) != self.gene_checks[gene]:
                why = f"the expression of gene {self.genes[gene]} in section {self.section} is corrupt"
                raise Damaged(self.where, why, self.hint)
            self._seen_whole[gene] = True

    @cached_property
    def _seen_whole(self) -> np.ndarray:
        return np.zeros(len(self.genes), bool)

    def facts(self) -> dict[str, Any]:
        """What the bank's manifest says of it."""
        return {
            "section": self.section,
            "patient": self.patient,
            "spots": len(self),
            "genes": len(self.genes),
            "stored": int(self.expression.indptr[-1]),
            "measures_all": self.measures_all,
            "name": self.fingerprint,
            "source": self.source,
        }

    def write(self, folder: Path) -> dict[str, Any]:
        """Write it into a folder of its own.

        Parameters
        ----------
        folder : Path

        Returns
        -------
        dict
            What the manifest must say of it: `facts`, and the sums of the small files.

        Raises
        ------
        NoSpace, Unwritable
        Damaged
            What is copied is corrupt.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.require_genes(0, len(self.genes))
        matrix = self.expression
        _write(folder / "vectors.npy", self.vectors)
        _write(folder / "expression_data.npy", matrix.data)
        _write(folder / "expression_rows.npy", matrix.indices.astype(np.int32, copy=False))
        _write(folder / "expression_ends.npy", matrix.indptr.astype(np.int64, copy=False))
        checks = np.array([_crc_of_gene(matrix, gene) for gene in range(len(self.genes))], np.uint32)
        _write(folder / "gene_checks.npy", checks if self.gene_checks is None else self.gene_checks)
        if self.scores is not None and self.moments is not None:
            _write(folder / "scores.npy", self.scores)
            for what in _MOMENTS:
                _write(folder / f"{what}.npy", getattr(self.moments, what))
        (folder / "genes.json").write_text(json.dumps(self.genes), encoding="utf-8")
        table = folder / "spots.csv.gz"
        self.spots[list(LOCATION_COLUMNS)].to_csv(table, index=False, compression={"method": "gzip", "mtime": 0})
        return self.facts() | {"sha256": {name: _sha256(folder / name) for name in ("genes.json", "spots.csv.gz")}}

    @classmethod
    def open(
        cls, folder: Path, facts: dict[str, Any], dim: int, rank: int | None, genes: dict[str, tuple[str, ...]]
    ) -> BankPart:
        """Open a part; all but the expression is read once to see that it is whole.

        Parameters
        ----------
        folder : Path
            The bank's folder / parts / the part's name.
        facts : dict
            What the manifest says of it.
        dim : int
        rank : int or None
        genes : dict
            Lists of genes that other parts brought, by checksum; added to. Sections of one assay share a list.

        Raises
        ------
        Damaged
            A file is missing, cut short or changed.
        """
        bank = folder.parents[1]
        section, n, g, stored = facts["section"], facts["spots"], facts["genes"], facts["stored"]
        hint = (
            f"take the section out (cmrcnet bank drop {bank} {section!r}) and add it again "
            f"(cmrcnet bank add {bank} MODEL COHORT.csv), or build the bank again: "
            f"cmrcnet index MODEL COHORT.csv --out BANK"
        )

        def array(name: str, shape: tuple[int, ...], dtype: type, check: bool = True) -> np.ndarray:
            found = open_array(folder / name, shape, np.dtype(dtype), check=check)
            if found is None:
                there = (folder / name).exists()
                why = "is cut short, changed or of another shape" if there else "is missing"
                raise Damaged(bank, f"{name} of section {section} {why}", hint)
            return found

        def small(name: str) -> Path:
            path = folder / name
            if not path.is_file():
                raise Damaged(bank, f"{name} of section {section} is missing", hint)
            if _sha256(path) != facts["sha256"][name]:
                raise Damaged(bank, f"{name} of section {section} is cut short or changed", hint)
            return path

        path, key = small("genes.json"), facts["sha256"]["genes.json"]
        if key not in genes:
            genes[key] = tuple(json.loads(path.read_text(encoding="utf-8")))
        ends = np.array(array("expression_ends.npy", (g + 1,), np.int64))
        data = array("expression_data.npy", (stored,), np.float32, check=False)
        rows = array("expression_rows.npy", (stored,), np.int32, check=False)
        moments = None
        if rank is not None:
            shapes = {"gram": (rank, rank), "products": (rank, g), "sums": (g,), "squares": (g,)}
            moments = SectionStatistics(n, **{w: array(f"{w}.npy", shapes[w], np.float64) for w in _MOMENTS})
        part = cls(
            section=section,
            patient=facts["patient"],
            spots=_read_places(small("spots.csv.gz")),
            vectors=array("vectors.npy", (n, dim), np.float32),
            expression=csc_of(data, rows, ends, (n, g)),
            genes=genes[key],
            measures_all=facts["measures_all"],
            scores=None if rank is None else array("scores.npy", (n, rank), np.float32),
            moments=moments,
            gene_checks=array("gene_checks.npy", (g,), np.uint32),
            source=facts.get("source", ""),
            hint=hint,
            where=str(bank),
        )
        part.__dict__["fingerprint"] = facts["name"]  # fills the cached property
        return part


def _crc_of_gene(matrix: sparse.csc_matrix, gene: int) -> int:
    entries = slice(int(matrix.indptr[gene]), int(matrix.indptr[gene + 1]))
    rows = np.ascontiguousarray(matrix.indices[entries], np.int32)
    return zlib.crc32(rows.view(np.uint8), zlib.crc32(np.ascontiguousarray(matrix.data[entries]).view(np.uint8)))


def _write(path: Path, values: np.ndarray) -> None:
    step = max(1, _AT_ONCE // max(1, values[:1].size))
    blocks = (values[start : start + step] for start in range(0, len(values), step))
    write_array(path, values.shape, values.dtype, blocks)


def _read_places(path: Path) -> pd.DataFrame:
    import pandas as pd

    return pd.read_csv(path, dtype={"barcode": str}, keep_default_na=False, float_precision="round_trip")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
