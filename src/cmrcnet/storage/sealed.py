"""JSON files that carry a checksum of their own content, and the checksums of the files beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cmrcnet.storage.atomic import atomic_file
from cmrcnet.storage.hashing import file_checksum, fingerprint

LARGEST = 1 << 28
"""Bytes; a larger file is not read."""


def write_sealed(path: Path, content: Mapping[str, Any], files: Iterable[Path] = ()) -> None:
    """Write a JSON file atomically, sealed.

    Parameters
    ----------
    content : mapping of str to JSON-able
        Without the keys ``check`` and ``files``.
    files : iterable of Path
        Finished files in the same folder, or below it, whose checksums are stored as well; `changed_file` compares
        them.

    Raises
    ------
    NoSpace, Unwritable
    """
    sums = {file.relative_to(path.parent).as_posix(): file_checksum(file) for file in files}
    whole = json.loads(json.dumps({**content, "files": sums} if sums else dict(content)))
    with atomic_file(path) as tmp:
        tmp.write_text(json.dumps(whole | {"check": fingerprint(whole)}, indent=1), encoding="utf-8")


def read_sealed(path: Path) -> tuple[dict[str, Any], bool]:
    """Read a JSON file that `write_sealed` wrote.

    Returns
    -------
    content : dict
        Without its checksum.
    intact : bool
        Whether the checksum is right. Compare the format first: other formats may have none.

    Raises
    ------
    ValueError
        It is no JSON object.
    OSError
        The operating system refuses to read it.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from cmrcnet.storage.sealed import read_sealed, write_sealed
    >>> path = Path(tempfile.mkdtemp()) / "run.json"
    >>> write_sealed(path, {"format": 1})
    >>> read_sealed(path)
    ({'format': 1}, True)
    """
    if path.stat().st_size > LARGEST:
        raise ValueError(f"it has more than {LARGEST} bytes")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    check = content.pop("check", None)
    return content, fingerprint(content) == check


def changed_file(folder: Path, content: Mapping[str, Any], only: Iterable[str] | None = None) -> str | None:
    """Name of a file that is missing, or not what it was when `content` was sealed; None where all are as they were.

    Parameters
    ----------
    folder : Path
        That of the sealed file.
    content : mapping
        From `read_sealed`.
    only : iterable of str, optional
        The files to look at, relative to the folder; all when left out. One that was not sealed counts as changed.
    """
    sums = content.get("files", {})
    for name in sums if only is None else only:
        if not (folder / name).is_file() or file_checksum(folder / name) != sums.get(name):
            return name
    return None
