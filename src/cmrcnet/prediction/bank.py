"""The reference bank: every measured spot's embedding, its FULL expression, and where it came from.

Folder format 1: ``bank.json`` (genes, sections, patients, the model's fingerprint), ``vectors.npy``, the expression
gene by gene (CSC: ``expression_data.npy``, ``expression_indices.npy``, ``expression_indptr.npy``), ``measured.npy``
and ``spots.csv.gz``. The arrays are memory-mapped. Expression lies gene by gene because that is how it is read: all
spots of a few genes at a time; choosing 50 genes reads the bytes of 50 genes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from cmrcnet.atomic import atomic_file, atomic_folder
from cmrcnet.encoding.stored_array import open_array, write_array
from cmrcnet.errors import DamagedArtefact, ForeignBank, NoSuchFile, ShapeMismatch, TooFew, UnknownName
from cmrcnet.expression.gene_naming import explain_no_shared_genes
from cmrcnet.expression.normalize import check_counts, normalize
from cmrcnet.fingerprint import fingerprint, fingerprint_stream
from cmrcnet.progress import tracked
from cmrcnet.tissue.section import Cohort, Section

if TYPE_CHECKING:
    import pandas as pd

    from cmrcnet.encoding.token_cache import TokenCache
    from cmrcnet.model.trained_model import TrainedModel

FORMAT = 1
SPOT_COLUMNS = ("section", "patient", "barcode", "x", "y")
_REMEDY = "build it again: cmrcnet index MODEL COHORT.csv --out BANK"
_AT_ONCE = 2**22
"""Numbers that are written, or turned from spot by spot to gene by gene, at once."""


@dataclass(frozen=True, eq=False)
class ReferenceBank:
    """Measured spots that predictions are averaged from.

    Parameters
    ----------
    vectors : numpy.ndarray, shape (spots, dim), float32
        Gene embeddings, unit length.
    expression : scipy.sparse.csc_matrix, shape (spots, genes), float32
        Log-normalised, of every gene that any section lists.
    genes : tuple of str
        In the order in which the sections name them, first section first.
    spots : pandas.DataFrame
        Columns section, patient, barcode, x, y (level-0 px of that section's slide); a section's spots lie together.
    measured : numpy.ndarray, shape (sections, genes), bool
        Which section measured which gene; sections as in `sections`.
    model_fingerprint : str
        The model that made the vectors.
    target_sum : float or "median"
        Library size before log1p.
    name : str
        For sentences: the folder, once there is one.
    """

    vectors: np.ndarray
    expression: sparse.csc_matrix
    genes: tuple[str, ...]
    spots: pd.DataFrame
    measured: np.ndarray
    model_fingerprint: str
    target_sum: float | Literal["median"] = 10_000.0
    name: str = "bank"
    _shelf: tempfile.TemporaryDirectory | None = field(default=None, repr=False)  # goes when the bank goes

    def __post_init__(self) -> None:
        object.__setattr__(self, "genes", tuple(self.genes))
        shape = (len(self.spots), len(self.genes))
        for what, want, got in (
            ("vectors", (len(self.spots), "dim"), self.vectors.shape),
            ("expression", shape, self.expression.shape),
            ("measured", (len(self.sections), len(self.genes)), self.measured.shape),
        ):
            if len(got) != 2 or any(isinstance(w, int) and w != g for w, g in zip(want, got, strict=True)):
                raise ShapeMismatch(f"{what} of the bank", want=want, got=got)

    def __len__(self) -> int:
        return len(self.spots)

    @cached_property
    def sections(self) -> tuple[str, ...]:
        """Names of the sections, in order."""
        return tuple(dict.fromkeys(self.spots["section"]))

    @cached_property
    def patients(self) -> tuple[str, ...]:
        """The different patients, in order of first appearance."""
        return tuple(dict.fromkeys(self.spots["patient"]))

    @cached_property
    def section_of_spot(self) -> np.ndarray:
        """Row of `measured` that belongs to each spot: (spots,) int64."""
        row = {section: number for number, section in enumerate(self.sections)}
        return self.spots["section"].map(row).to_numpy(np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """Name of the content."""
        arrays = (self.vectors, self.expression.data, self.expression.indices, self.expression.indptr, self.measured)
        return fingerprint_stream([self._facts(), *(np.asarray(self.spots[c], str) for c in SPOT_COLUMNS), *arrays])

    def columns_of(self, genes: list[str] | tuple[str, ...] | None) -> np.ndarray:
        """Columns of `genes`, in that order; of all genes for None.

        Parameters
        ----------
        genes : sequence of str or None

        Raises
        ------
        TooFew
            An empty list.
        UnknownName
            A gene that no section of the bank lists.
        """
        if genes is None:
            return np.arange(len(self.genes))
        if isinstance(genes, str):
            genes = [genes]
        if len(genes) == 0:
            raise TooFew("genes to predict", 0, 1, "name some, or leave them out for all that the bank measured")
        unknown = [gene for gene in genes if gene not in self._column]
        if unknown:
            hint = explain_no_shared_genes(list(genes), self.genes) if len(unknown) == len(genes) else ""
            raise UnknownName("gene in the bank", unknown[0], _alike(unknown[0], self.genes), hint)
        return np.array([self._column[gene] for gene in dict.fromkeys(genes)])

    @cached_property
    def _column(self) -> dict[str, int]:
        return {gene: column for column, gene in enumerate(self.genes)}

    def require_model(self, model: TrainedModel) -> None:
        """Refuse a model that did not make this bank: `ForeignBank`."""
        if model.fingerprint != self.model_fingerprint:
            raise ForeignBank(self.name, self.model_fingerprint, model.fingerprint)

    def _facts(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "model": self.model_fingerprint,
            "target_sum": self.target_sum,
            "spots": len(self),
            "dim": int(self.vectors.shape[1]),
            "sections": list(self.sections),
            "patients": list(self.patients),
            "genes": list(self.genes),
        }

    def save(self, folder: Path, overwrite: bool = False) -> None:
        """Write the bank folder, whole or not at all.

        Parameters
        ----------
        folder : Path
        overwrite : bool
            Replace a bank that is there.

        Raises
        ------
        OutputExists, Unwritable, DiskFull
        """
        with atomic_folder(Path(folder), overwrite) as draft:
            _write(draft / "vectors.npy", self.vectors)
            _write(draft / "expression_data.npy", self.expression.data)
            _write(draft / "expression_indices.npy", self.expression.indices.astype(np.int32, copy=False))
            _write(draft / "expression_indptr.npy", self.expression.indptr.astype(np.int64, copy=False))
            _write(draft / "measured.npy", self.measured)
            table = draft / "spots.csv.gz"
            self.spots[list(SPOT_COLUMNS)].to_csv(table, index=False, compression={"method": "gzip", "mtime": 0})
            facts = {**self._facts(), "fingerprint": self.fingerprint, "spots_sha256": _sha256(table)}
            facts["check"] = fingerprint(facts)
            (draft / "bank.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> ReferenceBank:
        """Open a bank folder; its arrays are memory-mapped, after each was read once to see that it is whole.

        Parameters
        ----------
        folder : Path

        Raises
        ------
        NoSuchFile
        DamagedArtefact
            A file is missing, cut short or changed, or of another format.
        """
        folder = Path(folder)
        facts = _facts_of(folder)
        n, g = facts["spots"], len(facts["genes"])
        indptr = np.array(_open(folder, "expression_indptr.npy", (g + 1,), np.int64))
        stored = int(indptr[-1])
        data = _open(folder, "expression_data.npy", (stored,), np.float32)
        indices = _open(folder, "expression_indices.npy", (stored,), np.int32)
        bank = cls(
            vectors=_open(folder, "vectors.npy", (n, facts["dim"]), np.float32),
            expression=_csc(data, indices, indptr, (n, g)),
            genes=tuple(facts["genes"]),
            spots=_spots_of(folder, facts),
            measured=_open(folder, "measured.npy", (len(facts["sections"]), g), np.bool_),
            model_fingerprint=facts["model"],
            target_sum=facts["target_sum"],
            name=str(folder),
        )
        bank.__dict__["fingerprint"] = facts["fingerprint"]  # fills the cached property
        return bank


def build_bank(model: TrainedModel, cohort: Cohort, *, cache: TokenCache | None = None) -> ReferenceBank:
    """Embed the measured expression of every spot, and keep all of it.

    One section is in memory at a time. What is finished lies in a temporary folder, which goes with the bank.

    Parameters
    ----------
    model : TrainedModel
    cohort : Cohort
        Usually the sections of training.
    cache : TokenCache, optional
        Its folder holds the temporary folder; by default the system's own, which may be small. Nothing is encoded.

    Returns
    -------
    ReferenceBank

    Raises
    ------
    GenesMissing
        A section that does not measure the model's panel.
    BadCounts, TooFew, DiskFull
    """
    import pandas as pd

    if len(cohort) == 0:
        raise TooFew("sections for the bank", 0, 1, "name at least one section with measured spots")
    shelf = _temporary_folder(None if cache is None else cache.folder)
    spool = _Spool(shelf.name)
    for section in tracked(cohort, "index", unit="sections"):
        check_counts(section.counts, section.name)
        spool.add(section, model)
    return ReferenceBank(
        vectors=spool.vectors(),
        expression=spool.expression(),
        genes=tuple(spool.genes),
        spots=pd.concat(spool.tables, ignore_index=True),
        measured=spool.measured(),
        model_fingerprint=model.fingerprint,
        target_sum=model.panel.target_sum,
        _shelf=shelf,
    )


class _Spool:
    """Sections on disk, one after another, and their parts put together."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.genes: dict[str, int] = {}  # gene -> column, in order of first appearance
        self.tables: list[pd.DataFrame] = []
        self._parts: list[tuple[np.ndarray, sparse.csc_matrix]] = []
        self._lists: list[tuple[str, ...] | None] = []  # None: the section measured everything

    def add(self, section: Section, model: TrainedModel) -> None:
        import pandas as pd

        for gene in section.genes:
            self.genes.setdefault(gene, len(self.genes))
        values = normalize(section.counts, model.panel.target_sum).tocoo()
        columns = np.array([self.genes[gene] for gene in section.genes])[values.col]
        part = sparse.csc_matrix((values.data, (values.row, columns)), shape=(len(section.spots), len(self.genes)))
        part.sort_indices()
        number = len(self._parts)
        vectors = self._write(f"vectors_{number}", model.embed_expression(model.panel.select(section)))
        data, indices = self._write(f"data_{number}", part.data), self._write(f"indices_{number}", part.indices)
        self._parts.append((vectors, _csc(data, indices, part.indptr, part.shape)))
        self._lists.append(None if section.absent_genes == "zero" else section.genes)
        x, y = section.spots.centre_px.T
        named = {"section": section.name, "patient": section.patient, "barcode": list(section.spots.barcodes)}
        self.tables.append(pd.DataFrame({**named, "x": x, "y": y}, columns=list(SPOT_COLUMNS)))

    def vectors(self) -> np.ndarray:
        parts = [vectors for vectors, _ in self._parts]
        shape = (sum(map(len, parts)), parts[0].shape[1])
        return write_array(self.folder / "vectors.npy", shape, np.float32, parts)

    def expression(self) -> sparse.csc_matrix:
        counts = np.zeros(len(self.genes), np.int64)
        for _, part in self._parts:
            counts[: part.shape[1]] += np.diff(part.indptr)
        indptr = np.concatenate([[0], np.cumsum(counts)])
        shape = (int(indptr[-1]),)
        data = write_array(self.folder / "data.npy", shape, np.float32, (b.data for b in self._blocks(indptr)))
        indices = write_array(self.folder / "indices.npy", shape, np.int32, (b.indices for b in self._blocks(indptr)))
        return _csc(data, indices, indptr, (sum(part.shape[0] for _, part in self._parts), len(self.genes)))

    def measured(self) -> np.ndarray:
        known = [None if genes is None else set(genes) for genes in self._lists]
        return np.array([[genes is None or gene in genes for gene in self.genes] for genes in known])

    def _blocks(self, indptr: np.ndarray) -> Iterator[sparse.csc_matrix]:
        """All sections' values of some genes, then of the next."""
        first = 0
        while first < len(self.genes):
            last = max(first + 1, int(np.searchsorted(indptr, indptr[first] + _AT_ONCE, side="right")) - 1)
            parts = [_columns(part, first, last) for _, part in self._parts]
            yield sparse.vstack(parts, format="csc") if len(parts) > 1 else parts[0]
            first = last

    def _write(self, name: str, values: np.ndarray) -> np.ndarray:
        return write_array(self.folder / f"{name}.npy", values.shape, values.dtype, [values])


def _columns(part: sparse.csc_matrix, first: int, last: int) -> sparse.csc_matrix:
    """Columns `first` to `last`; those that the section did not know yet are empty."""
    indptr = part.indptr[np.minimum(np.arange(first, last + 1), part.shape[1])]
    entries = slice(indptr[0], indptr[-1])
    return _csc(part.data[entries], part.indices[entries], indptr - indptr[0], (part.shape[0], last - first))


def _csc(data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, shape: tuple[int, int]) -> sparse.csc_matrix:
    """A matrix of these very arrays. scipy's constructor would copy all indices of more than 2^31 entries."""
    matrix = sparse.csc_matrix(shape, dtype=np.float32)
    small = indptr[-1] <= np.iinfo(np.int32).max
    matrix.data, matrix.indices, matrix.indptr = data, indices, indptr.astype(np.int32) if small else indptr
    matrix.has_sorted_indices = matrix.has_canonical_format = True
    return matrix


def _temporary_folder(within: Path | None) -> tempfile.TemporaryDirectory:
    if within is not None:
        within.mkdir(parents=True, exist_ok=True)
        for left in sorted(within.glob("bank-in-use-*")):  # of processes that were killed
            if time.time() - left.stat().st_mtime > 7 * 24 * 3600:
                shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix="bank-in-use-", dir=within, ignore_cleanup_errors=True)


