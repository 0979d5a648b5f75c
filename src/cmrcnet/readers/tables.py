"""Delimited text: small tables (cohort files, spot files), and count tables read straight into a sparse matrix.

Excel writes a byte order mark, semicolons where the comma is the decimal sign, and sometimes UTF-16; all are read.

A section of 300 spots and 15,000 genes is 9 MB of text, nine tenths of it zeros. The text is cut into blocks of whole
lines; in each block NumPy finds the cells, and only those that are not "0" are parsed, so no dense matrix is made.
pandas takes 4 to 9 times as long on the shared sections (25 to 110 ms a section here). Long because it is one thing:
text tables.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadInput, MissingInput
from cmrcnet.readers.text_files import open_text, read_text
from cmrcnet.slides.section import repeated

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
NOTHING = ("", "na", "n/a", "nan", "null", "none")
"""Cells, in lower case, that state nothing where a cell may be empty."""


@dataclass(frozen=True, eq=False)
class Table:
    """A table of text cells.

    Parameters
    ----------
    path : pathlib.Path
        The file, for messages.
    columns : tuple of str
        In the order of the file.
    rows : tuple of dict
        Column name to cell, stripped.
    lines : tuple of int
        Line of the file, counted from 1, on which each row ends.
    decimal_comma : bool
        The separator is the semicolon, so that 0,5 is a number.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    lines: tuple[int, ...]
    decimal_comma: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def require(self, columns: Sequence[str]) -> None:
        """Raise `BadInput` unless the table has all `columns`."""
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
            A cell is no finite number.
        """
        values = []
        for cell, line in zip(self.text(column), self.lines, strict=True):
            try:
                values.append(self.number(cell))
            except ValueError:
                values.append(np.nan)
            if not np.isfinite(values[-1]):
                why = f"line {line} has {cell!r} as {column}, which is no number"
                raise BadInput(self.path, "a table of spots", why)
        return np.array(values, dtype=np.float64)

    def number(self, cell: str) -> float:
        """One cell as a number, or ValueError."""
        text = cell.replace(",", ".") if self.decimal_comma else cell
        if not NUMBER.fullmatch(text):
            raise ValueError(f"{cell!r} is no number")
        return float(text)


def read_table(path: Path, what: str, *, columns: Sequence[str] | None = None) -> Table:
    """Read a small table separated by tabs, commas or semicolons, gzipped or not.

    Parameters
    ----------
    what : str
        Kind of table, for the error: "a cohort file".
    columns : sequence of str, optional
        Names of the columns, for a file without a header line.

    Raises
    ------
    MissingInput
    BadInput
        Also for a quote that is left open, a cell that runs over a line end, two columns of one name, and a row with
        more or fewer cells than the header; with the line.
    """
    text = read_text(path, f"The file (wanted: {what})")
    delimiter = delimiter_of(text)
    names = tuple(columns) if columns is not None else None
    rows, lines = [], []
    for line, cells in _rows(text, delimiter, path, what):
        if names is None:
            while cells and not cells[-1]:  # Excel leaves empty columns at the end
                cells.pop()
            names = tuple(cells)
            if twice := repeated(names):
                raise BadInput(path, what, f"two columns are named {twice[0]!r}")
            continue
        if len(cells) < len(names) or any(cells[len(names) :]):
            raise BadInput(path, what, f"line {line} has {len(cells)} cells, not {len(names)}")
        rows.append(dict(zip(names, cells, strict=False)))
        lines.append(line)
    if names is None:
        raise BadInput(path, what, "it is empty")
    return Table(Path(path), names, tuple(rows), tuple(lines), delimiter == ";")


def delimiter_of(text: str) -> str:
    """Tab, comma or semicolon, whichever the first line that is not empty has most of; the first of them wins a tie."""
    return max("\t,;", key=text.lstrip("\n").split("\n", 1)[0].count)


def rectangular_text(path: Path, called: str, what: str) -> tuple[str, str, list[str]]:
    """Text for pandas, which shifts columns where a line is longer than the header and fills up where one is shorter.

    Returns
    -------
    str
        The text.
    str
        Its delimiter.
    list of str
        The header's names; pandas renames those that are there twice.

    Raises
    ------
    MissingInput
    BadInput
        A line has more or fewer cells than the header.
    """
    text = read_text(path, called)
    delimiter = delimiter_of(text)
    names: list[str] = []
    rows = csv.reader(io.StringIO(text), delimiter=delimiter)
    try:
        for cells in rows:
            names = names or [name.strip() for name in cells]
            if cells and len(cells) != len(names):
                raise BadInput(path, what, f"line {rows.line_num} has {len(cells)} cells, and the header {len(names)}")
    except csv.Error as error:
        raise BadInput(path, what, f"line {rows.line_num}: {error}") from error
    return text, delimiter, names


def _rows(text: str, delimiter: str, path: Path, what: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and stripped cells of every row that is not empty."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise BadInput(path, what, f"line {line}: {error}; is a quote left open?") from error
        if cells is None:
            return
        if any("\n" in cell for cell in cells):
            raise BadInput(path, what, f"line {line} holds a quoted cell with a line end in it; close the quote")
        if any(cell.strip() for cell in cells):
            yield line, [cell.strip() for cell in cells]


COUNTS = "a table of counts"
BLOCK_BYTES = 8 << 20
LINE_END = ord("\n")
LONGEST_LINE = 16 << 20
"""Most bytes of a line; a row of 60,000 genes has 0.4 MB."""


@dataclass(frozen=True, eq=False)
class CountTable:
    """A table of numbers with a name for each row and each column."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: sparse.csr_matrix
    """Shape (rows, columns), float64; zeros are not stored, NaN is."""


