"""A table of features beside a picture: CSV or parquet, one row a location, one column a feature.

    spot,CD3,CD20,PanCK,pixel_x,pixel_y
    s1,0.41,1.20,7.75,1034,2210

Names
    In the column `id`, `spot`, `barcode` or `location` (the first of them that is there).
Positions
    `pixel_x` and `pixel_y`, centres in level-0 pixels of the picture: in the table itself, or in the spot file.
Regions
    A spot file that ends in ``.geojson``: a row is a region, the polygon of the same name (`polygons`). Its image
    features are the mean over locations inside, `spot_diameter_um` apart.
Kind
    `table_kind` of the cohort file; without it the values are counts.
pyradiomics
    Its output is read as it is: columns that begin with ``diagnostics_`` and columns of text (Image, Mask) are dropped
    and noted.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadInput, BadOption, CmrcnetError, MissingExtra, SectionError
from cmrcnet.readers.legacy_st import looks_like_legacy_st
from cmrcnet.readers.polygons import GEOJSON, read_region_spots
from cmrcnet.readers.raw_section import RawSection, refuse_unmatched
from cmrcnet.readers.registry import SectionSource, register_reader
from cmrcnet.readers.tables import NOTHING, delimiter_of, read_table, rectangular_text, selected_spots, spot_key
from cmrcnet.readers.text_files import open_text
from cmrcnet.slides.section import repeated
from cmrcnet.slides.slide import open_slide
from cmrcnet.storage.names import id_text
from cmrcnet.storage.refusals import fault_of_file

if TYPE_CHECKING:
    import pandas as pd

WHAT = "a table of features"
ID_COLUMNS = ("id", "spot", "barcode", "location")
POSITION_COLUMNS = ("pixel_x", "pixel_y")
DIAGNOSTICS = "diagnostics_"
"""How pyradiomics begins the names of columns that are no features."""
_TEXT = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")


def looks_like_feature_table(path: Path) -> bool:
    """A parquet file, or text whose first line names one of `ID_COLUMNS`, unless it is legacy ST."""
    if not path.is_file():
        return False
    if path.suffix == ".parquet":
        return True
    if not path.name.lower().endswith(_TEXT):
        return False
    with open_text(path, "The table") as file:
        header = file.readline(1 << 20).decode("utf-8", "ignore").rstrip("\r\n")
    names = [cell.strip().strip('"').lower() for cell in header.split(delimiter_of(header))]
    return len(names) > 1 and any(name in ID_COLUMNS for name in names) and not looks_like_legacy_st(path)


def feature_table_problems(source: SectionSource) -> list[CmrcnetError]:
    """Errors for a picture or a diameter that is not given."""
    problems: list[CmrcnetError] = []
    if source.image is None:
        problems.append(BadOption("image", None, want=f"the picture on which the rows of {source.path.name} lie"))
    if source.spot_diameter_um is None:
        want = "the diameter of the measured locations in micrometres, which a table of features does not state"
        problems.append(BadOption("spot_diameter_um", None, want=want))
    return problems


@register_reader("feature_table", recognises=looks_like_feature_table, problems=feature_table_problems)
def read_feature_table(source: SectionSource) -> RawSection:
    """Read a table of features, with positions in itself or in a spot file.

    Raises
    ------
    BadInput, SectionError, MissingExtra
    """
    assert source.image is not None and source.spot_diameter_um is not None
    frame = read_frame(source.path)
    names, features, values, notes = named_features(frame, source.path)
    kept, centres = np.arange(len(names)), np.zeros((0, 2))
    if source.spots is None:
        missing = [column for column in POSITION_COLUMNS if column not in frame.columns]
        if missing:
            why = f"it has no column {' and '.join(missing)}: the centres in pixels, or give a spot file"
            raise BadInput(source.path, f"{WHAT} with positions", why)
        centres = np.column_stack([_numbers(frame, column, source.path) for column in POSITION_COLUMNS])
    elif source.spots.suffix != GEOJSON:
        kept, centres = _placed(names, source.spots, source.path, notes)
    name = source.name or source.path.name.split(".")[0]
    slide, members = open_slide(source.image, mpp=source.mpp, name=name), None
    if source.spots is not None and source.spots.suffix == GEOJSON:
        regions = read_region_spots(source.spots, slide, pitch_um=source.spot_diameter_um, wanted=names)
        row_of = {barcode: row for row, barcode in enumerate(regions.barcodes)}
        unlisted = [each for each in names if each not in row_of]
        hint = f"check that {source.path.name} and {source.spots.name} are of one slide and name its regions alike"
        refuse_unmatched(unlisted, len(names), "rows have no polygon", hint)
        if unlisted:
            notes.append(f"{len(unlisted)} of {len(names)} rows have no polygon: dropped.")
        kept = np.array([row for row, each in enumerate(names) if each in row_of], np.int64)
        if not len(kept):
            raise SectionError.empty(source.path.name, 0, 0)
        regions = regions.take([row_of[names[row]] for row in kept])
        centres, members = regions.centre_px, regions.members
    return RawSection(
        name=name,
        patient=None,
        slide=slide,
        barcodes=[names[row] for row in kept],
        centre_px=centres,
        diameter_um=source.spot_diameter_um,
        counts=sparse.csr_matrix(values[kept]),
        genes=features,
        absent_genes="unmeasured",
        pitch_um=(0.0, np.inf),
        table_kind=source.table_kind or "counts",
        members=members,
        notes=tuple(notes),
    )


def read_frame(path: Path, ids: Sequence[str] = ID_COLUMNS) -> pd.DataFrame:
    """A CSV or parquet file as it is; numbers that cannot be parsed stay text.

    The columns `ids`, in any case of letters, hold names: they are text without surrounding spaces, "" where a cell is
    empty.

    Raises
    ------
    MissingInput, BadInput, MissingExtra
    """
    import pandas as pd

    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
            frame = frame.reset_index() if str(frame.index.name).strip().lower() in ids else frame
        else:
            text, delimiter, header = rectangular_text(path, "The table", WHAT)
            frame = pd.read_csv(
                io.StringIO(text),
                sep=delimiter,
                decimal="," if delimiter == ";" else ".",
                na_values=sorted(NOTHING),
                skipinitialspace=True,
                header=0,
                names=range(len(header)),
                index_col=False,
                dtype={place: str for place, name in enumerate(header) if name.lower() in ids},
            )
            frame.columns = header
    except ImportError as error:
        raise MissingExtra("pyarrow", f"Reading {path.name}", "'cmrcnet[platforms]'") from error
    except (ValueError, OSError) as error:  # pandas and pyarrow raise kinds of ValueError for what they cannot parse
        if isinstance(error, CmrcnetError):
            raise
        raise BadInput(path, WHAT, fault_of_file(error)) from error
    frame.columns = [str(column).strip() for column in frame.columns]
    if twice := repeated(list(frame.columns)):
        raise BadInput(path, WHAT, f"two columns are named {twice[0]!r}")
    if not len(frame):
        raise BadInput(path, WHAT, "it holds no row")
    for column in frame.columns:
        if column.lower() in ids:
            frame[column] = pd.Series([id_text(cell) for cell in frame[column]], dtype=object, index=frame.index)
    return frame


def named_features(
    frame: pd.DataFrame, path: Path, beside: Sequence[str] = POSITION_COLUMNS
) -> tuple[list[str], tuple[str, ...], np.ndarray, list[str]]:
    """Names of the rows, names and values (rows, features) float64 of the features, and notes on what was dropped.

    Columns in `beside` are no features.

    Raises
    ------
    BadInput
        There is no column of names, or a feature holds text.
    """
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    ids = next((column for wanted in ID_COLUMNS for column in frame.columns if column.lower() == wanted), None)
    if ids is None:
        raise BadInput.columns(path, [" or ".join(ID_COLUMNS)], list(frame.columns))
    names = [id_text(each) for each in frame[ids]]
    if "" in names:
        raise BadInput(path, WHAT, f"row {names.index('') + 1} has no name in column {ids}")
    if twice := repeated(names):
        raise SectionError.repeated_barcodes(twice, f"the rows of {path.name}")
    columns = [column for column in frame.columns if column != ids and column not in beside]
    notes: list[str] = []
    dropped = [column for column in columns if column.startswith(DIAGNOSTICS)]
    text = [c for c in columns if c not in dropped and not (is_numeric_dtype(frame[c]) or is_bool_dtype(frame[c]))]
    if text and not dropped:
        value = next(each for each in frame[text[0]] if not isinstance(each, float))
        why = f"column {text[0]} holds {str(value)[:30]!r}, which is no number; leave such columns out"
        raise BadInput(path, WHAT, why)
    if dropped:
        more = f", and of text ({', '.join(text)})" if text else ""
        notes.append(f"{len(dropped)} columns of pyradiomics' diagnostics{more}: dropped.")
    features = tuple(column for column in columns if column not in dropped and column not in text)
    if not features:
        raise BadInput(path, WHAT, "it has no column of a feature")
    return names, features, frame[list(features)].to_numpy(np.float64), notes


def _placed(names: list[str], spots: Path, path: Path, notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the table that the spot file names and selects, and their centres."""
    table = read_table(spots, "a spot file")
    table.require(POSITION_COLUMNS)
    ids = next((column for wanted in ID_COLUMNS for column in table.columns if column.lower() == wanted), None)
    if ids is None:
        raise BadInput.columns(spots, [" or ".join(ID_COLUMNS)], table.columns)
    known = [spot_key(name) for name in table.text(ids)]
    if twice := repeated(known):
        raise SectionError.repeated_barcodes(twice, "the lines of the spot file")
    line_of, selected = {name: line for line, name in enumerate(known)}, selected_spots(table)
    keys = [spot_key(name) for name in names]
    unlisted = [name for name, key in zip(names, keys, strict=True) if key not in line_of]
    hint = f"check that {path.name} and {spots.name} are of one section and name its locations alike"
    refuse_unmatched(unlisted, len(names), "rows are not in the spot file", hint)
    if unlisted:
        notes.append(f"{len(unlisted)} of {len(names)} rows are not in the spot file: dropped.")
    kept = np.array([row for row, key in enumerate(keys) if key in line_of and selected[line_of[key]]], np.int64)
    if not len(kept):
        raise SectionError.empty(path.name, 0, 0)
    lines = [line_of[keys[row]] for row in kept]
    return kept, np.column_stack([table.numbers(column) for column in POSITION_COLUMNS])[lines]


def _numbers(frame: pd.DataFrame, column: str, path: Path) -> np.ndarray:
    """A column as finite float64, or `BadInput`."""
    import pandas as pd

    values = cast(Any, pd.to_numeric(frame[column], errors="coerce")).to_numpy(np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise BadInput(
            path, WHAT, f"row {bad[0] + 1} has {frame[column].iloc[bad[0]]!r} as {column}, which is no number"
        )
    return values
