"""Fingerprints: short names of content, so that artefacts can record what they were made from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

_known: dict[tuple[str, int, int, int], str] = {}
"""Checksums of files by path, size, time of last change and inode: each file is read once in a process."""


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
