"""Small delimited tables: cohort files, spot files, tissue positions.

Excel writes a byte order mark, semicolons where the comma is the decimal sign, and sometimes UTF-16; all are read.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmrcnet.errors import BadInput, MissingInput

GZIP_MAGIC = b"\x1f\x8b"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, eq=False)
class Table:
    """A table of text cells.

    Parameters
    ----------
    path : pathlib.Path
    columns : tuple of str
    rows : tuple of dict
        Column name to cell, stripped.
    lines : tuple of int
        Line of the file, counted from 1, on which each row ends.
    decimal_comma : bool
        The cells are parted by semicolons, so that 0,5 is a number.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    lines: tuple[int, ...]
    decimal_comma: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def require(self, columns: Sequence[str]) -> None:
        """Raise `BadInput` unless all `columns` are there."""
        missing = [column for column in columns if column not in self.columns]
        if missing:
            raise BadInput.columns(self.path, missing, self.columns)

    def text(self, column: str) -> list[str]:
        """One column as text."""
        self.require([column])
        return [row[column] for row in self.rows]

    def numbers(self, column: str) -> np.ndarray:
        """One column as float64, shape (rows,).

        Raises
        ------
        BadInput
            When a cell is no finite number.
        """
        cells = self.text(column)
        try:
            values = np.array([self.number(cell) for cell in cells], dtype=np.float64)
        except ValueError:
            values = np.array([np.nan])
        if not np.isfinite(values).all():
            for cell, line in zip(cells, self.lines, strict=True):
                if not _finite(cell, self.decimal_comma):
                    raise BadInput(
                        self.path, "a table of spots", f"line {line} has {cell!r} as {column}, which is no number"
                    )
        return values

    def number(self, cell: str) -> float:
        """One cell as a number, or ValueError."""
        return float(cell.replace(",", ".") if self.decimal_comma else cell)


def read_table(path: Path, what: str, *, columns: Sequence[str] | None = None) -> Table:
    """Read a small table parted by tabs, commas or semicolons, gzipped or not.

    Parameters
    ----------
    path : pathlib.Path
    what : str
        What it should be, for the error: "a cohort file".
    columns : sequence of str, optional
        Names of the columns, for a file without a header line.

    Raises
    ------
    MissingInput, BadInput
    """
    text = _text(path, what)
    first = text.lstrip("\n").split("\n", 1)[0]
    delimiter = max("\t,;", key=first.count)  # the first of these wins a tie
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    names = tuple(columns) if columns is not None else None
    rows, lines = [], []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            cells = [cell.strip() for cell in cells]
            if names is None:
                names = _header(cells, path, what)
                continue
            if len(cells) > len(names) and any(cells[len(names) :]):
                raise BadInput(path, what, f"line {reader.line_num} has {len(cells)} cells, not {len(names)}")
            cells += [""] * (len(names) - len(cells))
            rows.append(dict(zip(names, cells, strict=False)))
            lines.append(reader.line_num)
    except csv.Error as error:
        raise BadInput(path, what, f"line {reader.line_num}: {error}") from error
    if names is None:
        raise BadInput(path, what, "it is empty")
    return Table(Path(path), names, tuple(rows), tuple(lines), delimiter == ";")


def read_bytes(path: Path, what: str) -> bytes:
    """The whole content, unzipped when it is gzipped.

    Raises
    ------
    MissingInput, BadInput
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInput(path, f"The file (wanted: {what})")
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == GZIP_MAGIC else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadInput(path, what, f"the gzip file is truncated or damaged ({error})") from error
    except OSError as error:
        raise BadInput(path, what, str(error)) from error


def _text(path: Path, what: str) -> str:
    content = read_bytes(path, what)
    encoding = "utf-16" if content[:2] in UTF16_MARKS else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise BadInput(path, what, "it is no UTF-8 text (in Excel, save it as 'CSV UTF-8')") from error
    if "\0" in text:
        raise BadInput(path, what, "it is no text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _header(cells: list[str], path: Path, what: str) -> tuple[str, ...]:
    while cells and not cells[-1]:  # Excel leaves empty columns at the end
        cells = cells[:-1]
    twice = sorted({name for name in cells if cells.count(name) > 1})
    if twice:
        raise BadInput(path, what, f"two columns are named {twice[0]!r}")
    return tuple(cells)


def _finite(cell: str, decimal_comma: bool) -> bool:
    try:
        return bool(np.isfinite(float(cell.replace(",", ".") if decimal_comma else cell)))
    except ValueError:
        return False
