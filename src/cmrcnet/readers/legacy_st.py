"""First-generation Spatial Transcriptomics: a table of counts, a spot file and a picture.

Counts
    Text parted by tabs, commas or semicolons, gzipped or not; one row a spot named ``XxY`` after its position on
    the array (``10x15``, ``5.907x2.103``), one column a gene. Tables with one row a gene are turned. Names are compared
    as numbers: ``9.010x2.100`` is ``9.01x2.1``.
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
from typing import Any, Literal

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadInput, BadOption, CmrcnetError, SectionError
from cmrcnet.readers.annotations import LEGACY_SPOT_UM
from cmrcnet.readers.raw_section import RawSection, refuse_unmatched
from cmrcnet.readers.registry import SectionSource, register_reader
from cmrcnet.readers.tables import (
    SPOT_NAME,
    CountTable,
    Table,
    first_names,
    read_count_table,
    read_table,
    selected_spots,
    spot_key,
    spot_names,
)
from cmrcnet.slides.section import repeated
from cmrcnet.slides.slide import open_slide

PITCH_UM = (200.0, 200.0)
SUFFIXES = (".tsv", ".txt", ".csv")
PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".svs", ".ndpi")


def looks_like_legacy_st(path: Path) -> bool:
    """Whether a file is a text table whose rows or columns are named ``XxY``."""
    if not path.is_file() or _stem(path) is None:
        return False
    try:
        rows, columns = first_names(path)
    except (OSError, UnicodeDecodeError, BadInput):
        return True  # a damaged table: the reader reports the damage
    return bool(rows) and (
        all(map(SPOT_NAME.fullmatch, rows)) or (len(columns) > 1 and all(map(SPOT_NAME.fullmatch, columns[1:])))
    )


def legacy_st_problems(source: SectionSource) -> list[CmrcnetError]:
    """Errors for a spot file or picture that is neither given nor found beside the counts."""
    problems: list[CmrcnetError] = []
    try:
        spot_names(read_table(_beside(source, "spots"), "a spot file"), required=True)
    except CmrcnetError as error:
        problems.append(error)
    try:
        _beside(source, "image")
    except CmrcnetError as error:
        problems.append(error)
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
    spots_path, image_path = _beside(source, "spots"), _beside(source, "image")
    if source.spots is None:
        notes.append(f"Spot file found beside the counts: {spots_path.name}.")
    if source.image is None:
        notes.append(f"Picture found beside the counts: {image_path.name}.")
    table = read_table(spots_path, "a spot file")
    counts = read_count_table(source.path)
    barcodes, genes, values, names = _matched(counts, table, source.path, notes)

    selected = selected_spots(table)
    rows, listed = _shared(barcodes, names, selected, (source.path.name, spots_path.name), notes)
    kept = selected[listed]
    if not kept.all():
        notes.append(f"{int((~kept).sum())} counted spots are not selected (not under tissue): dropped.")
    rows, listed = rows[kept], listed[kept]
    centres = np.column_stack([table.numbers("pixel_x"), table.numbers("pixel_y")])[listed]
    barcodes = [barcodes[row] for row in rows]
    name = source.name or _stem(source.path) or source.path.stem
    return RawSection(
        name=name,
        patient=None,
        slide=open_slide(image_path, mpp=source.mpp, name=name),
        barcodes=barcodes,
        centre_px=centres,
        diameter_um=source.spot_diameter_um or LEGACY_SPOT_UM,
        counts=values[rows],
        genes=genes,
        absent_genes="zero",
        pitch_um=PITCH_UM,
        pitch_px=_pitch_px(barcodes, centres),
        notes=tuple(notes),
    )


def _beside(source: SectionSource, option: Literal["spots", "image"]) -> Path:
    """The file that is given, or the only one beside ``C6_counts.*``: ``C6_spots.*``, the picture ``C6.*``."""
    stem = _stem(source.path)
    found = sorted(path for path in source.path.parent.glob("*") if stem and path.name.startswith(stem))
    if option == "spots":
        given, endings = source.spots, tuple(f"_spots{suffix}{gz}" for suffix in SUFFIXES for gz in ("", ".gz"))
        found = [path for path in found if path.name.lower().endswith(endings)]
        want = f"the spot file of {source.path.name} (columns spot or x, y; pixel_x, pixel_y), "
        want += "because names like 10x15 do not say where a spot lies in the image"
    else:
        given, found = source.image, [path for path in found if path.suffix.lower() in PICTURES and path.stem == stem]
        want = f"the picture on which the spots of {source.path.name} lie"
    if given is None and len(found) != 1:
        several = f"; {len(found)} files could be it: {', '.join(path.name for path in found)}" if found else ""
        raise BadOption(option, None, want=want + several)
    return given or found[0]


def _stem(path: Path) -> str | None:
    """``C6`` of ``C6_counts.tsv.gz``; None for a file that is no text table by name."""
    name = path.name.removesuffix(".gz")
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return re.sub(r"[._-](counts?|stdata|expression)$", "", name[: -len(suffix)], flags=re.IGNORECASE)
    return None


def _plain(name: str) -> str:
    """``5.907x2.103`` of R's ``X5.907x2.103``."""
    return name[1:] if name.startswith("X") and SPOT_NAME.fullmatch(name) else name