def read_count_table(path: Path, block_bytes: int = BLOCK_BYTES) -> CountTable:
    """Read a table of counts separated by tabs, commas or semicolons, gzipped or not.

    The first line names the columns, the first cell of every other line the row. A first line that is one cell
    shorter (as R writes it) names the columns only.

    Parameters
    ----------
    block_bytes : int
        Size of the blocks of text that are parsed at once.

    Raises
    ------
    MissingInput, BadInput
    """
    path = Path(path)
    try:
        with open_text(path, "The counts file") as file:
            return _read(file, path, block_bytes)
    except UnicodeDecodeError as error:
        raise BadInput(path, COUNTS, "it is no UTF-8 text") from error
    except OSError as error:
        if isinstance(error, BadInput | MissingInput):
            raise
        raise BadInput(path, COUNTS, error.strerror or str(error)) from error


def first_names(path: Path, lines: int = 4) -> tuple[list[str], list[str]]:
    """Names of the first rows and of the columns, to recognise a format; ([], []) when it is no table."""
    with open_text(Path(path), "The counts file") as file:
        header = file.readline(LONGEST_LINE)
        delimiter = _delimiter(header)
        names = [_name(file.readline(LONGEST_LINE).split(delimiter, 1)[0]) for _ in range(lines)]
    return [name for name in names if name], [_name(cell) for cell in header.rstrip(b"\r\n").split(delimiter)][1:]


def _read(file: BinaryIO, path: Path, block_bytes: int) -> CountTable:
    header = _line(file, path)
    delimiter = _delimiter(header)
    columns = [_name(cell) for cell in header.rstrip(b"\r\n").split(delimiter)]
    if len(columns) < 2:
        raise BadInput(path, COUNTS, "its first line holds fewer than two names")
    names: list[str] = []
    blocks: list[sparse.csr_matrix] = []
    cells = None
    while text := file.read(block_bytes):
        text = (text + _line(file, path)).replace(b"\r\n", b"\n")
        if b"\0" in text:
            raise BadInput(path, COUNTS, f"a NUL byte lies behind row {len(names)}; is it text?")
        if b"\n\n" in text or text.startswith(b"\n"):
            text = b"".join(line + b"\n" for line in text.split(b"\n") if line.strip())
        if not text.strip():
            continue
        text = text if text.endswith(b"\n") else text + b"\n"
        cells = cells or text.count(delimiter, 0, text.index(b"\n")) + 1
        ids, values = _block(text, delimiter, cells, path, len(names))
        names += ids
        blocks.append(values)
    if not names:
        raise BadInput(path, COUNTS, "it holds no row")
    if cells == len(columns):
        columns = columns[1:]
    elif cells != len(columns) + 1:
        raise BadInput(path, COUNTS, f"its first line has {len(columns)} cells, the others {cells}")
    values = sparse.csr_matrix(sparse.vstack(blocks, format="csr"))
    while columns and not columns[-1] and np.isnan(values[:, len(columns) - 1].toarray()).all():
        columns.pop()  # Excel leaves empty columns at the end
        values = values[:, : len(columns)]
    return CountTable(tuple(names), tuple(columns), values)


def _line(file: BinaryIO, path: Path) -> bytes:
    """The rest of a line, with its end; `BadInput` when it is longer than `LONGEST_LINE`."""
    line = file.readline(LONGEST_LINE + 1)
    if len(line) > LONGEST_LINE:
        raise BadInput(path, COUNTS, f"a line holds more than {LONGEST_LINE >> 20} MB")
    return line


