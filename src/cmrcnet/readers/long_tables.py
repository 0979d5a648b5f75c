"""Tables of millions of rows (molecules, cells, bins), text or Parquet: a few columns, a block at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cmrcnet.errors import BadInput, MissingExtra, MissingInput
from cmrcnet.readers.text_files import open_text
from cmrcnet.slides.slide_files import require_file
from cmrcnet.storage.refusals import first_line

if TYPE_CHECKING:
    from pandas import DataFrame
    from pyarrow import Array, RecordBatch

BLOCK_LINES = 1 << 19
LONGEST_HEADER = 16 << 20
"""Most bytes of the line of column names; 20,000 genes have 0.2 MB."""
MOST_COMMENTS = 1000
"""Most lines that begin with # before the column names."""
BATCH_ROWS = 1 << 20


def long_table(
    path: Path,
    what: str,
    texts: Mapping[str, Sequence[str]],
    numbers: Mapping[str, Sequence[str]],
    *,
    optional: Mapping[str, Sequence[str]] | None = None,
    lines: int = BLOCK_LINES,
) -> Iterator[DataFrame]:
    """Blocks of lines of a table separated by tabs, commas or semicolons, gzipped or not.

    Parameters
    ----------
    path : pathlib.Path
        Lines that begin with # before the column names are skipped.
    what : str
        Kind of table, for the errors: "a table of molecules".
    texts, numbers : mapping of str to sequence of str
        Name of a column in the result, and the names that it may have in the file. An empty list of names makes a
        column of the file's first one.
    optional : mapping of str to sequence of str
        Further numbers, read where they are there.
    lines : int
        Most lines of a block, which bounds the memory.

    Yields
    ------
    pandas.DataFrame
        Texts as categories, numbers as finite float64.

    Raises
    ------
    MissingInput, BadInput
    """
    import pandas as pd

    try:
        with open_text(path, f"The file (wanted: {what})") as file:
            header = _header(file, path, what)
            delimiter = max("\t,;", key=header.count)
            names = [cell.strip().strip('"') for cell in header.rstrip("\r\n").split(delimiter)]
            found = {
                key: names[0] if not known else next((name for name in known if name in names), None)
                for key, known in (*texts.items(), *numbers.items())
            }
            if missing := [known[0] for key, known in (*texts.items(), *numbers.items()) if found[key] is None]:
                raise BadInput.columns(path, missing, names)
            for key, known in (optional or {}).items():
                found[key] = next((name for name in known if name in names), None)
            places = {names.index(name): key for key, name in found.items() if name is not None}
            if len(places) < sum(name is not None for name in found.values()):
                raise BadInput(path, what, f"columns have the same name, or none ({', '.join(names[:12])})")
            numeric = {place for place, key in places.items() if key not in texts}
            read_csv: Any = pd.read_csv
            blocks = read_csv(
                file,
                sep=delimiter,
                header=None,
                names=range(len(names)),
                dtype={place: np.float64 if place in numeric else "category" for place in range(len(names))},
                chunksize=lines,
                keep_default_na=False,
                na_values={place: [""] for place in places},
                decimal="," if delimiter == ";" else ".",
                float_precision="round_trip",  # the others crash on an exponent of many digits
            )
            for block in blocks:
                if not isinstance(block.index, pd.RangeIndex):  # pandas takes the first of too many cells as an index
                    raise BadInput(path, what, f"its lines have more cells than its {len(names)} names of columns")
                block = block[list(places)].rename(columns=places)
                if block.isna().to_numpy().any() or not np.isfinite(block.drop(columns=[*texts]).to_numpy()).all():
                    raise BadInput(path, what, f"a line near {block.index[0] + 2} has an empty cell or no number")
                if any("\n" in str(text) for key in texts for text in block[key].cat.categories):
                    raise BadInput(path, what, "a quoted cell holds a line end; close the quote")
                yield block
    except (ValueError, OSError, OverflowError) as error:
        if isinstance(error, BadInput | MissingInput):
            raise
        raise BadInput(path, what, f"it is truncated, damaged or of another kind ({first_line(error)})") from error


def comment_lines(path: Path, what: str) -> dict[str, str]:
    """What the lines ``#Key=value`` before the column names of a table state."""
    stated = {}
    with open_text(path, f"The file (wanted: {what})") as file:
        for _ in range(MOST_COMMENTS):
            line = file.readline(1 << 12).decode("utf-8", "replace").strip()
            if not line.startswith("#"):
                break
            key, _, value = line.lstrip("#").partition("=")
            stated[key.strip()] = value.strip()
    return stated


def _header(file: Any, path: Path, what: str) -> str:
    """The line of column names."""
    for _ in range(MOST_COMMENTS):
        line = file.readline(LONGEST_HEADER)
        if not line.startswith(b"#"):
            if not line.strip():
                raise BadInput(path, what, "it has no line of column names")
            return line.decode("utf-8")
    raise BadInput(path, what, f"it begins with more than {MOST_COMMENTS} lines of #")


def parquet_batches(
    path: Path, what: str, columns: Sequence[str], *, optional: Sequence[str] = (), rows: int = BATCH_ROWS
) -> Iterator[RecordBatch]:
    """Batches of rows of a Parquet file, with the asked columns only.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    what : str
        Kind of table, for the errors: "bin positions".
    columns : sequence of str
        Columns that must be there.
    optional : sequence of str
        Columns that are read where they are there.
    rows : int
        Most rows of a batch, which bounds the memory.

    Raises
    ------
    MissingExtra, MissingInput, BadInput
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", f"Reading {Path(path).name}", "'cmrcnet[platforms]'") from error
    require_file(path, f"The file of {what}")
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            names = file.schema_arrow.names
            if missing := [column for column in columns if column not in names]:
                raise BadInput.columns(path, missing, names)
            wanted = [*columns, *(column for column in optional if column in names)]
            yield from file.iter_batches(batch_size=rows, columns=wanted)
    except (pyarrow.ArrowException, OSError) as error:
        raise BadInput(
            path, f"a Parquet table of {what}", f"the file is truncated or damaged ({first_line(error)})"
        ) from error


def numbers_of(batch: RecordBatch, column: str, path: Path, what: str) -> np.ndarray:
    """One column of a batch as float64 or int64, shape (rows,); `BadInput` when a cell is empty or no number."""
    values = batch.column(column)
    numbers = values.to_numpy(zero_copy_only=False) if not values.null_count else np.empty(0, dtype=object)
    if numbers.dtype.kind not in "iufb" or (numbers.dtype.kind == "f" and not np.isfinite(numbers).all()):
        raise BadInput(path, f"a Parquet table of {what}", f"its column {column} holds empty cells or no numbers")
    return numbers.astype(np.float64 if numbers.dtype.kind == "f" else np.int64)


def texts_of(values: Array, path: Path) -> list[str]:
    """A column of text or of UTF-8 bytes, which early Xenium files hold, as text; `BadInput` when it is neither."""
    try:
        return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in values.to_pylist()]
    except UnicodeDecodeError as error:
        raise BadInput(path, "a Parquet table", f"it holds names that are no UTF-8 text ({error.reason})") from error
