"""Run folders: finished results are kept while a run goes on, and the folder appears at its path when it is complete.

While a run works, everything lies in ``OUT.partial``: one result for each fold, method and seed, each written
atomically. After an interruption, ``resume`` picks up the finished results, and an unfinished training from its
checkpoints. `finish` renames ``OUT.partial`` to ``OUT``; until then an older ``OUT`` is not touched, also with
``overwrite``.

The file is one thing: the layout of the folder and its way from partial to finished.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cmrcnet.errors import Damaged, Incompatible, OutputExists
from cmrcnet.evaluation import Frame
from cmrcnet.storage.atomic import (
    atomic_file,
    atomic_folder,
    make_partial,
    partial_folder,
    refuse_existing,
    replace_folder,
)
from cmrcnet.storage.hashing import changed_file, file_checksum, fingerprint, read_sealed, write_sealed
from cmrcnet.storage.names import bare_cell, file_name, guard_table, name_of_file
from cmrcnet.storage.ownership import is_temporary, mark_folder, remove_ours

if TYPE_CHECKING:
    from anndata import AnnData

    from cmrcnet.training.checkpoint import Checkpoints

FORMAT = 4
GENE_DIGITS = "%.5g"
"""Float format of `genes.csv`, which has a row for every method, section and gene."""
log = logging.getLogger("cmrcnet")

_OURS = ("*.json", "*.csv", "*.html", "*.png", "*.svg", "predictions/*", "results/*", "checkpoints/*", "trials/*")
"""Files of a folder that is being made."""
_TEXT = ("method", "fold", "section", "patient", "gene_set", "metric", "gene", "sets")


@dataclass(frozen=True, eq=False)
class FoldResult:
    """Scores and predictions of one method in one fold with one seed."""

    scores: Frame  # rows of `scores.csv`
    genes: Frame  # rows of `genes.csv`
    record: dict[str, Any]  # what the method reports about its fit; JSON-able
    seconds: float  # of fitting, predicting and scoring
    tables: dict[str, AnnData] = field(default_factory=dict)  # of each test section, from a method that makes them
    every_gene: bool = True  # `genes` holds every gene, not only those of named gene sets


class WorkFolder:
    """A result folder whose making can be interrupted and resumed.

    Parameters
    ----------
    overwrite : bool
        Replace a finished folder at `path`, and discard an interrupted one.
    resume : bool
        Continue the interrupted folder; without one, start.

    Attributes
    ----------
    last : str
        File that is written when everything is done; `finish` requires it.
    format : int
        Format number of the content.
    leftovers : tuple of str
        Subfolders that `finish` removes.

    Raises
    ------
    OutputExists
        A finished or interrupted folder exists, and neither `overwrite` nor `resume` says what to do with it.
    Unwritable
    """

    last: ClassVar[str]
    format: ClassVar[int]
    leftovers: ClassVar[tuple[str, ...]] = ()

    def __init__(self, path: Path, *, overwrite: bool = False, resume: bool = False) -> None:
        self.path = Path(path)
        refuse_existing(self.path, overwrite, folder=True)
        self.partial = partial_folder(self.path, resume=resume, overwrite=overwrite)
        self._finished, self._overwrite = False, overwrite

    @property
    def working(self) -> Path:
        """Current folder of the files: ``OUT.partial`` until `finish`, then ``OUT``."""
        return self.path if self._finished else self.partial

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Record what is being made (config, cohort, version); raise `Incompatible` for a folder of something else."""
        now = {"format": self.format} | {key: fingerprint(value) for key, value in identity.items()}
        make_partial(self.partial, _OURS)
        file = self.partial / "identity.json"
        if not file.exists():
            if any((self.partial / name).exists() for name in ("results", "predictions", "trials")):
                raise Incompatible.run(self.partial, "identity.json, which says what it was started with, is missing")
            write_sealed(file, now)
            return
        before = _read_json(file)
        changed = [key for key in now if before.get(key) != now[key]]
        if changed:
            raise Incompatible.run(self.partial, f"its {' and '.join(changed)} changed since it was started")

    def finish(self) -> Path:
        """Move the folder to its path, and remove what is no longer needed."""
        if not (self.partial / self.last).exists():
            raise Damaged(self.partial, "the run is not finished", "go on with it: --resume")
        if self.path.exists() and not self._overwrite:
            raise OutputExists(self.path)
        for where, folders, names in os.walk(self.partial):
            for name in (*folders, *names):
                if is_temporary(Path(name)):  # of a process that was killed while it wrote
                    remove_ours(Path(where, name))
        (self.partial / "identity.json").unlink(missing_ok=True)
        leftovers = [self.partial / name for name in self.leftovers if (self.partial / name).is_dir()]
        for leftover in leftovers:
            mark_folder(leftover)
        mark_folder(self.partial)
        replace_folder(self.partial, self.path)
        self._finished = True
        for name in self.leftovers:
            remove_ours(self.path / name)
        return self.path