def _block(text: bytes, delimiter: bytes, cells: int, path: Path, before: int) -> tuple[list[str], sparse.csr_matrix]:
    """Row names, and values without the zeros, of whole lines of `cells` cells each."""
    letters = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero((letters == ord(delimiter)) | (letters == LINE_END))
    line_ends = np.flatnonzero(letters[ends] == LINE_END)
    wrong = np.flatnonzero(np.diff(line_ends, prepend=-1) != cells)
    if len(wrong):
        has = int(np.diff(line_ends, prepend=-1)[wrong[0]])
        why = f"row {before + wrong[0] + 1} has {has} cells, the first row {cells}; is it cut off?"
        raise BadInput(path, COUNTS, why)
    starts = np.empty_like(ends)
    starts[0], starts[1:] = 0, ends[:-1] + 1
    lengths = ends - starts
    single = lengths == 1
    digit = letters[starts].astype(np.int16) - ord("0")
    first_cell = np.zeros(len(ends), dtype=bool)
    first_cell[::cells] = True
    counted = np.flatnonzero(~first_cell & ~(single & (digit == 0)))
    values = digit[counted].astype(np.float64)
    for i in np.flatnonzero(~single[counted] | (values < 0) | (values > 9)):  # more than one digit: few
        cell = text[starts[counted[i]] : ends[counted[i]]]
        values[i] = _number(cell, delimiter, path, before + counted[i] // cells + 1)
    rows, columns = counted // cells, counted % cells - 1
    kept = values != 0  # "0.0"; NaN stays and is reported by `check_counts`
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows[kept], minlength=len(line_ends)))])
    matrix = sparse.csr_matrix((values[kept], columns[kept], indptr), shape=(len(line_ends), cells - 1))
    first = np.flatnonzero(first_cell)
    return [_name(text[starts[i] : ends[i]]) for i in first], matrix


def _number(cell: bytes, delimiter: bytes, path: Path, row: int) -> float:
    text = cell.strip().strip(b'"').decode("utf-8", "replace")
    if text.lower() in NOTHING:
        return float("nan")
    number = text.replace(",", ".") if delimiter == b";" else text
    if not NUMBER.fullmatch(number):
        raise BadInput(path, COUNTS, f"row {row} holds {text[:30]!r}, which is no number")
    return float(number)


def _delimiter(header: bytes) -> bytes:
    return max((b"\t", b",", b";"), key=header.count)


def _name(cell: bytes) -> str:
    return cell.decode("utf-8").strip().strip('"').strip()


# --- tables of spots -------------------------------------------------------------------------------------------------

SPOT_NAME = re.compile(r"X?(-?\d+(?:[.,]\d+)?)x(-?\d+(?:[.,]\d+)?)", re.ASCII)
"""A location on the array, ``10x15`` or ``5.907x2.103``; R puts an X before column names that begin with a digit."""


def spot_key(name: str) -> str:
    """Write the name of a spot so that names of the same numbers are equal; other names stay.

    Examples
    --------
    >>> spot_key("9.010x2.100"), spot_key("X10x15"), spot_key("9,01x15.0"), spot_key("AAAC-1")
    ('9.01x2.1', '10x15', '9.01x15', 'AAAC-1')
    """
    match = SPOT_NAME.fullmatch(name)
    return "x".join(f"{float(part.replace(',', '.')):.15g}" for part in match.groups()) if match else name


def spot_names(table: Table, required: bool = False) -> list[list[str]]:
    """Every way in which a spot table can name its spots, the surest first.

    Without columns of names the list is empty, or, when names are `required`, `BadInput` is raised.
    """
    table.require(["pixel_x", "pixel_y"])
    found = [table.text(column) for column in ("spot", "barcode") if column in table.columns]
    for x, y in (("x", "y"), ("new_x", "new_y")):
        if x in table.columns and y in table.columns:
            found.append([f"{a}x{b}" for a, b in zip(table.text(x), table.text(y), strict=True)])
    if required and not found:
        raise BadInput.columns(table.path, ["spot (or x and y)"], table.columns)
    return found


def selected_spots(table: Table) -> np.ndarray:
    """Which rows are under tissue by the column `selected`, as bool (rows,); those where it states nothing are."""
    if "selected" not in table.columns:
        return np.ones(len(table), dtype=bool)
    words = {"true": True, "false": False, **dict.fromkeys(NOTHING, True)}
    selected = []
    for cell, line in zip(table.text("selected"), table.lines, strict=True):
        try:
            word = words.get(cell.lower())
            selected.append(table.number(cell) != 0 if word is None else word)
        except ValueError:
            why = f"line {line} has {cell!r} as selected; wanted 0, 1, TRUE, FALSE or nothing"
            raise BadInput(table.path, "a table of spots", why) from None
    return np.array(selected, dtype=bool)
