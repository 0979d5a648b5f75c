"""First-generation Spatial Transcriptomics: a table of counts, a spot file and a picture.

Counts
    Text parted by tabs, commas or semicolons, gzipped or not; one row a spot named ``XxY`` after its position on
    the array (``10x15``, ``5.907x2.103``), one column a gene. Tables with one row a gene are turned.
Spot file
    Columns `pixel_x` and `pixel_y` (centre in the picture's pixels); the spot's name in `spot`, or `x` and `y`
    (or `new_x` and `new_y`) of which the name is made; `selected` (0: not under tissue), when there is one.

Array coordinates alone do not tell where a spot lies in the picture, so a table without a spot file is refused.
The arrays have spots of 100 um, 200 um apart (Ståhl et al., Science 2016). Every polyadenylated transcript is caught,
so a gene that the table does not name was counted nowhere on the section: `absent_genes` is "zero".
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadInput, BadOption, CmrcnetError, SectionError
from cmrcnet.readers.annotations import LEGACY_SPOT_UM, selected_spots, spot_names
from cmrcnet.readers.raw_section import RawSection
from cmrcnet.readers.registry import SectionSource, register_reader
from cmrcnet.readers.tables import CountTable, Table, first_names, read_count_table, read_table
from cmrcnet.slides.section import repeated
from cmrcnet.slides.slide import open_slide

PITCH_UM = (200.0, 200.0)
SUFFIXES = (".tsv", ".txt", ".csv")
PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".svs", ".ndpi")
SPOT_NAME = re.compile(r"X?(\d+(?:\.\d+)?)x(\d+(?:\.\d+)?)")
"""A location on the array; R puts an X before column names that begin with a digit."""


def looks_like_legacy_st(path: Path) -> bool:
    """Whether a file is a text table whose rows or columns are named ``XxY``."""
    if not path.is_file() or _stem(path) is None:
        return False
    try:
        rows, columns = first_names(path)
    except (OSError, EOFError, UnicodeDecodeError):
        return True  # a damaged table: the reader reports the damage
    return bool(rows) and (all(map(_is_spot, rows)) or (len(columns) > 1 and all(map(_is_spot, columns[1:]))))


def legacy_st_problems(source: SectionSource) -> list[CmrcnetError]:
    """Errors for a spot file or picture that is neither given nor found beside the counts."""
    problems: list[CmrcnetError] = []
    spots = source.spots or spots_beside(source.path)
    if spots is None:
        want = f"the spot file of {source.path.name} (columns spot or x, y; pixel_x, pixel_y), "
        want += "because names like 10x15 do not say where a spot lies in the image"
        problems.append(BadOption("spots", None, want=want))
    else:
        try:
            _spot_columns(read_table(spots, "a spot file"))
        except CmrcnetError as error:
            problems.append(error)
    if (source.image or image_beside(source.path)) is None:
        problems.append(BadOption("image", None, want=f"the picture on which the spots of {source.path.name} lie"))
    return problems


@register_reader("legacy_st", recognises=looks_like_legacy_st, problems=legacy_st_problems)
def read_legacy_st(source: SectionSource) -> RawSection:
    """Read one section of first-generation Spatial Transcriptomics.

    Parameters
    ----------
    source : SectionSource
        `path` is the counts table; `spots` and `image` may be left out when they lie beside it under its name
        (``C6_counts.tsv.gz``, ``C6_spots.tsv``, ``C6.jpg``).

    Raises
    ------
    BadInput, SectionError
    """
    notes: list[str] = []
    spots_path = source.spots or spots_beside(source.path)
    image_path = source.image or image_beside(source.path)
    if spots_path is None or image_path is None:
        raise legacy_st_problems(source)[0]
    if source.spots is None:
        notes.append(f"Spot file found beside the counts: {spots_path.name}.")
    if source.image is None:
        notes.append(f"Picture found beside the counts: {image_path.name}.")
    table = read_table(spots_path, "a spot file")
    counts = read_count_table(source.path)
    barcodes, genes, values, names = _matched(counts, table, source.path, notes)

    rows, listed = _shared(barcodes, names, notes)
    selected = selected_spots(table)[listed]
    if not selected.all():
        notes.append(f"{int((~selected).sum())} counted spots are not selected (not under tissue): dropped.")
    rows, listed = rows[selected], listed[selected]
    centres = np.column_stack([table.numbers("pixel_x"), table.numbers("pixel_y")])[listed]
    kept = [barcodes[row] for row in rows]
    name = source.name or _stem(source.path) or source.path.stem
    return RawSection(
        name=name,
        patient=None,
        slide=open_slide(image_path, mpp=source.mpp, name=name),
        barcodes=kept,
        centre_px=centres,
        diameter_um=source.spot_diameter_um or LEGACY_SPOT_UM,
        counts=values[rows],
        genes=genes,
        absent_genes="zero",
        pitch_um=PITCH_UM,
        pitch_px=_pitch_px(kept, centres),
        notes=tuple(notes),
    )


def spots_beside(counts: Path) -> Path | None:
    """The one file ``<section>_spots.*`` beside ``<section>_counts.*``."""
    endings = tuple(f"_spots{suffix}{gz}" for suffix in SUFFIXES for gz in ("", ".gz"))
    found = [path for path in _same_stem(counts) if path.name.lower().endswith(endings)]
    return found[0] if len(found) == 1 else None


def image_beside(counts: Path) -> Path | None:
    """The one picture ``<section>.*`` beside ``<section>_counts.*``."""
    stem = _stem(counts)
    found = [path for path in _same_stem(counts) if path.suffix.lower() in PICTURES and path.stem == stem]
    return found[0] if len(found) == 1 else None


def _same_stem(counts: Path) -> list[Path]:
    stem = _stem(counts)
    return sorted(path for path in counts.parent.glob("*") if stem and path.name.startswith(stem))


def _stem(path: Path) -> str | None:
    """``C6`` of ``C6_counts.tsv.gz``; None for a file that is no text table by name."""
    name = path.name.removesuffix(".gz")
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return re.sub(r"[._-](counts?|stdata|expression)$", "", name[: -len(suffix)], flags=re.IGNORECASE)
    return None


def _is_spot(name: str) -> bool:
    return SPOT_NAME.fullmatch(name) is not None


def _plain(name: str) -> str:
    """``5.907x2.103`` of R's ``X5.907x2.103``."""
    return name[1:] if name.startswith("X") and _is_spot(name) else name


