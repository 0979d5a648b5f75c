"""Files that others wrote, opened within bounds: ordinary files only, gzip up to a size, one encoding of text.

Every text table (cohort, spots, positions, regions, gene lists, counts, barcodes and features of a 10x folder) and
every JSON file is read through this module. Excel writes a byte order mark, old programs UTF-16 or line ends of a
carriage return alone; all are read. Bytes that are no text are refused.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from cmrcnet.errors import BadInput
from cmrcnet.slides.slide_files import require_file

GZIP_MAGIC = b"\x1f\x8b"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
UTF8_MARK = b"\xef\xbb\xbf"

MOST_TABLE_BYTES = 64 << 20
"""Largest small table (cohort, spots, positions), unpacked; Visium has 5,000 positions in 0.3 MB."""
MOST_UNPACKED = 100
"""Largest factor by which a gzip file may grow when it is unpacked; tables of counts grow 10 to 40 times."""
FREE_BYTES = 64 << 20
"""Bytes that any gzip file may unpack to, whatever the factor."""


def files_ending(folder: Path, ending: str) -> list[Path]:
    """Files of a folder whose names end so, gzipped or not, without hidden ones."""
    found = [path for gz in ("", ".gz") for path in sorted(folder.glob(f"*{ending}{gz}"))]
    return [path for path in found if not path.name.startswith(".")]


def plain_or_gzipped(path: Path) -> Path | None:
    """`path`, or the gzipped file of this name, or None where there is neither."""
    return next((file for file in (path, path.with_name(f"{path.name}.gz")) if file.is_file()), None)


def open_bytes(path: Path, what: str) -> BinaryIO:
    """Open a file, unpacked when it is gzipped; reading raises `BadInput` where it grows beyond `MOST_UNPACKED`.

    Raises
    ------
    MissingInput, BadInput
    """
    path = require_file(path, what)
    try:
        file = path.open("rb")
    except OSError as error:
        raise BadInput(path, "a file", error.strerror or str(error)) from error
    if file.peek(2)[:2] != GZIP_MAGIC:
        return file
    most = max(FREE_BYTES, MOST_UNPACKED * path.stat().st_size)
    return io.BufferedReader(_Unpacked(file, path, most), 1 << 20)


class _Unpacked(io.RawIOBase):
    """The content of a gzip file, with its size limited and its damages as `BadInput`."""

    def __init__(self, file: BinaryIO, path: Path, most: int) -> None:
        self._packed, self._file, self._path, self._left = file, gzip.GzipFile(fileobj=file, mode="rb"), path, most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            piece = self._file.read(len(buffer))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BadInput(self._path, "a gzip file", f"it is truncated or damaged ({error})") from error
        self._left -= len(piece)
        if self._left < 0:
            most = f"{MOST_UNPACKED} times its own size and {FREE_BYTES >> 20} MB"
            raise BadInput(self._path, "a gzip file", f"it unpacks to more than {most}; unpack it and give that file")
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self._file.close()
        self._packed.close()
        super().close()


def read_bytes(path: Path, what: str, most_bytes: int = MOST_TABLE_BYTES) -> bytes:
    """The content of a file, unpacked when it is gzipped.

    Parameters
    ----------
    what : str
        What is read, with a capital, for the error: "The cohort file".
    most_bytes : int
        More is refused.

    Raises
    ------
    MissingInput, BadInput
    """
    with open_bytes(path, what) as file:
        try:
            content = file.read(most_bytes + 1)
        except OSError as error:
            raise BadInput(path, "a file", error.strerror or str(error)) from error
    if len(content) > most_bytes:
        raise BadInput(path, what[:1].lower() + what[1:], f"it holds more than {most_bytes >> 20} MB")
    return content


def read_text(path: Path, what: str, most_bytes: int = MOST_TABLE_BYTES) -> str:
    """The text of a file: UTF-8 with or without a byte order mark, or UTF-16 with one; line ends become ``\\n``.

    Raises
    ------
    MissingInput
    BadInput
        Also for text in another encoding, and for a NUL byte.
    """
    return decoded(read_bytes(path, what, most_bytes), path)


def decoded(content: bytes, path: Path) -> str:
    """`content` of the file `path` as text; see `read_text`."""
    encoding = "utf-16" if content[:2] in UTF16_MARKS else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        why = f"line {line} is no {encoding.removesuffix('-sig').upper()} text (in Excel, save it as 'CSV UTF-8')"
        raise BadInput(path, "text", why) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise BadInput(path, "text", f"line {line} holds a NUL byte; save it as UTF-8 text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def open_text(path: Path, what: str) -> BinaryIO:
    """Open a text file of any size as UTF-8 bytes without a mark, lines ending in ``\\n`` or ``\\r\\n``.

    A file in UTF-16, or with line ends of a carriage return alone, is converted in memory; others are streamed.

    Raises
    ------
    MissingInput, BadInput
    """
    file = open_bytes(path, what)
    head = file.peek(1 << 16)  # type: ignore[attr-defined]
    if head[:2] in UTF16_MARKS or (b"\r" in head and b"\n" not in head):
        with file:
            return io.BytesIO(decoded(file.read(), path).encode())
    if head.startswith(UTF8_MARK):
        file.read(len(UTF8_MARK))
    return file


def read_json(path: Path, what: str, most_bytes: int = MOST_TABLE_BYTES) -> dict[str, Any]:
    """The object in a JSON file.

    Raises
    ------
    MissingInput
    BadInput
        Also when it is nested too deeply, or is no object.
    """
    try:
        found = json.loads(read_text(path, what, most_bytes))
    except (ValueError, RecursionError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(path, "JSON", str(error).splitlines()[0]) from error
    if not isinstance(found, dict):
        raise BadInput(path, "JSON", f"it holds a {type(found).__name__}; wanted an object with named values")
    return found
