"""A folder that takes long to make: everything lies in ``OUT.partial`` until it is whole, and then becomes ``OUT``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmrcnet.errors import CannotResume, Damaged, OutputExists
from cmrcnet.storage.atomic import atomic_file, partial_folder, refuse_existing, replace_folder
from cmrcnet.storage.hashing import fingerprint


class WorkFolder:
    """A result folder that can be interrupted and gone on with.

    Parameters
    ----------
    path : Path
        Where the finished folder will stand.
    overwrite : bool
        Replace a finished folder at `path`, and forget an interrupted one.
    resume : bool
        Go on with the interrupted one; without one, start.
    number : int
        Of the format of what is in it.

    Raises
    ------
    OutputExists
        A finished folder stands there, or an interrupted one, and nothing was said about it.
    Unwritable
    """

    def __init__(self, path: Path, *, overwrite: bool = False, resume: bool = False, number: int = 1) -> None:
        self.path, self.number = Path(path), number
        self.finished = False
        self._overwrite = overwrite
        refuse_existing(self.path, overwrite)
        self.partial = partial_folder(self.path, ["identity.json"], resume=resume, overwrite=overwrite)

    @property
    def working(self) -> Path:
        """Where the files are now: ``OUT.partial`` until `finish`, then ``OUT``."""
        return self.path if self.finished else self.partial

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Say what is being made. An interrupted folder is only gone on with when nothing in it differs.

        Parameters
        ----------
        identity : mapping of str to JSON-able
            The config, the cohort's content, the version.

        Raises
        ------
        CannotResume
        """
        stamp = {"format": self.number} | {key: fingerprint(value) for key, value in identity.items()}
        file = self.partial / "identity.json"
        if file.exists():
            before = read_json(file)
            changed = [key for key in stamp if before.get(key) != stamp[key]]
            if changed:
                raise CannotResume(self.partial, f"its {' and '.join(changed)} changed since it was started")
            return
        self.write_json("identity.json", stamp)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write one file of plain values, whole or not at all."""
        with atomic_file(self.working / name) as tmp:
            tmp.write_text(json.dumps(value, indent=1))

    def finish(self, last: str, leftovers: Sequence[str] = ()) -> Path:
        """Put the folder where it was asked for.

        Parameters
        ----------
        last : str
            The file that is written when all is done.
        leftovers : sequence of str
            Folders that are of no more use.
        """
        if not (self.partial / last).exists():
            raise Damaged(self.partial, "the run is not finished", "go on with it: --resume")
        if self.path.exists() and not self._overwrite:
            raise OutputExists(self.path)
        replace_folder(self.partial, self.path)
        self.finished = True
        for leftover in leftovers:
            shutil.rmtree(self.path / leftover, ignore_errors=True)
        for tmp in self.path.rglob(".*.tmp-*"):  # of a process that was killed while it wrote
            tmp.unlink(missing_ok=True)
        (self.path / "identity.json").unlink(missing_ok=True)
        return self.path


def read_json(file: Path) -> dict[str, Any]:
    """Read a file of plain values that `WorkFolder` wrote.

    Raises
    ------
    Damaged
    """
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise Damaged(file, str(error), "run again with --overwrite") from error
