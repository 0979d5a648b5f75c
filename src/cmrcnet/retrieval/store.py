"""Bank folder on disk: the manifest ``bank.json``, and one folder of arrays per section, memory-mapped.

The file is one thing: what is written here is read and checked here. The manifest lists the sections of a bank and its
search index; it is replaced whole, in one step. All other files never change once they have their names, so a reader of
a manifest sees one state of the bank, whatever is added or dropped meanwhile.

A section's folder holds ``vectors.npy``, the expression gene by gene (CSC: ``expression_data.npy``,
``expression_rows.npy``, ``expression_ends.npy``), ``gene_checks.npy`` (one CRC-32 per gene, so that damage is found
where data is used, without reading the rest), ``genes.json`` and ``spots.csv.gz``; for a model that works on expression
components also ``scores.npy`` and the sufficient statistics of the gene decoder (``gram.npy``, ``products.npy``,
``sums.npy``, ``squares.npy``).
"""

from __future__ import annotations

import json
import tempfile
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from cmrcnet.errors import Damaged, Incompatible, MissingInput, ShapeMismatch
from cmrcnet.genes.scaling import Scaling
from cmrcnet.heads.gene_decoder import SectionStatistics
from cmrcnet.search.stacked_arrays import csc_of
from cmrcnet.storage.arrays import open_array, sparse_fault, write_array
from cmrcnet.storage.hashing import file_checksum, fingerprint, fingerprint_stream, read_sealed, write_sealed
from cmrcnet.storage.ownership import mark_folder, recover, temporary_folder

if TYPE_CHECKING:
    import pandas as pd

    from cmrcnet.storage.cache import TokenCache

FORMAT = 6
MANIFEST = "bank.json"
SECTIONS, INDEX = "sections", "index"
SPOT_COLUMNS = ("barcode", "x", "y")
_STATISTICS = ("gram", "products", "sums", "squares")
_BY_GENE = ("expression_data.npy", "expression_rows.npy")
"""Files that are checked gene by gene, by the checksums in ``gene_checks.npy``."""
_VALUES_AT_ONCE = 2**22
_HINT = "build it again: cmrcnet index MODEL COHORT.csv --out BANK"


