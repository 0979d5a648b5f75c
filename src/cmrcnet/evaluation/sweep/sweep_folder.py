"""The folder of a sweep: a small run folder a cell, shared models while it works, and the tables at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmrcnet.config import Config
from cmrcnet.evaluation.protocol.model_shelf import ModelShelf
from cmrcnet.evaluation.protocol.run_folder import RunFolder
from cmrcnet.evaluation.protocol.work_folder import WorkFolder
from cmrcnet.storage.atomic import atomic_file
from cmrcnet.storage.hashing import fingerprint

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1


class SweepFolder:
    """The folder of one sweep (or one transfer).

    Parameters
    ----------
    path : Path
    last : str
        The file that is written when all is done: sweep.json.
    overwrite, resume : bool
        As of a run folder.
    """

    def __init__(self, path: Path, *, last: str = "sweep.json", overwrite: bool = False, resume: bool = False) -> None:
        self._work, self._last = WorkFolder(path, overwrite=overwrite, resume=resume, number=FORMAT), last

    @property
    def path(self) -> Path:
        """Where the finished folder stands."""
        return self._work.path

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Say what is being swept; see `WorkFolder.begin`."""
        self._work.begin(identity)

    def shelf(self) -> ModelShelf:
        """Models that cells share; they go when the sweep is finished."""
        return ModelShelf(self._work.working / "models")

    def cell(self, config: Config, name: str = "") -> RunFolder:
        """The run folder of a cell that is not finished."""
        return RunFolder(self._cell(config, name), resume=True)

    def finished_cell(self, config: Config, name: str = "") -> tuple[pd.DataFrame, dict[str, Any]] | None:
        """Scores and facts of a finished cell."""
        return RunFolder.read_finished(self._cell(config, name))

    def write(self, name: str, content: str | bytes) -> None:
        """Write one file, whole or not at all."""
        with atomic_file(self._work.working / name) as tmp:
            tmp.write_bytes(content.encode() if isinstance(content, str) else content)

    def finish(self, facts: Mapping[str, Any]) -> Path:
        """Write the last file and put the folder where it was asked for."""
        self._work.write_json(self._last, {"format": FORMAT, **facts})
        return self._work.finish(self._last, leftovers=("models",))

    def _cell(self, config: Config, name: str) -> Path:
        return self._work.working / "cells" / fingerprint([config.to_dict(), name])[:16]
