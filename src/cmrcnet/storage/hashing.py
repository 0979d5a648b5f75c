"""Fingerprints and checksums of content, and JSON files sealed by them.

A fingerprint is a short name of content, so that artefacts can record what they were made from. A sealed JSON file
carries a checksum of its own content, and those of the files beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cmrcnet.storage.atomic import atomic_file

_known: dict[tuple[str, int, int, int], str] = {}
"""Checksums of files by path, size, time of last change and inode: each file is read once in a process."""

LARGEST_JSON = 1 << 28
"""Bytes; a larger sealed file is not read."""


def file_checksum(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits.

    Raises
    ------
    OSError
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        key = (str(path), status.st_size, status.st_mtime_ns, status.st_ino)
        if key not in _known:
            _known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return _known[key]


def crc_of(arrays: Mapping[str, np.ndarray]) -> int:
    """CRC-32 of arrays with their names, in the order of these."""
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(np.ascontiguousarray(arrays[name]).data, zlib.crc32(name.encode(), crc))
    return crc


def fingerprint(*parts: object) -> str:
    """Hash content to a short name.

    Parameters
    ----------
    *parts : bytes, str, numpy.ndarray, or anything that ``json`` can write
        Hashed in the order given. Arrays count with their dtype and shape.

    Returns
    -------
    str
        32 hexadecimal digits (BLAKE2b, 128 bits).
    """
    return fingerprint_stream(parts)


def fingerprint_stream(parts: Iterable[object]) -> str:
    """As `fingerprint`, for parts that do not fit in memory together."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            head, body = f"array {part.dtype.str} {part.shape}", np.ascontiguousarray(part).view(np.uint8).data
        elif isinstance(part, bytes | memoryview):
            head, body = f"bytes {len(part)}", part
        elif isinstance(part, str):
            head, body = f"text {len(part)}", part.encode()
        else:
            body = json.dumps(part, sort_keys=True).encode()
            head = f"json {len(body)}"
        digest.update(f"{head}\n".encode())  # a head must not run into its body
        digest.update(body)
    return digest.hexdigest()


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
    with atomic_file(path) as tmp:
        tmp.write_bytes(seal({**content, "files": sums} if sums else content))


def seal(content: Mapping[str, Any]) -> bytes:
    """The bytes of a sealed JSON file; `write_sealed` writes them."""
    whole = json.loads(json.dumps(dict(content)))
    return json.dumps(whole | {"check": fingerprint(whole)}, indent=1).encode()


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
        It is no JSON object, or no plain file (a folder, a pipe, a device).
    OSError
        The operating system refuses to read it.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from cmrcnet.storage.hashing import read_sealed, write_sealed
    >>> path = Path(tempfile.mkdtemp()) / "run.json"
    >>> write_sealed(path, {"format": 1})
    >>> read_sealed(path)
    ({'format': 1}, True)
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no plain file")
    if status.st_size > LARGEST_JSON:
        raise ValueError(f"it has more than {LARGEST_JSON} bytes")
    return unseal(path.read_bytes())


def unseal(written: bytes) -> tuple[dict[str, Any], bool]:
    """As `read_sealed`, of the bytes of a file."""
    try:
        content = json.loads(written.decode())
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
