"""Text cells of the CSV files that cmrcnet writes: no spreadsheet takes a name for a formula, and names come back."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_GUARDED = re.compile(r"'+[=+\-@\t\r]")


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