class RunFolder(WorkFolder):
    """The folder of one evaluation run; see `WorkFolder`."""

    last, format, leftovers = "run.json", FORMAT, ("results", "checkpoints")

    def result(self, fold: str, method: str, seed: int = 0, *, every_gene: bool = False) -> FoldResult | None:
        """Read a finished result without its prediction tables; None when it is still to be done.

        One of which a file is not what was written is removed and counts as not done; with `every_gene` also one that
        kept the genes of named sets only.
        """
        folder = self._path("results", fold, method, seed)
        if not folder.is_dir():
            return None
        try:
            metadata = _read_json(folder / "result.json")
            damaged = changed_file(folder, metadata) or changed_file(self.working, {"files": metadata["tables"]})
        except Damaged:
            metadata, damaged = {}, "result.json"
        if damaged is not None:
            log.warning("%s in %s is damaged, so that result is computed again.", damaged, folder)
        if damaged is not None or (every_gene and not metadata["every_gene"]):
            remove_ours(folder)
            return None
        scores, genes = _read_table(folder / "scores.csv"), _read_table(folder / "genes.csv")
        return FoldResult(scores, genes, metadata["record"], metadata["seconds"], every_gene=metadata["every_gene"])

    def keep(self, fold: str, method: str, seed: int, result: FoldResult) -> FoldResult:
        """Write a result, and return it as it will be read."""
        tables = {}
        for section, table in result.tables.items():
            file = self._table_file(section)
            with atomic_file(file) as tmp:
                table.write_h5ad(tmp, compression="gzip")
            tables[file.relative_to(self.working).as_posix()] = file_checksum(file)
        with atomic_folder(self._path("results", fold, method, seed)) as tmp:
            guard_table(result.scores).to_csv(tmp / "scores.csv", index=False)
            guard_table(result.genes).to_csv(tmp / "genes.csv", index=False, float_format=GENE_DIGITS)
            metadata = {"record": result.record, "seconds": result.seconds, "every_gene": result.every_gene}
            content = {"format": FORMAT, "tables": tables} | metadata
            write_sealed(tmp / "result.json", content, [tmp / "scores.csv", tmp / "genes.csv"])
        kept = self.result(fold, method, seed)
        assert kept is not None
        return kept

    def checkpoints(self, fold: str, seed: int, training: str) -> Checkpoints:
        """Open the folder in which one training of a fold, which may have several, keeps its state."""
        from cmrcnet.training.checkpoint import Checkpoints

        return Checkpoints(self._path("checkpoints", fold, training, seed))

    def write_tables(self, scores: Frame, genes: Frame, metadata: dict[str, Any], folds: Frame) -> None:
        """Write `scores.csv`, `genes.csv`, `folds.csv` (label of each section) and `run.json` of the whole run."""
        with atomic_file(self.working / "folds.csv") as tmp:
            guard_table(folds).to_csv(tmp, index=False)
        with atomic_file(self.working / "scores.csv") as tmp:
            guard_table(scores).to_csv(tmp, index=False)
        with atomic_file(self.working / "genes.csv") as tmp:
            guard_table(genes).to_csv(tmp, index=False, float_format=GENE_DIGITS)
        tables = sorted((self.working / "predictions").glob("[!.]*.h5ad"))
        files = [*(self.working / name for name in ("scores.csv", "genes.csv", "folds.csv")), *tables]
        write_sealed(self.working / "run.json", {"format": FORMAT, **metadata}, files)

    @staticmethod
    def read_finished(path: Path) -> tuple[Frame, dict[str, Any]] | None:
        """Read scores and metadata of a finished run; None where there is none. `Damaged`, `Incompatible`."""
        if not (path / "run.json").exists():
            return None
        metadata = read_run(path, ["scores.csv"])
        return _read_table(path / "scores.csv"), metadata

    def prediction(self, section: str) -> AnnData:
        """Read one section's prediction table.

        Raises
        ------
        Damaged
        """
        from anndata import read_h5ad

        file = self._table_file(section)
        if (self.working / "run.json").exists():
            read_run(self.working, [file.relative_to(self.working).as_posix()])
        return read_h5ad(file)

    def predictions(self) -> Mapping[str, AnnData]:
        """Map each section to its prediction table, read on access."""
        return _Tables(self)

    def _path(self, kind: str, fold: str, name: str, seed: int) -> Path:
        return self.working / kind / file_name(fold) / file_name(name) / str(seed)

    def _table_file(self, section: str) -> Path:
        return self.working / "predictions" / f"{file_name(section)}.h5ad"


