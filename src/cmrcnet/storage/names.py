"""Names of sections, patients and genes in what cmrcnet writes: as file names and as text cells of CSV files, and back.

No spreadsheet takes a guarded cell for a formula.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote_to_bytes

import numpy as np

from cmrcnet.errors import BadInput, BadOption

if TYPE_CHECKING:
    import pandas as pd

LONGEST = 200
"""Most bytes of a file name made of a name; endings are added to it, and file systems take 255."""
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_GUARDED = re.compile(r"'+[=+\-@\t\r]")


def id_text(cell: Any) -> str:
    """A name in a table as text without surrounding spaces, "" where the cell holds none.

    A whole number that is stored as a decimal one, as pandas does beside an empty cell, is written without the point.

    Examples
    --------
    >>> id_text(" 007 "), id_text(7.0), id_text(float("nan")), id_text(None)
    ('007', '7', '', '')
    """
    import pandas as pd

    if pd.isna(cell):
        return ""
    return str(int(cell) if isinstance(cell, float | np.floating) and float(cell).is_integer() else cell).strip()


def file_name(name: str) -> str:
    """Write a name so that every file system takes it and `name_of_file` reverses it.

    Letters, digits, ``_``, ``-``, ``.`` and spaces stay; all else becomes ``%XX``, and so do a dot or space at either
    end (hidden files, names that Windows shortens) and the first letter of a name that Windows reserves.

    Parameters
    ----------
    name : str
        Of a section, patient or fold.

    Raises
    ------
    BadOption
        The name is empty, or makes a file name of more than `LONGEST` bytes.

    Examples
    --------
    >>> file_name("S24/01187"), name_of_file("S24%2F01187")
    ('S24%2F01187', 'S24/01187')
    """
    safe = quote(name, safe=" ", errors="surrogatepass").replace("~", "%7E")
    if safe[:1] in (".", " ") or _RESERVED.match(safe):
        safe = f"%{ord(safe[0]):02X}{safe[1:]}"
    if safe[-1:] in (".", " "):
        safe = f"{safe[:-1]}%{ord(safe[-1]):02X}"
    if not 0 < len(safe) <= LONGEST:
        want = f"1 to {LONGEST} characters (a letter outside a-z counts as 3 for each of its bytes)"
        raise BadOption("name", name if len(name) <= 40 else f"{name[:40]}...", want)
    return safe


def name_of_file(stem: str) -> str:
    """Read the name that `file_name` wrote.

    Parameters
    ----------
    stem : str
        File name without its ending.

    Raises
    ------
    BadInput
        The file name was not made by `file_name`.

    Examples
    --------
    >>> name_of_file(file_name("Müller, A"))
    'Müller, A'
    """
    try:
        return unquote_to_bytes(stem).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise BadInput(stem, "the name of a section in a file name", "its %XX parts are no UTF-8") from error


def guard_cell(text: str) -> str:
    """Put a quote before a text that a spreadsheet would take for a formula; `bare_cell` removes it.

    Examples
    --------
    >>> guard_cell("=1+1"), bare_cell(guard_cell("=1+1")), guard_cell("S24/01187")
    ("'=1+1", '=1+1', 'S24/01187')
    """
    return f"'{text}" if _FORMULA.match(text) else text


def bare_cell(cell: str) -> str:
    """The text that `guard_cell` was given."""
    return cell[1:] if _GUARDED.match(cell) else cell


def guard_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table with guarded text cells and column names; numbers, also negative ones, stay as they are."""
    guarded = {
        name: [guard_cell(cell) if isinstance(cell, str) else cell for cell in table[name]]
        for name in table.columns
        if table[name].dtype.kind not in "biufcM"
    }
    table = table.assign(**guarded) if guarded else table
    return table.rename(columns={name: guard_cell(name) for name in table.columns if isinstance(name, str)})
