"""Fingerprints: short names of content, so that artefacts can record what they were made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

import numpy as np


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
