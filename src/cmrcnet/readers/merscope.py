"""Vizgen MERSCOPE: the output folder of one region, with an H&E of the same section.

Files
    ``cell_by_gene.csv`` (cell, one column a gene), ``cell_metadata.csv`` (center_x, center_y) and, for bins,
    ``detected_transcripts.csv`` (global_x, global_y, gene), gzipped or not.
Coordinates
    Micrometres, mapped to level-0 pixels of the H&E by `affine`. For an H&E that is registered to the mosaic images of
    the region, ``images/micron_to_mosaic_pixel_transform.csv`` is that affine.
Spots
    Cells, or with `bin_um` molecules counted in squares of that side, parallel to the edges of the H&E and near cells.
    Without ``detected_transcripts.csv`` a square is the sum of the cells whose centre it holds, and a note says so.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadInput, BadOption, CmrcnetError, MissingInput
from cmrcnet.readers.long_tables import long_table
from cmrcnet.readers.raw_section import RawSection, neighbour_distance_px
from cmrcnet.readers.registry import SectionSource, register_reader
from cmrcnet.readers.square_bins import (
    CELL_UM,
    SquareBins,
    bin_names,
    bins_near_cells,
    listed_cells,
    summed_cells,
    turn_of,
)
from cmrcnet.readers.tables import read_count_table
from cmrcnet.readers.text_files import plain_or_gzipped
from cmrcnet.slides.slide import open_slide

COUNTS, CELLS, MOLECULES = "cell_by_gene.csv", "cell_metadata.csv", "detected_transcripts.csv"
WHAT = "a MERSCOPE table of counts (cell_by_gene.csv)"
TRANSFORM = "images/micron_to_mosaic_pixel_transform.csv"


def looks_like_merscope(path: Path) -> bool:
    """A folder with ``cell_by_gene.csv`` or ``detected_transcripts.csv``, or the first of these files."""
    if path.is_file():
        return path.name.removesuffix(".gz") == COUNTS
    return any(plain_or_gzipped(path / name) is not None for name in (COUNTS, MOLECULES))


def merscope_problems(source: SectionSource) -> list[CmrcnetError]:
    """Errors for a missing table, image or affine."""
    folder = source.path.parent if source.path.is_file() else source.path
    hint = "the MERSCOPE instrument (or vpt) writes it into the folder of each region, copy it from there"
    problems: list[CmrcnetError] = [
        MissingInput(folder / name, "The MERSCOPE table", hint)
        for name in (COUNTS, CELLS)
        if plain_or_gzipped(folder / name) is None
    ]
    if source.image is None:
        problems.append(BadOption("image", None, want="the H&E image of the section, which the folder lacks"))
    if source.affine is None:
        want = f"the map from micrometres to pixels of the H&E ({TRANSFORM}, if the H&E is registered to the mosaic)"
        problems.append(BadOption("affine", None, want=want))
    return problems


@register_reader("merscope", recognises=looks_like_merscope, problems=merscope_problems, binned=True)
def read_merscope(source: SectionSource) -> RawSection:
    """Read one MERSCOPE region.

    Parameters
    ----------
    source : SectionSource
        `path` is the folder of the region; `image` the H&E; `affine` from micrometres to its pixels; `bin_um` the side
        of the bins, None for cells.

    Raises
    ------
    MissingInput, BadInput, BadOption, SectionError
    """
    folder, affine = source.path.parent if source.path.is_file() else source.path, source.affine
    counts_path, cells_path = plain_or_gzipped(folder / COUNTS), plain_or_gzipped(folder / CELLS)
    if source.image is None or affine is None or counts_path is None or cells_path is None:
        raise merscope_problems(source)[0]
    what = "a MERSCOPE table of cells (cell_metadata.csv)"
    blocks = list(long_table(cells_path, what, {"cell": ()}, {"x": ("center_x",), "y": ("center_y",)}))
    if not blocks:
        raise BadInput(cells_path, what, "it lists no cell")
    names = [str(name) for block in blocks for name in block["cell"]]
    cell_um = np.concatenate([block[["x", "y"]].to_numpy() for block in blocks])
    table = read_count_table(counts_path)
    rows, notes = listed_cells(table.rows, names, counts_path, WHAT)
    kept = np.flatnonzero(rows >= 0)
    centre_um, barcodes, diameter = cell_um[rows[kept]], [table.rows[i] for i in kept], CELL_UM
    counts, molecules = table.values[kept], plain_or_gzipped(folder / MOLECULES)
    if source.bin_um is None:
        notes.append(f"The tables state no area of a cell; its diameter is taken as {CELL_UM:g} um.")
    elif molecules is None:
        places, centre_um, counts = summed_cells(centre_um, counts, affine, source.bin_um)
        notes.append(f"There is no {MOLECULES}: bins are sums of the cells whose centre they hold.")
    else:
        turn = turn_of(affine)
        places, counts = _counted(molecules, table.columns, turn, source.bin_um, notes)
        near, centre_um, beside = bins_near_cells(places, source.bin_um, turn, cell_um)
        places, counts, notes = places[near], counts[near], [*notes, *beside]
    if source.bin_um is not None:
        barcodes, diameter = bin_names(places, source.bin_um), source.bin_um
    name = source.name or folder.resolve().name
    pitch = source.bin_um or neighbour_distance_px(centre_um)
    return RawSection(
        name=name,
        patient=None,
        slide=open_slide(source.image, mpp=source.mpp, name=name),
        barcodes=barcodes,
        centre_px=centre_um,
        diameter_um=source.spot_diameter_um or diameter,
        counts=counts,
        genes=table.columns,
        absent_genes="unmeasured",
        pitch_um=(pitch or CELL_UM, pitch or CELL_UM),
        pitch_px=pitch,
        assay_mpp=1.0,
        notes=tuple(notes),
    )


def _counted(
    path: Path, panel: tuple[str, ...], turn: np.ndarray, bin_um: float, notes: list[str]
) -> tuple[np.ndarray, sparse.csr_matrix]:
    """Places (bins, 2) and counts (bins, genes of the panel) of molecules in squares."""
    what = f"a MERSCOPE table of molecules ({MOLECULES})"
    gene_of = dict(zip(panel, range(len(panel)), strict=True))
    bins, unknown, total = SquareBins(), 0, 0
    for block in long_table(path, what, {"gene": ("gene",)}, {"x": ("global_x",), "y": ("global_y",)}):
        names = block["gene"].cat
        genes = np.array([gene_of.get(str(gene), -1) for gene in names.categories], np.int64)[names.codes.to_numpy()]
        xy = block[["x", "y"]].to_numpy() @ turn.T / bin_um
        known = genes >= 0
        total, unknown = total + len(known), unknown + int((~known).sum())
        bins.add(xy[known], genes[known], np.ones(int(known.sum()), np.int32))
    if unknown:
        notes.append(f"{unknown} of {total} molecules are of no feature of {COUNTS}: dropped.")
    return bins.result(len(panel))
