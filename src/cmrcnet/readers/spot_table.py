"""A table of locations on a slide: where each spot's centre lies, what it is called, whether it is under tissue."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cmrcnet.errors import BadInput, TooFew
from cmrcnet.readers.delimited import Table, read_table
from cmrcnet.slides.spots import Spots

SPOT_UM = 100.0
"""Diameter of a spot on first-generation arrays (Ståhl et al., Science 2016)."""


def read_spots(path: Path | str, *, diameter_um: float = SPOT_UM) -> Spots:
    """Read the locations at which a slide is to be predicted. No counts are needed.

    Parameters
    ----------
    path : path
        Text table with `pixel_x` and `pixel_y` (level-0 pixels of the slide); the names in `spot` or `barcode`, or
        made of `x` and `y`, or else the row's number; only rows whose `selected` is not 0.
    diameter_um : float
        Diameter of a spot in micrometres.

    Returns
    -------
    Spots
        In the order of the table.

    Raises
    ------
    MissingInput, BadInput, SectionError, TooFew
    """
    path = Path(path)
    table = read_table(path, "a table of spots")
    centres = np.column_stack([table.numbers("pixel_x"), table.numbers("pixel_y")])
    ways = spot_names(table)
    names = ways[0] if ways else [str(i + 1) for i in range(len(table))]
    selected = selected_spots(table)
    if not selected.any():
        raise TooFew(f"spots in {path}", 0, 1, "write one row a spot (rows whose `selected` is 0 do not count)")
    return Spots(tuple(names), centres, diameter_um).take(selected)


def spot_names(table: Table) -> list[list[str]]:
    """Every way in which a spot table can name its spots, the surest first; none when it has no such columns."""
    table.require(["pixel_x", "pixel_y"])
    found = [table.text(column) for column in ("spot", "barcode") if column in table.columns]
    for x, y in (("x", "y"), ("new_x", "new_y")):
        if x in table.columns and y in table.columns:
            found.append([f"{a}x{b}" for a, b in zip(table.text(x), table.text(y), strict=True)])
    return found


def required_spot_names(table: Table) -> list[list[str]]:
    """As `spot_names`, or `BadInput`: counts are matched to spots by name."""
    found = spot_names(table)
    if not found:
        raise BadInput.columns(table.path, ["spot (or x and y)"], table.columns)
    return found


def selected_spots(table: Table) -> np.ndarray:
    """Which rows are under tissue, as bool (rows,); all of them in a table that does not say."""
    if "selected" not in table.columns:
        return np.ones(len(table), dtype=bool)
    words = {"true": 1.0, "false": 0.0, "": 1.0}
    cells = [cell.lower() for cell in table.text("selected")]
    if all(cell in words for cell in cells):
        return np.array([words[cell] for cell in cells]) != 0
    return table.numbers("selected") != 0
