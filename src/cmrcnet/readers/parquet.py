"""Parquet tables, read a few columns and a bounded number of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.errors import BadInput, MissingExtra
from cmrcnet.readers.text_files import require_file
from cmrcnet.storage.refusals import first_line

if TYPE_CHECKING:
    from pyarrow import Array, RecordBatch

BATCH_ROWS = 1 << 20


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
