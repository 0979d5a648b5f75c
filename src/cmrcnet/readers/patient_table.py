"""Tables of patients (CSV, TSV or parquet): names as text, numbers as numbers, anything unclear refused."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from cmrcnet.errors import BadInput, CmrcnetWarning, MissingExtra, MissingInput
from cmrcnet.readers.tables import NOTHING, rectangular_text
from cmrcnet.slides.section import repeated
from cmrcnet.storage.names import id_text

if TYPE_CHECKING:
    import pandas as pd

NAMES = ("patient", "case", "slide")
"""Columns that are names, also where they look like numbers."""


def read_patients(path: Path) -> pd.DataFrame:
    """Read a table with one row a patient (or case, or slide).

    Parameters
    ----------
    path : pathlib.Path
        Text separated by commas, tabs or semicolons (gzipped or not), or ``.parquet``.

    Returns
    -------
    pandas.DataFrame
        ``patient``, ``case`` and ``slide`` (in any case of letters) are text without surrounding spaces, columns of
        numbers float64 with NaN where a cell states nothing (empty, NA, ...), all others text, missing cells None.

    Raises
    ------
    MissingInput, BadInput, MissingExtra
        Also for two columns of one name, an infinite number, or a row without a patient, case or slide.
    """
    import pandas as pd

    path = Path(path)
    if path.suffix == ".parquet":
        if not path.is_file():
            raise MissingInput(path, "The table of patients")
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise MissingExtra("pyarrow", "A parquet file", "'cmrcnet[platforms]'") from error
        try:
            table = pyarrow.parquet.read_table(path).to_pandas()
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise BadInput(path, "a parquet table", str(error).splitlines()[0]) from error
        names = [str(name).strip() for name in table.columns]
    else:
        text, delimiter, names = rectangular_text(path, "The table of patients", "a table of patients")
        try:
            read_csv: Any = pd.read_csv
            table = read_csv(
                io.StringIO(text),
                sep=delimiter,
                header=0,
                names=range(len(names)),
                index_col=False,
                decimal="," if delimiter == ";" else ".",
                dtype={place: str for place, name in enumerate(names) if name.lower() in NAMES},
                keep_default_na=False,
                na_values=sorted({*NOTHING, *(word.upper() for word in NOTHING), "NaN", "None", "N/a"}),
                low_memory=False,
                float_precision="round_trip",
            )
        except (ValueError, pd.errors.ParserError) as error:
            raise BadInput(path, "a table of patients", str(error).splitlines()[0]) from error
    names = [name.lower() if name.lower() in NAMES else name for name in names]
    if twice := repeated(names):
        raise BadInput(path, "a table of patients", f"the column {twice[0]!r} is there twice")
    table.columns = pd.Index(names)
    if "patient" not in names:
        raise BadInput.columns(path, ["patient"], names)
    for name in names:
        column = table[name]
        if name in NAMES:
            cells = [id_text(cell) for cell in column]
            if not all(cells):
                row = [not cell for cell in cells].index(True)
                raise BadInput(path, "a table of patients", f"row {row + 1} below the header names no {name}")
            table[name] = pd.Series(cells, dtype=object, index=table.index)
        elif column.dtype.kind in "biuf":
            table[name] = column.astype(np.float64)
            if np.isinf(table[name].to_numpy()).any():
                raise BadInput(path, "a table of patients", f"the column {name} holds an infinite number")
        else:
            cells = [None if pd.isna(cell) else str(cell) for cell in column]
            table[name] = pd.Series(cells, dtype=object, index=table.index)
            words, number = [cell for cell in cells if cell is not None], cast("Any", pd.to_numeric)
            other = np.isnan(np.asarray(number(np.array(words, object), errors="coerce"), np.float64))
            if other.any() and other.mean() < 0.5:
                warnings.warn(
                    f"The column {name} of {path.name} is read as categories: {int((~other).sum())} of its cells are "
                    f"numbers, but one is {words[int(other.argmax())]!r}. If it is a column of numbers, "
                    "correct that cell or leave it empty.",
                    CmrcnetWarning,
                    stacklevel=2,
                )
    if not len(table):
        raise BadInput(path, "a table of patients", "it has no rows")
    return table
