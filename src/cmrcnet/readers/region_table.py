"""A table of regions: which part of the tissue each spot lies in, as somebody has labelled it.

    spot	region
    9x13	breast glands 1

A cohort file names one a section in its column `regions`.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from cmrcnet.errors import BadInput, SectionError, TooFew
from cmrcnet.readers.cohort import cohort_rows
from cmrcnet.readers.delimited import Table, read_table

WHAT = "a table of regions"
LABEL_COLUMNS = ("region", "label", "annotation")
COLUMN = "regions"
"""Column of a cohort file that names each section's table."""


def read_regions(path: Path | str) -> pd.Series:
    """Read the region of each spot.

    Parameters
    ----------
    path : path
        Text table with the spot's name in `spot` or `barcode`, or made of `x` and `y`; the label in `region`
        (or `label`, `annotation`). Spots with an empty label are left out.

    Returns
    -------
    pandas.Series
        Label (text) by barcode, in the order of the table; named after the file.

    Raises
    ------
    MissingInput, BadInput, SectionError
    """
    path = Path(path)
    table = read_table(path, WHAT)
    column = next((name for name in LABEL_COLUMNS if name in table.columns), None)
    if column is None:
        raise BadInput.columns(path, ["region"], table.columns)
    names = _names(table)
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if repeated:
        raise SectionError.repeated_barcodes(repeated, path.name)
    nameless = [line for name, line in zip(names, table.lines, strict=True) if not name]
    if nameless:
        raise BadInput(path, WHAT, f"line {nameless[0]} names no spot")
    labels = table.text(column)
    if not any(labels):
        raise BadInput(path, WHAT, "no spot has a label")
    kept = [(name, label) for name, label in zip(names, labels, strict=True) if label]
    return pd.Series([label for _, label in kept], index=[name for name, _ in kept], name=path.name, dtype=object)


def read_cohort_regions(csv: Path | str) -> dict[str, pd.Series]:
    """Read the regions of every section of a cohort file that has them.

    Parameters
    ----------
    csv : path
        A cohort file with a column `regions`: paths relative to it, empty where a section has none.

    Returns
    -------
    dict of str to pandas.Series
        By section, in the order of the file.

    Raises
    ------
    BadInput, TooFew, MissingInput, SectionError
    """
    csv = Path(csv)
    rows = cohort_rows(csv)
    if all(COLUMN not in row.facts for row in rows):
        raise BadInput.columns(csv, [COLUMN], sorted({name for row in rows for name in row.facts}))
    found = {row.source.name: row.facts[COLUMN] for row in rows if row.facts.get(COLUMN) and row.source.name}
    if not found:
        raise TooFew(f"sections of {csv.name} name a table of regions", 0, 1, "fill in its column regions")
    return {section: read_regions(csv.parent / name) for section, name in found.items()}


def _names(table: Table) -> list[str]:
    for column in ("spot", "barcode"):
        if column in table.columns:
            return table.text(column)
    if "x" in table.columns and "y" in table.columns:
        return [f"{x}x{y}" if x and y else "" for x, y in zip(table.text("x"), table.text("y"), strict=True)]
    raise BadInput.columns(table.path, ["spot (or x and y)"], table.columns)
