"""Annotations of a slide that users give: spot positions, region labels and tissue masks.

A table of regions has one row a spot; a cohort file names one a section in its column `regions`:

    spot	region
    9x13	breast glands 1
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.errors import BadInput, MissingInput, SectionError, TooFew
from cmrcnet.readers.cohort import cohort_rows
from cmrcnet.readers.tables import NOTHING, read_table, selected_spots, spot_names
from cmrcnet.slides.section import Spots, repeated
from cmrcnet.slides.slide import Slide, open_slide
from cmrcnet.slides.tissue import TissueMask

if TYPE_CHECKING:
    import pandas as pd

LEGACY_SPOT_UM = 100.0
"""Diameter of a spot on first-generation arrays (Ståhl et al., Science 2016)."""


def read_spots(path: Path | str, *, diameter_um: float = LEGACY_SPOT_UM) -> Spots:
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

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "spots.csv"
    >>> _ = path.write_text("spot,pixel_x,pixel_y,selected\\na,100,200,1\\nb,300,200,0\\n")
    >>> read_spots(path, diameter_um=55).barcodes
    ('a',)
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


REGIONS = "a table of regions"
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
    import pandas as pd

    path = Path(path)
    table = read_table(path, REGIONS)
    column = next((name for name in LABEL_COLUMNS if name in table.columns), None)
    if column is None:
        raise BadInput.columns(path, ["region"], table.columns)
    named = next((name for name in ("spot", "barcode") if name in table.columns), None)
    if named is not None:
        names = table.text(named)
    elif "x" in table.columns and "y" in table.columns:
        names = [f"{x}x{y}" if x and y else "" for x, y in zip(table.text("x"), table.text("y"), strict=True)]
    else:
        raise BadInput.columns(path, ["spot (or x and y)"], table.columns)
    if twice := repeated(names):
        raise SectionError.repeated_barcodes(twice, path.name)
    nameless = [line for name, line in zip(names, table.lines, strict=True) if not name]
    if nameless:
        raise BadInput(path, REGIONS, f"line {nameless[0]} names no spot")
    labels = table.text(column)
    if not any(labels):
        raise BadInput(path, REGIONS, "no spot has a label")
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
    if all(COLUMN not in row.metadata for row in rows):
        raise BadInput.columns(csv, [COLUMN], sorted({name for row in rows for name in row.metadata}))
    stated = {row.source.name: row.metadata.get(COLUMN, "") for row in rows if row.source.name}
    found = {name: path for name, path in stated.items() if path.lower() not in NOTHING}
    if not found:
        raise TooFew(f"sections of {csv.name} name a table of regions", 0, 1, "fill in its column regions")
    return {section: read_regions(csv.parent / name) for section, name in found.items()}


LARGEST_SIDE_PX = 30_000
"""Largest side of a mask in pixels; locations are tens of micrometres apart, so a finer one only takes memory."""


def read_mask(path: Path, slide: Slide) -> TissueMask:
    """Read a tissue mask, where to predict, from a picture of the whole slide at any size.

    Parameters
    ----------
    path : Path
        PNG, JPEG or TIFF; brighter than mid-grey is tissue.
    slide : Slide
        The slide that it belongs to.

    Returns
    -------
    TissueMask

    Raises
    ------
    MissingInput, BadInput
        `BadInput` also when it has other proportions than the slide, no tissue, or is larger than the slide.
    """
    path = Path(path)
    if not path.exists():
        raise MissingInput(path, "The mask")
    picture = open_slide(path)
    width, height = picture.width_px, picture.height_px
    step = max(slide.width_px / width, slide.height_px / height)
    size = f"{width} x {height} px, and {slide.name} {slide.width_px} x {slide.height_px} px"
    if abs(slide.width_px / step - width) > 1 or abs(slide.height_px / step - height) > 1:
        raise BadInput.mask(path, f"its proportions are not the slide's ({size})")
    if step < 1 or max(width, height) > LARGEST_SIDE_PX:
        raise BadInput.mask(path, f"it is too large ({size}); make it smaller, to a few micrometres a pixel")
    bright = picture.read(0, 0, width, height).max(axis=2) > 127
    if not bright.any():
        raise BadInput.mask(path, "nothing of it is brighter than mid-grey, so nothing is tissue")
    return TissueMask(np.ascontiguousarray(bright), step)
