"""Name a file by its content without reading all of a slide of many gigabytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cmrcnet.storage.hashing import fingerprint_stream

WHOLE_BYTES = 256 << 20
"""Files up to this size are hashed whole."""
END_BYTES = 8 << 20
"""Of a larger file: this much of its head and of its tail ..."""
SAMPLE_BYTES = 256 << 10
"""... and blocks of this size ..."""
SAMPLES = 64
"""... this many, evenly spaced in between."""


def file_fingerprint(path: Path) -> str:
    """Name of a file's content, wherever the file lies and whatever it is called.

    A file of at most 256 MiB counts whole. Of a larger one count its size, its first and last 8 MiB and 64 evenly
    spaced blocks of 256 KiB: half a second instead of minutes. Slides are written once and pyramids change
    throughout when they are written again, so that a real change is seen; a few bytes patched by hand in the middle
    of a large file are not.

    A folder beside the file that bears its name without the ending (the pixels of an MRXS slide) counts as well.
    """
    path = Path(path)
    companion = path.with_suffix("") if path.suffix.lower() == ".mrxs" else None
    files = sorted(companion.iterdir()) if companion is not None and companion.is_dir() else []
    return fingerprint_stream(part for file in [path, *files] if file.is_file() for part in _parts(file))


def _parts(path: Path) -> Iterator[object]:
    size = path.stat().st_size
    yield size
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            while block := file.read(END_BYTES):
                yield block
            return
        yield file.read(END_BYTES)
        stride = (size - 2 * END_BYTES) // SAMPLES
        for number in range(SAMPLES):
            file.seek(END_BYTES + number * stride)
            yield file.read(SAMPLE_BYTES)
        file.seek(size - END_BYTES)
        yield file.read(END_BYTES)