class _Tables(Mapping):
    """Prediction tables by section."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        files = folder.working.glob("predictions/*.h5ad")
        self._names = [name_of_file(file.stem) for file in sorted(files) if not file.name.startswith(".")]

    def __getitem__(self, section: str) -> AnnData:
        if section not in self._names:
            raise KeyError(section)
        return self._folder.prediction(section)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_run(path: Path, files: Sequence[str]) -> dict[str, Any]:
    """Read `run.json` of a run folder, and check files of it.

    Parameters
    ----------
    files : sequence of str
        Files that will be read, relative to the folder.

    Returns
    -------
    dict
        Content of `run.json`.

    Raises
    ------
    Damaged
        `run.json` or one of the files is missing, or is not what the evaluation wrote.
    Incompatible
        Another format.
    """
    metadata = _read_json(path / "run.json")
    changed = changed_file(path, metadata, files)
    if changed is not None:
        raise Damaged(path, f"{changed} is missing or not what was written", "run the evaluation again")
    return metadata


def _read_json(file: Path) -> dict[str, Any]:
    """Content of a sealed file of a run folder."""
    try:
        content, intact = read_sealed(file)
    except (FileNotFoundError, ValueError) as error:
        raise Damaged(file, str(error), "run again with --overwrite") from error
    if content.get("format") not in (None, FORMAT) and file.name in ("run.json", "result.json"):
        raise Incompatible.format(file, content["format"], FORMAT, "run the evaluation again")
    if not intact:
        raise Damaged(file, "it is not what was written", "run again with --overwrite")
    return content


def _read_table(file: Path) -> Frame:
    """Read scores or genes: names stay text (patient 794, gene NA), numbers come back as they were written."""
    import pandas as pd

    read_csv: Any = pd.read_csv
    head = read_csv(file, nrows=0).columns
    numbers = [column for column in head if column not in _TEXT]
    table = read_csv(
        file,
        dtype={column: str for column in head if column in _TEXT},
        keep_default_na=False,
        na_values={column: [""] for column in numbers},
        float_precision="round_trip",
    )
    for column in head:
        if column in _TEXT:
            table[column] = table[column].map(bare_cell)
    return table
