"""A run folder: finished parts are kept while the run goes on, and the whole appears at once when it is done.

While a run works, all lies in ``OUT.partial``: a part for each fold, method and seed, written whole or not at all.
After an interruption ``resume`` picks up the finished parts, and a half-finished training from its checkpoints.
`finish` turns ``OUT.partial`` into ``OUT``; until then an older ``OUT`` stays as it was, also with ``overwrite``.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmrcnet.evaluation.protocol.work_folder import WorkFolder, read_json
from cmrcnet.storage.atomic import atomic_file, atomic_folder

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from cmrcnet.evaluation.protocol.model_shelf import ModelShelf
    from cmrcnet.training.checkpoint import Checkpoints

FORMAT = 2
GENE_DIGITS = "%.5g"
"""`genes.csv` has a row for every method, section and gene: more digits would only make it larger."""
_TEXT = ("method", "fold", "section", "patient", "gene_set", "metric", "gene", "sets")


@dataclass(frozen=True, eq=False)
class Part:
    """What one method did in one fold with one seed.

    Parameters
    ----------
    scores, genes : pandas.DataFrame
        Rows of `scores.csv` and `genes.csv`.
    record : dict
        What the method says of its fit, JSON-able.
    seconds : float
        Time of fitting, predicting and scoring.
    tables : dict of str to AnnData
        Prediction table of each test section, from a method that makes them.
    every_gene : bool
        `genes` holds every gene, not only those of named gene sets.
    """

    scores: pd.DataFrame
    genes: pd.DataFrame
    record: dict[str, Any]
    seconds: float
    tables: dict[str, AnnData] = field(default_factory=dict)
    every_gene: bool = True


class RunFolder:
    """The folder of one evaluation run.

    Parameters
    ----------
    path : Path
        Where the finished run will stand.
    overwrite : bool
        Replace a finished run at `path`, and forget an interrupted one.
    resume : bool
        Go on with the interrupted run; without one, start.

    Raises
    ------
    OutputExists
        A finished run stands there, or an interrupted one, and nothing was said about it.
    Unwritable
    """

    def __init__(self, path: Path, *, overwrite: bool = False, resume: bool = False) -> None:
        self._work = WorkFolder(path, overwrite=overwrite, resume=resume, number=FORMAT)

    @property
    def path(self) -> Path:
        """Where the finished run stands."""
        return self._work.path

    @property
    def working(self) -> Path:
        """Where the files are now: ``OUT.partial`` until `finish`, then ``OUT``."""
        return self._work.working

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Say what is being run. An interrupted run is only gone on with when nothing in it differs.

        Parameters
        ----------
        identity : mapping of str to JSON-able
            The config, the cohort's content, the version.

        Raises
        ------
        CannotResume
        """
        self._work.begin(identity)

    def part(self, fold: str, method: str, seed: int = 0, *, every_gene: bool = False) -> Part | None:
        """A finished part, or None when it is still to be done. Tables are read by `prediction` when needed.

        With `every_gene`, a part that kept the genes of named sets only counts as not done.
        """
        place = self._place(fold, method, seed)
        if not place.is_dir():
            return None
        facts = read_json(place / "part.json")
        if every_gene and not facts["every_gene"]:
            shutil.rmtree(place)
            return None
        scores, genes = _read_table(place / "scores.csv"), _read_table(place / "genes.csv")
        return Part(scores, genes, facts["record"], facts["seconds"], every_gene=facts["every_gene"])

    def keep(self, fold: str, method: str, seed: int, part: Part) -> Part:
        """Write a part and give it back as it will be read. Its training checkpoints are no longer needed."""
        for section, table in part.tables.items():
            with atomic_file(self._table_file(section)) as tmp:
                table.write_h5ad(tmp, compression="gzip")
        with atomic_folder(self._place(fold, method, seed)) as tmp:
            part.scores.to_csv(tmp / "scores.csv", index=False)
            part.genes.to_csv(tmp / "genes.csv", index=False, float_format=GENE_DIGITS)
            facts = {"format": FORMAT, "record": part.record, "seconds": part.seconds, "every_gene": part.every_gene}
            (tmp / "part.json").write_text(json.dumps(facts))
        shutil.rmtree(self._checkpoint_place(fold, method, seed), ignore_errors=True)
        kept = self.part(fold, method, seed)
        assert kept is not None
        return kept

    def checkpoints(self, fold: str, method: str, seed: int = 0) -> Checkpoints:
        """Where the training of one part keeps its state."""
        from cmrcnet.training.checkpoint import Checkpoints

        return Checkpoints(self._checkpoint_place(fold, method, seed))

    def write_tables(self, scores: pd.DataFrame, genes: pd.DataFrame, facts: dict[str, Any]) -> None:
        """Write `scores.csv`, `genes.csv` and `run.json` of the whole run."""
        with atomic_file(self.working / "scores.csv") as tmp:
            scores.to_csv(tmp, index=False)
        with atomic_file(self.working / "genes.csv") as tmp:
            genes.to_csv(tmp, index=False, float_format=GENE_DIGITS)
        self._work.write_json("run.json", {"format": FORMAT, **facts})

    @staticmethod
    def read_finished(path: Path) -> tuple[pd.DataFrame, dict[str, Any]] | None:
        """Scores and facts of a finished run; None where there is none.

        Raises
        ------
        Damaged
        """
        if not (path / "run.json").exists():
            return None
        return _read_table(path / "scores.csv"), read_json(path / "run.json")

    def prediction(self, section: str) -> AnnData:
        """Read one section's prediction table."""
        from anndata import read_h5ad

        return read_h5ad(self._table_file(section))

    def predictions(self) -> Mapping[str, AnnData]:
        """All prediction tables, each read when it is asked for."""
        return _Tables(self)

    def shelf(self) -> ModelShelf:
        """Trained models that several methods read out."""
        from cmrcnet.evaluation.protocol.model_shelf import ModelShelf

        return ModelShelf(self.working / "models")

    def finish(self) -> Path:
        """Put the run where it was asked for; parts, checkpoints and models go."""
        return self._work.finish("run.json", leftovers=("parts", "checkpoints", "models"))

    def _place(self, fold: str, method: str, seed: int) -> Path:
        return self.working / "parts" / _file_name(fold) / _file_name(method) / str(seed)

    def _checkpoint_place(self, fold: str, method: str, seed: int) -> Path:
        return self.working / "checkpoints" / _file_name(fold) / _file_name(method) / str(seed)

    def _table_file(self, section: str) -> Path:
        return self.working / "predictions" / f"{_file_name(section)}.h5ad"


class _Tables(Mapping):
    """Prediction tables by section."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        files = folder.working.glob("predictions/*.h5ad")
        self._names = {_section_of(file.stem): file.stem for file in sorted(files)}

    def __getitem__(self, section: str) -> AnnData:
        if section not in self._names:
            raise KeyError(section)
        return self._folder.prediction(section)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _file_name(name: str) -> str:
    """A name that any file system takes and that can be turned back: other characters become ``%xx``."""
    safe = re.sub(r"[^A-Za-z0-9_.\- ]", lambda m: "".join(f"%{byte:02x}" for byte in m.group().encode()), name)
    return safe if safe.strip(".") else safe.replace(".", "%2e")


def _section_of(file_name: str) -> str:
    from urllib.parse import unquote

    return unquote(file_name)


def _read_table(file: Path) -> pd.DataFrame:
    """Read scores or genes: names stay text (patient 794, gene NA), numbers come back as they were written."""
    import pandas as pd

    head = pd.read_csv(file, nrows=0).columns
    numbers = [column for column in head if column not in _TEXT]
    return pd.read_csv(
        file,
        dtype={column: str for column in head if column in _TEXT},
        keep_default_na=False,
        na_values={column: [""] for column in numbers},
        float_precision="round_trip",
    )