def _matched(
    counts: CountTable, table: Table, path: Path, notes: list[str]
) -> tuple[list[str], tuple[str, ...], sparse.csr_matrix, list[str]]:
    """Turn the counts to spots x genes and choose the spot file's columns that name the same spots."""
    candidates = spot_names(table, required=True)
    rows, columns = [_plain(name) for name in counts.rows], [_plain(name) for name in counts.columns]
    best, best_shared = None, 0
    for given in candidates:
        known = set(map(spot_key, given))
        for turned, ids in ((False, rows), (True, columns)):
            names, shared = given, sum(spot_key(name) in known for name in ids)
            if shared < min(len(ids), len(given)) / 2 and (unrounded := _unrounded(given, ids)):
                names, shared = unrounded, len(set(unrounded) & set(ids))
            if shared > best_shared:
                best, best_shared = (given, names, turned), shared
    if best is None:
        raise BadInput(
            table.path,
            f"the spot file of {path.name}",
            f"it names spots like {candidates[0][0] if candidates[0] else 'none'}, the counts like "
            f"{rows[0]} (rows) or {columns[0]} (columns), and none is the same; name the spots alike in both",
        )
    given, names, turned = best
    if changed := [(a, b) for a, b in zip(given, names, strict=True) if a != b]:
        notes.append("The names of spots are rounded in one file ({} and {}), and matched.".format(*changed[0]))
    if turned:
        notes.append("The table of counts has one row a gene; it was turned.")
        return columns, counts.rows, sparse.csr_matrix(counts.values.T), names
    return rows, counts.columns, counts.values, names


def _unrounded(names: list[str], ids: list[str]) -> list[str] | None:
    """The names of the counts (`ids`) that names of the spot file round, or are rounded by; None unless one to one.

    Decimals (at least one) are rounded off on one side; a name that rounds none, or that none rounds, stays.
    """
    from scipy.spatial import KDTree

    places, digits = [], []
    for each in (names, ids):
        found = [SPOT_NAME.fullmatch(name) for name in each]
        if not found or not all(found):
            return None
        texts = [[part.replace(",", ".") for part in match.groups()] for match in found if match]
        places.append(np.array(texts, dtype=np.float64))
        digits.append(max(len(part.partition(".")[2]) for pair in texts for part in pair))
    if digits[0] == digits[1] or min(digits) < 1:
        return None
    near: Any = KDTree(places[1]).query_ball_point(places[0], 0.5 * 10.0 ** -min(digits) * (1 + 1e-6), p=np.inf)
    chosen = [row[0] for row in near if row]
    if len(chosen) < len(names) / 2 or len(set(chosen)) < len(chosen) or any(len(row) > 1 for row in near):
        return None
    return [ids[row[0]] if row else name for name, row in zip(names, near, strict=True)]


def _shared(
    barcodes: list[str], names: list[str], selected: np.ndarray, files: tuple[str, str], notes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the counts and of the spot file that name the same spot, in the order of the counts."""
    keys, known = [spot_key(name) for name in barcodes], [spot_key(name) for name in names]
    for ids, where in ((keys, "the counts"), (known, "the lines of the spot file")):
        if twice := repeated(ids):
            raise SectionError.repeated_barcodes(twice, where)
    line_of = {name: i for i, name in enumerate(known)}
    rows = np.array([i for i, key in enumerate(keys) if key in line_of], dtype=np.int64)
    listed = np.array([line_of[keys[i]] for i in rows], dtype=np.int64)
    unlisted = [name for name, key in zip(barcodes, keys, strict=True) if key not in line_of]
    counted = set(keys)
    uncounted = [name for name, key in zip(names, known, strict=True) if key not in counted]
    hint = f"check that {files[0]} and {files[1]} are of one section and name its spots alike"
    refuse_unmatched(unlisted, len(keys), "counted spots are not in the spot file", hint)
    empty = [name for name, key, kept in zip(names, known, selected, strict=True) if kept and key not in counted]
    refuse_unmatched(
        empty, int(selected.sum()), "spots of the spot file have no counts", f"{hint}, or set their `selected` to 0"
    )
    if unlisted:
        notes.append(f"{len(unlisted)} of {len(keys)} counted spots are not in the spot file: dropped.")
    if uncounted:
        notes.append(f"{len(uncounted)} of {len(known)} spots of the spot file have no counts: left out.")
    return rows, listed


def _pitch_px(barcodes: list[str], centres: np.ndarray) -> float | None:
    """Pixels between neighbouring array locations, also where spots are sparse: pixels per step of the array."""
    from scipy.spatial import KDTree

    matches = [SPOT_NAME.fullmatch(barcode) for barcode in barcodes]
    if len(barcodes) < 3 or not all(matches):
        return None
    array = np.array([[float(part.replace(",", ".")) for part in match.groups()] for match in matches if match])
    found: Any = KDTree(array).query(array, k=2)
    steps, nearest = found
    away = steps[:, 1] > 0.5  # two spots of one location would divide by nothing
    if not away.any():
        return None
    pixels = np.linalg.norm(centres - centres[nearest[:, 1]], axis=1)
    return float(np.median(pixels[away] / steps[away, 1]))
