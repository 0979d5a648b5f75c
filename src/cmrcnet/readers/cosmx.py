"""NanoString (Bruker) CosMx: the flat files that AtoMx exports, with an H&E of the same section.

Files
    ``RUN_exprMat_file.csv`` (fov, cell_ID, one column a feature) and ``RUN_metadata_file.csv`` (CenterX_global_px,
    CenterY_global_px), gzipped or not.
Coordinates
    Global pixels of the instrument, mapped to level-0 pixels of the H&E by `affine`. The side of a pixel is the root
    of ``Area.um2`` over ``Area`` where the metadata have both; otherwise that of `PIXELS_UM` which the affine and the
    scale of the H&E imply.
Spots
    Cells at their centres, or with `bin_um` the sums of the cells whose centre lies in a square of that side, parallel
    to the edges of the H&E. Counts of cell 0, the molecules outside all cells, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadInput, BadOption, CmrcnetError, MissingInput, ScaleError
from cmrcnet.readers.long_tables import long_table
from cmrcnet.readers.raw_section import AFFINE_TOLERANCE, RawSection, neighbour_distance_px
from cmrcnet.readers.registry import SectionSource, register_reader
from cmrcnet.readers.square_bins import CELL_UM, bin_names, listed_cells, summed_cells
from cmrcnet.readers.tables import read_count_table
from cmrcnet.readers.text_files import files_ending
from cmrcnet.slides.slide import known_scale, open_slide

COUNTS, CELLS = "exprMat_file.csv", "metadata_file.csv"
WHAT = "a CosMx table of counts (exprMat_file.csv)"
PIXELS_UM = (0.12028, 0.18)
"""Side of a pixel of the instruments: those sold since 2023, and the first ones."""
PLACES = {"x": ("CenterX_global_px",), "y": ("CenterY_global_px",), "fov": ("fov",), "cell": ("cell_ID",)}


def looks_like_cosmx(path: Path) -> bool:
    """A folder with ``*exprMat_file.csv`` or ``*metadata_file.csv``, gzipped or not, or the first of these files."""
    if path.is_file():
        return path.name.removesuffix(".gz").endswith(COUNTS)
    return bool(files_ending(path, COUNTS) or files_ending(path, CELLS))


def cosmx_problems(source: SectionSource) -> list[CmrcnetError]:
    """Errors for a missing table, image or affine."""
    problems: list[CmrcnetError] = []
    for ending in (COUNTS, CELLS):
        try:
            _file(source.path, ending)
        except CmrcnetError as error:
            problems.append(error)
    if source.image is None:
        problems.append(BadOption("image", None, want="the H&E image of the section, which the flat files lack"))
    if source.affine is None:
        want = "the map from global pixels of CosMx (CenterX_global_px) to pixels of the H&E, which no file states"
        problems.append(BadOption("affine", None, want=want))
    return problems


@register_reader("cosmx", recognises=looks_like_cosmx, problems=cosmx_problems, binned=True)
def read_cosmx(source: SectionSource) -> RawSection:
    """Read one CosMx slide.

    Parameters
    ----------
    source : SectionSource
        `path` is the folder of flat files or the ``exprMat_file.csv`` in it; `image` the H&E; `affine` from global
        pixels to its pixels; `bin_um` the side of the bins, None for cells.

    Raises
    ------
    MissingInput, BadInput, BadOption, SectionError, ScaleError
    """
    path, affine = _file(source.path, COUNTS), source.affine
    if source.image is None or affine is None:
        raise cosmx_problems(source)[0]
    name = source.name or path.name.partition("_exprMat")[0]
    slide = open_slide(source.image, mpp=source.mpp, name=name)
    names, genes, counts, outside = _counts(path)
    cells = _cells(_file(source.path, CELLS))
    rows, notes = listed_cells(names, cells.names, path, WHAT)
    kept = np.flatnonzero(rows >= 0)
    if outside:
        notes.append(f"Counts of cell 0 in {outside} fields of view, which are outside all cells: dropped.")
    pixel_um = cells.pixel_um
    if pixel_um is None:
        implied = known_scale(slide) * affine.scale
        pixel_um = min(PIXELS_UM, key=lambda size: abs(np.log(size / implied)))
        if not 1 / AFFINE_TOLERANCE <= implied / pixel_um <= AFFINE_TOLERANCE:
            sizes = " or ".join(map(str, PIXELS_UM))
            evidence = f"then, by the affine, a pixel of CosMx has {implied:.4g} um, and it has {sizes}"
            raise ScaleError.contradicted(name, known_scale(slide), evidence, mend="the affine or mpp")
    notes.append(f"A pixel of CosMx has {pixel_um:.5g} um.")
    centre, barcodes = cells.centre_px[rows[kept]], [names[i] for i in kept]
    counts, diameter = counts[kept], cells.diameter_px * pixel_um or CELL_UM
    if source.bin_um is not None:
        places, centre_um, counts = summed_cells(centre * pixel_um, counts, affine, source.bin_um)
        centre, barcodes, diameter = centre_um / pixel_um, bin_names(places, source.bin_um), source.bin_um
        notes.append(f"Bins of {source.bin_um:g} um are sums of the cells whose centre they hold.")
    pitch_px = source.bin_um / pixel_um if source.bin_um else neighbour_distance_px(centre)
    pitch_um = (pitch_px or 1) * pixel_um
    return RawSection(
        name=name,
        patient=None,
        slide=slide,
        barcodes=barcodes,
        centre_px=centre,
        diameter_um=source.spot_diameter_um or diameter,
        counts=counts,
        genes=genes,
        absent_genes="unmeasured",
        pitch_um=(pitch_um, pitch_um),
        pitch_px=pitch_px,
        assay_mpp=pixel_um,
        notes=tuple(notes),
    )


def _file(path: Path, ending: str) -> Path:
    """The table with this ending; that of the named run where `path` is a file."""
    run = path.name.partition(COUNTS)[0] if path.is_file() else ""
    folder = path.parent if path.is_file() else path
    if path.is_file() and ending == COUNTS:
        return path
    found = [file for file in files_ending(folder, ending) if file.name.startswith(run)]
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise BadInput(
            folder, "one CosMx slide", f"{len(found)} files could be its table ({names}); give one as counts"
        )
    if not found:
        beside = [name for other in (COUNTS, CELLS) for file in files_ending(folder, other) for name in [file.name]]
        prefix = run or next(
            (name.partition(other)[0] for name in beside for other in (COUNTS, CELLS) if other in name), "RUN_"
        )
        hint = (
            "AtoMx writes it into the folder of flat files (Export, Flat CSV files), gzipped or not, copy it from there"
        )
        raise MissingInput(folder / f"{prefix}{ending}", "The CosMx table", hint)
    return found[0]


def _counts(path: Path) -> tuple[list[str], tuple[str, ...], sparse.csr_matrix, int]:
    """Names ``fov_cell``, features, counts (cells, features), and how many rows are outside all cells."""
    table = read_count_table(path)
    ids = 2 if table.columns[:2] == ("fov", "cell_ID") else 1  # the first column is a name of the cell, or fov
    if table.columns[ids - 1 : ids] != ("cell_ID",):
        raise BadInput.columns(path, ["fov, then cell_ID"], ["...", *table.columns])
    numbers = table.values[:, [ids - 1]].toarray().ravel()
    try:
        fovs = table.values[:, [0]].toarray().ravel() if ids == 2 else np.array([float(fov) for fov in table.rows])
    except ValueError as error:
        raise BadInput(path, WHAT, f"its first column is not fov ({error})") from error
    inside = np.flatnonzero(numbers != 0)
    names = _names(fovs[inside], numbers[inside], path)
    return names, table.columns[ids:], table.values[inside, ids:], len(numbers) - len(inside)


def _names(fovs: np.ndarray, cells: np.ndarray, path: Path) -> list[str]:
    both = np.column_stack([fovs, cells])
    if not (np.isfinite(both) & (both == np.floor(both)) & (both >= 0) & (both < 2**53)).all():
        raise BadInput(path, "a CosMx table", "fov or cell_ID is no whole number")
    return [f"{fov}_{cell}" for fov, cell in both.astype(np.int64).tolist()]


@dataclass(frozen=True, eq=False)
class _Cells:
    """Names ``fov_cell``, centres (cells, 2) and median diameter in pixels, 0 where unknown; micrometres a pixel."""

    names: list[str]
    centre_px: np.ndarray
    diameter_px: float
    pixel_um: float | None


def _cells(path: Path) -> _Cells:
    what = "a CosMx table of cells (metadata_file.csv)"
    extra = {"area": ("Area",), "area_um2": ("Area.um2", "Area_um2")}
    blocks = list(long_table(path, what, {}, PLACES, optional=extra))
    if not blocks:
        raise BadInput(path, what, "it lists no cell")
    columns = {key: np.concatenate([block[key].to_numpy() for block in blocks]) for key in blocks[0].columns}
    names = _names(columns["fov"], columns["cell"], path)
    area, area_um2 = (float(np.median(columns[key])) if key in columns else 0.0 for key in ("area", "area_um2"))
    pixel_um = float(np.sqrt(area_um2 / area)) if area > 0 and area_um2 > 0 else None
    return _Cells(names, np.column_stack([columns["x"], columns["y"]]), float(np.sqrt(4 / np.pi * area)), pixel_um)