def _matched(
    counts: CountTable, table: Table, path: Path, notes: list[str]
) -> tuple[list[str], tuple[str, ...], sparse.csr_matrix, list[str]]:
    """Turn the counts to spots x genes and choose the spot file's columns that name the same spots."""
    candidates = _spot_columns(table)
    rows, columns = [_plain(name) for name in counts.rows], [_plain(name) for name in counts.columns]
    best, best_shared = None, 0
    for names in candidates:
        known = set(names)
        for turned, ids in ((False, rows), (True, columns)):
            shared = sum(name in known for name in ids)
            if shared > best_shared:
                best, best_shared = (names, turned), shared
    if best is None:
        raise BadInput(
            table.path,
            f"the spot file of {path.name}",
            f"it names spots like {candidates[0][0] if candidates[0] else 'none'}, the counts like "
            f"{rows[0]} (rows) or {columns[0]} (columns), and none is the same",
        )
    names, turned = best
    if turned:
        notes.append("The table of counts has one row a gene; it was turned.")
        return columns, counts.rows, sparse.csr_matrix(counts.values.T), names
    return rows, counts.columns, counts.values, names


def _spot_columns(table: Table) -> list[list[str]]:
    """Every way in which the spot file can name its spots, R's leading X taken off."""
    return [[_plain(name) for name in names] for names in spot_names(table, required=True)]


def _shared(barcodes: list[str], names: list[str], notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the counts and of the spot file that name the same spot, in the order of the counts."""
    for ids, where in ((barcodes, "the counts"), (names, "the lines of the spot file")):
        if twice := repeated(ids):
            raise SectionError.repeated_barcodes(twice, where)
    line_of = {name: i for i, name in enumerate(names)}
    rows = np.array([i for i, barcode in enumerate(barcodes) if barcode in line_of], dtype=np.int64)
    listed = np.array([line_of[barcodes[i]] for i in rows], dtype=np.int64)
    if len(rows) < len(barcodes):
        notes.append(f"{len(barcodes) - len(rows)} of {len(barcodes)} counted spots are not in the spot file: dropped.")
    if len(rows) < len(names):
        notes.append(f"{len(names) - len(rows)} of {len(names)} spots of the spot file have no counts: left out.")
    return rows, listed


def _pitch_px(barcodes: list[str], centres: np.ndarray) -> float | None:
    """Pixels between neighbouring array locations, also where spots are sparse: pixels per step of the array."""
    from scipy.spatial import KDTree

    matches = [SPOT_NAME.fullmatch(barcode) for barcode in barcodes]
    if len(barcodes) < 3 or not all(matches):
        return None
    array = np.array([[float(match[1]), float(match[2])] for match in matches if match])
    found: Any = KDTree(array).query(array, k=2)
    steps, nearest = found
    away = steps[:, 1] > 0.5  # two spots of one location would divide by nothing
    if not away.any():
        return None
    pixels = np.linalg.norm(centres - centres[nearest[:, 1]], axis=1)
    return float(np.median(pixels[away] / steps[away, 1]))