@dataclass(frozen=True)
class Manifest:
    """What a bank holds.

    Parameters
    ----------
    model : str
        Fingerprint of the model that made it.
    scaling : Scaling
        How measured values became expression.
    dim : int
        Of the vectors.
    rank : int or None
        Of the expression scores.
    sections : tuple of dict
        `BankSection.record` of each section and checksums of its small files, in order.
    index : dict or None
        Record of the stored search index; None: exact search.
    """

    model: str
    scaling: Scaling
    dim: int
    rank: int | None
    sections: tuple[dict[str, Any], ...]
    index: dict[str, Any] | None = None

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the bank's content; the search index is no part of it."""
        return bank_fingerprint(self.model, self.scaling, [record["name"] for record in self.sections])

    @property
    def spots(self) -> int:
        """Spots of all sections."""
        return sum(record["spots"] for record in self.sections)

    def search_text(self) -> str:
        """Describe in words how the bank is searched."""
        if self.index is None:
            return "searched exactly"
        recall = ", ".join(f"{value:.3f} of the {k} nearest" for k, value in self.index["recall"].items())
        with_ = self.index["measured_with"]
        return (
            f"searched by {self.index['kind']}, which found {recall} spots ({with_['queries']} held-out queries among "
            f"{with_['spots']:,} spots, {self.index['changed']:,} of them added or dropped since)"
        )

    def write(self, folder: Path) -> None:
        """Replace the manifest of a bank folder in one step.

        Parameters
        ----------
        folder : Path
            The bank's.

        Raises
        ------
        NoSpace, Unwritable
        """
        content = {
            "format": FORMAT,
            "model": self.model,
            "scaling": self.scaling.to_dict(),
            "dim": self.dim,
            "rank": self.rank,
            "spots": self.spots,
            "sections": list(self.sections),
            "index": self.index,
            "fingerprint": self.fingerprint,
        }
        write_sealed(folder / MANIFEST, content)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check the manifest of a bank folder.

        Parameters
        ----------
        folder : Path
            The bank's.

        Raises
        ------
        MissingInput
        Damaged
            It is missing or changed.
        Incompatible
            Its format is another one.
        """
        path = folder / MANIFEST
        recover(folder)
        if not folder.is_dir():
            raise MissingInput(folder, "The bank", "build one: cmrcnet index MODEL COHORT.csv --out BANK")
        if not path.is_file():
            raise Damaged(folder, f"{MANIFEST} is missing", _HINT)
        try:
            content, intact = read_sealed(path)
        except ValueError as error:
            raise Damaged(folder, f"{MANIFEST} is cut short or changed", _HINT) from error
        if content.get("format") != FORMAT:
            raise Incompatible.format(folder, content.get("format"), FORMAT, _HINT)
        if not intact:
            raise Damaged(folder, f"{MANIFEST} was changed", _HINT)
        wanted = ("model", "dim", "rank", "index")
        scaling = Scaling.from_dict(content["scaling"])
        return cls(sections=tuple(content["sections"]), scaling=scaling, **{key: content[key] for key in wanted})


def bank_fingerprint(model: str, scaling: Scaling, sections: list[str]) -> str:
    """Fingerprint of a bank's content.

    Parameters
    ----------
    model : str
        Fingerprint of the model.
    scaling : Scaling
        How measured values became expression.
    sections : list of str
        Fingerprint of each section, in order.
    """
    return fingerprint({"format": FORMAT, "model": model, "scaling": scaling.to_dict(), "sections": sections})


@dataclass(frozen=True, eq=False)
class BankSection:
    """The measured spots of one section, and the vectors that the model makes of them. Written once, never changed.

    Parameters
    ----------
    spots : pandas.DataFrame
        Columns barcode, x, y (level-0 px of the section's slide).
    vectors : numpy.ndarray, shape (spots, dim), float32
        Gene embeddings, unit length.
    expression : scipy.sparse.csc_matrix, shape (spots, genes), float32
        Log-normalised, of the section's own genes; rows rising within a gene.
    measures_all : bool
        Whether a gene that is not listed counts as measured and absent (0), or as not measured.
    scores : numpy.ndarray, shape (spots, rank), float32, or None
        Expression scores, for a model that works on components.
    statistics : SectionStatistics or None
        For the gene decoder; together with `scores`.
    gene_checks : numpy.ndarray, shape (genes,), uint32, or None
        CRC-32 of each gene's values and rows; None for a section that was never on disk.
    source : str
        The cohort file that it was read from, "" where unknown. Not part of the fingerprint.
    licence : str
        Of its slide, as the cohort file states it, "" where it does not. Not part of the fingerprint.
    patients_within : tuple of str
        See `Section`. Not part of the fingerprint.
    """

    section: str
    patient: str
    spots: pd.DataFrame
    vectors: np.ndarray
    expression: sparse.csc_matrix
    genes: tuple[str, ...]
    measures_all: bool
    scores: np.ndarray | None = None
    statistics: SectionStatistics | None = None
    gene_checks: np.ndarray | None = None
    source: str = ""
    licence: str = ""
    patients_within: tuple[str, ...] = ()
    hint: str = field(default="", repr=False)
    where: str = field(default="the bank", repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "genes", tuple(self.genes))
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.spots):
            raise ShapeMismatch(f"vectors of section {self.section}", (len(self.spots), "dim"), self.vectors.shape)
        wanted = (len(self.spots), len(self.genes))
        if self.expression.shape != wanted:
            raise ShapeMismatch(f"expression of section {self.section}", wanted, self.expression.shape)

    def __len__(self) -> int:
        return len(self.spots)

    @property
    def widths(self) -> tuple[int, int | None]:
        """Dim of the vectors and rank of the scores (None without scores): the same in all sections of a bank."""
        return self.vectors.shape[1], None if self.scores is None else self.scores.shape[1]

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the content."""
        matrix = self.expression
        arrays = [self.vectors, matrix.data, matrix.indices.astype(np.int32), matrix.indptr.astype(np.int64)]
        arrays += [] if self.scores is None else [self.scores]
        names = [self.section, self.patient, list(self.genes), self.measures_all]
        return fingerprint_stream([names, *(np.asarray(self.spots[c], str) for c in SPOT_COLUMNS), *arrays])

    @cached_property
    def _checked(self) -> np.ndarray:
        return np.zeros(len(self.genes), bool)

    def require_genes(self, first: int, last: int) -> None:
        """Check the stored expression of genes `first` to `last` (exclusive), each once: `Damaged`."""
        if self.gene_checks is None or self._checked[first:last].all():
            return
        matrix, ends = self.expression, self.expression.indptr[first : last + 1]
        wrong = np.flatnonzero(_crcs_of_genes(matrix, first, last) != self.gene_checks[first:last])
        if len(wrong):
            why = f"the expression of gene {self.genes[first + wrong[0]]} in section {self.section} is corrupt"
            raise Damaged(self.where, why, self.hint)
        entries, shape = slice(int(ends[0]), int(ends[-1])), (len(self.spots), last - first)
        if why := sparse_fault(matrix.data[entries], matrix.indices[entries], ends - ends[0], shape, by_row=False):
            names = f"{self.genes[first]} to {self.genes[last - 1]}"
            raise Damaged(self.where, f"genes {names} of section {self.section}: {why}", self.hint)
        self._checked[first:last] = True

    def write(self, folder: Path) -> dict[str, Any]:
        """Write it into a folder of its own.

        Parameters
        ----------
        folder : Path
            Made when it is not there.

        Returns
        -------
        dict
            Its record for the manifest: names, sizes, and checksums of the small files.

        Raises
        ------
        NoSpace, Unwritable
        Damaged
            What is copied is corrupt.
        """

        def write(name: str, values: np.ndarray) -> None:
            step = max(1, _VALUES_AT_ONCE // max(1, values[:1].size))
            blocks = (values[start : start + step] for start in range(0, len(values), step))
            write_array(folder / f"{name}.npy", values.shape, values.dtype, blocks)

        folder.mkdir(parents=True, exist_ok=True)
        self.require_genes(0, len(self.genes))
        matrix, checks = self.expression, self.gene_checks
        if checks is None:
            checks = _crcs_of_genes(matrix, 0, len(self.genes))
        write("vectors", self.vectors)
        write("expression_data", matrix.data)
        write("expression_rows", matrix.indices.astype(np.int32, copy=False))
        write("expression_ends", matrix.indptr.astype(np.int64, copy=False))
        write("gene_checks", checks)
        if self.scores is not None and self.statistics is not None:
            write("scores", self.scores)
            for name in _STATISTICS:
                write(name, getattr(self.statistics, name))
        (folder / "genes.json").write_text(json.dumps(self.genes), encoding="utf-8")
        table = folder / "spots.csv.gz"
        self.spots[list(SPOT_COLUMNS)].to_csv(table, index=False, compression={"method": "gzip", "mtime": 0})
        mark_folder(folder)
        files = sorted(folder.glob("[!.]*"))
        return {
            "section": self.section,
            "patient": self.patient,
            "spots": len(self),
            "genes": len(self.genes),
            "stored": int(matrix.indptr[-1]),
            "measures_all": self.measures_all,
            "name": self.fingerprint,
            "source": self.source,
            "licence": self.licence,
            "patients_within": list(self.patients_within),
            "sha256": {file.name: file_checksum(file) for file in files if file.name not in _BY_GENE},
        }

    @classmethod
    def open(
        cls, folder: Path, record: dict[str, Any], dim: int, rank: int | None, genes: dict[str, tuple[str, ...]]
    ) -> BankSection:
        """Open a section; all but the expression is read once and checked.

        Parameters
        ----------
        folder : Path
            The bank's folder / sections / the section's fingerprint.
        record : dict
            From the manifest.
        dim : int
            Of the vectors.
        rank : int or None
            Of the scores.
        genes : dict
            Gene lists of sections opened before, by checksum; added to. Sections of one assay share a list.

        Raises
        ------
        Damaged
            A file is missing, cut short or changed.
        """
        import pandas as pd

        bank = folder.parents[1]
        section, n, g, stored = record["section"], record["spots"], record["genes"], record["stored"]
        hint = (
            f"take the section out (cmrcnet bank drop {bank} {section!r}) and add it again "
            f"(cmrcnet bank add {bank} MODEL COHORT.csv), or build the bank again: "
            f"cmrcnet index MODEL COHORT.csv --out BANK"
        )

        def array(name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
            found = open_array(folder / f"{name}.npy", shape, np.dtype(dtype), check=False)  # see sha256 below
            if found is None:
                there = (folder / f"{name}.npy").exists()
                why = "is cut short, changed or of another section" if there else "is missing"
                raise Damaged(bank, f"{name}.npy of section {section} {why}", hint)
            return found

        for name, wanted in record["sha256"].items():
            if not (folder / name).is_file():
                raise Damaged(bank, f"{name} of section {section} is missing", hint)
            if file_checksum(folder / name) != wanted:
                raise Damaged(bank, f"{name} of section {section} is cut short, changed or of another section", hint)
        key = record["sha256"]["genes.json"]
        if key not in genes:
            genes[key] = tuple(json.loads((folder / "genes.json").read_text(encoding="utf-8")))
        ends = np.array(array("expression_ends", (g + 1,), np.int64))
        if ends[0] != 0 or ends[-1] != stored or (np.diff(ends) < 0).any():
            raise Damaged(bank, f"expression_ends.npy of section {section} does not ascend to {stored}", hint)
        data = array("expression_data", (stored,), np.float32)
        rows = array("expression_rows", (stored,), np.int32)
        scores = statistics = None
        if rank is not None:
            shapes = {"gram": (rank, rank), "products": (rank, g), "sums": (g,), "squares": (g,)}
            statistics = SectionStatistics(n, **{name: array(name, shapes[name], np.float64) for name in _STATISTICS})
            scores = array("scores", (n, rank), np.float32)
        text = {"dtype": {"barcode": str}, "keep_default_na": False, "float_precision": "round_trip"}
        opened = cls(
            section=section,
            patient=record["patient"],
            spots=pd.read_csv(folder / "spots.csv.gz", **text),
            vectors=array("vectors", (n, dim), np.float32),
            expression=csc_of(data, rows, ends, (n, g)),
            genes=genes[key],
            measures_all=record["measures_all"],
            scores=scores,
            statistics=statistics,
            gene_checks=array("gene_checks", (g,), np.uint32),
            source=record["source"],
            licence=record["licence"],
            patients_within=tuple(record.get("patients_within", ())),
            hint=hint,
            where=str(bank),
        )
        opened.__dict__["fingerprint"] = record["name"]  # fills the cached property
        return opened


def _crcs_of_genes(matrix: sparse.csc_matrix, first: int, last: int) -> np.ndarray:
    """CRC-32 of the values and then the rows of each gene from `first` to `last` (exclusive): (genes,) uint32."""
    ends = matrix.indptr[first : last + 1]
    entries = slice(int(ends[0]), int(ends[-1]))
    # slices of bytes: those of mapped arrays take longer than the checksum of a gene
    values = np.ascontiguousarray(matrix.data[entries]).view(np.uint8).data
    rows = np.ascontiguousarray(matrix.indices[entries], np.int32).view(np.uint8).data
    each, crc = matrix.data.itemsize, zlib.crc32
    ends = (ends - ends[0]).tolist()
    sums = [crc(rows[4 * a : 4 * b], crc(values[each * a : each * b])) for a, b in pairwise(ends)]
    return np.array(sums, np.uint32)


def temporary_store(cache: TokenCache | None) -> tempfile.TemporaryDirectory:
    """Make a temporary folder for the sections of a bank, which is removed with the returned object.

    Parameters
    ----------
    cache : TokenCache or None
        The folder is made within it; in the system's temporary folder where there is none, or it cannot be written.
    """
    if cache is not None:
        with suppress(OSError):
            return temporary_folder(cache.folder, "bank-in-use")
    return temporary_folder(None, "bank-in-use")
