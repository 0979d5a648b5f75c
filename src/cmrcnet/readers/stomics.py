"""STOmics (Stereo-seq): a `.gem` or `.gem.gz` table of molecules, as SAW writes it, summed in square bins.

Coordinates
    DNBs of the chip: `x` and `y` plus ``#OffsetX`` and ``#OffsetY`` of the header. DNBs lie `DNB_UM` apart. They are
    mapped to the H&E by `affine`. Without one, only an image on the same grid is accepted, such as the registered image
    of SAW and ImageStudio (one pixel a DNB), which `mpp` states by 0.5.
Bins
    `bin_um`, 50 by default (bin100), a multiple of 0.5 and of the bins of the file (``#BinSize``), on the grid of the
    chip. The diameter of a spot is the side of its bin. All bins that hold a molecule are kept, so give the
    ``.tissue.gem.gz`` of SAW and not the table of the whole chip.
Genes
    `geneName` where there is one, else `geneID`. The counts are `MIDCount` (exons and introns).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cmrcnet.errors import BadInput, BadOption, CmrcnetError
from cmrcnet.readers.long_tables import comment_lines, long_table
from cmrcnet.readers.raw_section import RawSection
from cmrcnet.readers.registry import SectionSource, register_reader
from cmrcnet.readers.square_bins import SquareBins, bin_names
from cmrcnet.slides.slide import open_slide
from cmrcnet.slides.table_kinds import LARGEST_COUNT

WHAT = "a table of molecules (GEM)"
DNB_UM = 0.5
BIN_UM = 50.0
COUNTS = ("MIDCount", "MIDCounts", "UMICount", "MIDcount")
SAME_GRID = 0.01
"""Largest relative difference between mpp and the distance of the DNBs of an image on the grid of the chip."""


def looks_like_stomics(path: Path) -> bool:
    """A file called `.gem` or `.gem.gz`; also a `.gef`, which is refused with what to give instead."""
    return path.is_file() and path.name.lower().removesuffix(".gz").endswith((".gem", ".gef"))


def stomics_problems(source: SectionSource) -> list[CmrcnetError]:
    """Errors for a bin size that cannot be made, and for a missing image or affine."""
    if source.path.name.lower().endswith(".gef"):
        why = "it is a GEF (HDF5), which is not read; give the .gem.gz, which SAW makes of it (saw convert gef2gem)"
        return [BadInput(source.path, WHAT, why)]
    problems: list[CmrcnetError] = []
    try:
        _bin_dnbs(source)
    except CmrcnetError as error:
        problems.append(error)
    if source.image is None:
        want = "the H&E image of the chip, which is not part of the table"
        problems.append(BadOption("image", None, want=want))
    elif source.affine is None and (source.mpp is None or abs(source.mpp / DNB_UM - 1) > SAME_GRID):
        want = f"the map from DNBs of the chip to pixels of {source.image.name}; or mpp {DNB_UM:g}, if it is the "
        problems.append(BadOption("affine", None, want=want + "registered image of SAW, in which a pixel is a DNB"))
    return problems


@register_reader("stomics", recognises=looks_like_stomics, problems=stomics_problems, binned=True)
def read_stomics(source: SectionSource) -> RawSection:
    """Read one STOmics chip, or the tissue on it.

    Parameters
    ----------
    source : SectionSource
        `path` is the table; `image` the H&E; `affine` from DNBs to its pixels; `bin_um` the side of the bins.

    Raises
    ------
    MissingInput, BadInput, BadOption, SectionError
    """
    if source.image is None:
        raise stomics_problems(source)[0]
    name = source.name or source.path.name.split(".")[0]
    side, offset, stated = _bin_dnbs(source)
    gene_of: dict[str, int] = {}
    bins = SquareBins()
    columns = {"x": ("x",), "y": ("y",), "count": COUNTS}
    for block in long_table(source.path, WHAT, {"gene": ("geneName", "geneID")}, columns):
        genes = block["gene"].cat
        numbers = np.array([gene_of.setdefault(str(gene), len(gene_of)) for gene in genes.categories], np.int64)
        counts = block["count"].to_numpy()
        if not ((counts >= 0) & (counts < LARGEST_COUNT) & (counts == np.floor(counts))).all():
            raise BadInput(source.path, WHAT, "some counts are negative, fractional or too large")
        xy = (block[["x", "y"]].to_numpy() + offset) / side
        bins.add(xy, numbers[genes.codes.to_numpy()], counts.astype(np.int64))
    found, counted = bins.result(len(gene_of))
    bin_um = side * DNB_UM
    chip = stated.get("Stereo-seqChip") or stated.get("StereoChip") or "unnamed"
    notes = [f"Chip {chip}: {side} x {side} DNBs of {DNB_UM:g} um are a bin of {bin_um:g} um."]
    if offset.any():
        notes.append(f"x and y of the table are moved by {offset[0]:g} and {offset[1]:g} DNBs (OffsetX, OffsetY).")
    return RawSection(
        name=name,
        patient=None,
        slide=open_slide(source.image, mpp=source.mpp, name=name),
        barcodes=bin_names(found, bin_um),
        centre_px=(found + 0.5) * side,
        diameter_um=source.spot_diameter_um or bin_um,
        counts=counted,
        genes=tuple(gene_of),
        absent_genes="zero",
        pitch_um=(bin_um, bin_um),
        pitch_px=float(side),
        assay_mpp=DNB_UM,
        notes=tuple(notes),
    )


def _bin_dnbs(source: SectionSource) -> tuple[int, np.ndarray, dict[str, str]]:
    """Side of a bin in DNBs, the offset of x and y (2,), and what the header states."""
    stated = comment_lines(source.path, WHAT)
    try:
        finest, *offset = (int(stated.get(key) or 0) for key in ("BinSize", "OffsetX", "OffsetY"))
    except ValueError as error:
        raise BadInput(source.path, WHAT, "BinSize, OffsetX or OffsetY in its header is no whole number") from error
    finest = max(1, finest)
    side = (source.bin_um or BIN_UM) / DNB_UM
    if side != round(side) or side % finest:
        want = f"a multiple of {finest * DNB_UM:g}, the micrometres of the finest bins of {source.path.name}"
        raise BadOption("bin_um", source.bin_um, want=want)
    return int(side), np.array(offset, dtype=np.float64), stated
