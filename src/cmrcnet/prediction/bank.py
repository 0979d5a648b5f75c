"""The reference bank: every measured spot's embedding, its FULL expression, and where it came from.

Folder format 1: ``bank.json`` (genes, sections, patients, the model's fingerprint), ``vectors.npy``, the expression
gene by gene (CSC: ``expression_data.npy``, ``expression_indices.npy``, ``expression_indptr.npy``), ``measured.npy``
and ``spots.csv.gz``; from a model that works on expression components also ``scores.npy`` and what turns them into
genes (``level.npy``, ``deviation.npy``, ``loadings.npy``). The arrays are memory-mapped. Expression lies gene by gene
because that is how it is read: all spots of a few genes at a time; choosing 50 genes reads the bytes of 50 genes. The
file is one thing: what `save` writes `load` must read back and check.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from cmrcnet.atomic import atomic_folder
from cmrcnet.encoding.stored_array import open_array, write_array
from cmrcnet.errors import DamagedArtefact, ForeignBank, NoSuchFile, ShapeMismatch, TooFew
from cmrcnet.expression.normalize import check_counts, normalize
from cmrcnet.fingerprint import fingerprint, fingerprint_stream
from cmrcnet.prediction.spool import SPOT_COLUMNS, Spool, csc_of
from cmrcnet.progress import tracked
from cmrcnet.readout.gene_levels import GeneLevels, gene_levels
from cmrcnet.tissue.section import Cohort

if TYPE_CHECKING:
    import pandas as pd

    from cmrcnet.encoding.token_cache import TokenCache
    from cmrcnet.model.trained_model import TrainedModel

FORMAT = 1
_REMEDY = "build it again: cmrcnet index MODEL COHORT.csv --out BANK"
_LEVELS = ("level", "deviation", "loadings")
_AT_ONCE = 2**22
"""Numbers that are written at once."""


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
    scores : numpy.ndarray, shape (spots, rank), float32, or None
        Expression scores, from a model that works on components.
    levels : GeneLevels or None
        What turns scores into expression; together with `scores`.
    """

    vectors: np.ndarray
    expression: sparse.csc_matrix
    genes: tuple[str, ...]
    spots: pd.DataFrame
    measured: np.ndarray
    model_fingerprint: str
    target_sum: float | Literal["median"] = 10_000.0
    name: str = "bank"
    scores: np.ndarray | None = None
    levels: GeneLevels | None = None
    _shelf: Spool | None = field(default=None, repr=False)  # its temporary folder goes when the bank goes

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
        arrays = [self.vectors, self.expression.data, self.expression.indices, self.expression.indptr, self.measured]
        if self.scores is not None:
            arrays.append(self.scores)
        return fingerprint_stream([self._facts(), *(np.asarray(self.spots[c], str) for c in SPOT_COLUMNS), *arrays])

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
        } | ({} if self.scores is None else {"rank": int(self.scores.shape[1])})

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
            if self.scores is not None and self.levels is not None:
                _write(draft / "scores.npy", self.scores)
                for what in _LEVELS:
                    _write(draft / f"{what}.npy", getattr(self.levels, what))
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
        rank = facts.get("rank")
        scores = levels = None
        if rank is not None:
            scores = _open(folder, "scores.npy", (n, rank), np.float32)
            shapes = {"level": (g,), "deviation": (g,), "loadings": (rank, g)}
            levels = GeneLevels(**{what: _open(folder, f"{what}.npy", shapes[what], np.float32) for what in _LEVELS})
        bank = cls(
            vectors=_open(folder, "vectors.npy", (n, facts["dim"]), np.float32),
            expression=csc_of(data, indices, indptr, (n, g)),
            genes=tuple(facts["genes"]),
            spots=_spots_of(folder, facts),
            measured=_open(folder, "measured.npy", (len(facts["sections"]), g), np.bool_),
            model_fingerprint=facts["model"],
            target_sum=facts["target_sum"],
            name=str(folder),
            scores=scores,
            levels=levels,
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
    if len(cohort) == 0:
        raise TooFew("sections for the bank", 0, 1, "name at least one section with measured spots")
    spool = Spool(cache)
    scores: list[np.ndarray] = []
    lengths: list[int] = []
    for section in tracked(cohort, "index", unit="sections"):
        check_counts(section.counts, section.name)
        expression = normalize(section.counts, model.panel.target_sum)
        vectors, of_section = model.embed_section(model.panel.select(section))
        spool.add(section, expression, vectors)
        if of_section is not None:
            scores.append(of_section)
            lengths.append(len(of_section))
    whole, measured, levels = spool.expression(), spool.measured(), None
    if scores:
        section_of_spot = np.repeat(np.arange(len(lengths)), lengths)
        levels = gene_levels(whole, np.concatenate(scores), section_of_spot, measured)
    return ReferenceBank(
        vectors=spool.vectors(),
        expression=whole,
        genes=tuple(spool.genes),
        spots=spool.spots(),
        measured=measured,
        scores=np.concatenate(scores) if scores else None,
        levels=levels,
        model_fingerprint=model.fingerprint,
        target_sum=model.panel.target_sum,
        _shelf=spool,
    )


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