def _write(path: Path, values: np.ndarray) -> None:
    step = max(1, _AT_ONCE // max(1, values[:1].size))
    blocks = (values[start : start + step] for start in range(0, len(values), step))
    write_array(path, values.shape, values.dtype, blocks)


def _open(folder: Path, name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    found = open_array(folder / name, shape, np.dtype(dtype))
    if found is None:
        why = f"{name} is cut short, changed or of another shape" if (folder / name).exists() else f"{name} is missing"
        raise DamagedArtefact(folder, why, _REMEDY)
    return found


def _facts_of(folder: Path) -> dict[str, Any]:
    path = folder / "bank.json"
    if not folder.is_dir():
        raise NoSuchFile(folder, "The bank", "build one: cmrcnet index MODEL COHORT.csv --out BANK")
    if not path.is_file():
        raise DamagedArtefact(folder, "bank.json is missing", _REMEDY)
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedArtefact(folder, "bank.json is cut short or changed", _REMEDY) from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        was = facts.get("format") if isinstance(facts, dict) else None
        raise DamagedArtefact(folder, f"its format is {was}, and this version reads {FORMAT}", _REMEDY)
    if fingerprint({key: value for key, value in facts.items() if key != "check"}) != facts.get("check"):
        raise DamagedArtefact(folder, "bank.json was changed", _REMEDY)
    return facts


def _spots_of(folder: Path, facts: dict[str, Any]) -> pd.DataFrame:
    import pandas as pd

    path = folder / "spots.csv.gz"
    if not path.is_file():
        raise DamagedArtefact(folder, "spots.csv.gz is missing", _REMEDY)
    if _sha256(path) != facts["spots_sha256"]:
        raise DamagedArtefact(folder, "spots.csv.gz is cut short or changed", _REMEDY)
    text = dict.fromkeys(("section", "patient", "barcode"), str)
    return pd.read_csv(path, dtype=text, keep_default_na=False, float_precision="round_trip")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _alike(gene: str, genes: tuple[str, ...]) -> list[str]:
    """Genes of the bank to show beside one that it does not have: those of alike spelling, else the first."""
    import difflib

    folded = [known for known in genes if known.upper() == gene.upper()]
    return folded or difflib.get_close_matches(gene, genes, n=5) or list(genes[:5])
