"""Slide-seq and Curio Seeker: counts of beads, with an H&E of the same or the next section.

Files
    Slide-seq: ``MappedDGEForR.csv`` (one row a gene, one column a bead) and ``BeadLocationsForR.csv`` (barcodes,
    xcoord, ycoord). Curio Seeker: ``S_MoleculesPerMatchedBead.mtx``, ``S_barcodes.tsv``, ``S_genes.tsv`` and
    ``S_MatchedBeadLocation.csv``. Each may be gzipped, and may have a prefix. (``S_anndata.h5ad`` of Curio is read as
    `ann_data`.)
Coordinates
    As the position file states them, mapped to level-0 pixels of the H&E by `affine`. Their unit differs between
    pipelines and no file states it: it follows from the affine and the scale of the H&E, which must be known.
Spots
    Beads of 10 um, or with `bin_um` the sums of the beads whose centre lies in a square of that side, parallel to the
    edges of the H&E. A bead holds few molecules: for training, 50 to 100 um are sensible.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadInput, BadOption, CmrcnetError, MissingInput, SectionError
from cmrcnet.readers.long_tables import long_table
from cmrcnet.readers.raw_section import RawSection, refuse_unmatched
from cmrcnet.readers.registry import SectionSource, register_reader
from cmrcnet.readers.sparse_files import read_mtx
from cmrcnet.readers.square_bins import bin_names, summed_cells
from cmrcnet.readers.tables import first_names, read_count_table
from cmrcnet.readers.text_files import files_ending, plain_or_gzipped, read_text
from cmrcnet.slides.section import repeated
from cmrcnet.slides.slide import known_scale, open_slide

BEAD_UM = 10.0
PITCH_UM = (10.0, 40.0)
"""Beads touch; where few of them are matched, neighbours are further apart."""
PARTS = {
    "MappedDGEForR.csv": ("BeadLocationsForR.csv",),
    "MoleculesPerMatchedBead.mtx": ("MatchedBeadLocation.csv", "barcodes.tsv", "genes.tsv"),
}
"""Ending of the counts, and of the files that belong to them, the positions first."""
WRITER = {
    "MappedDGEForR.csv": "the Slide-seq tools write it beside the other, copy it from there",
    "MoleculesPerMatchedBead.mtx": "the Curio Seeker pipeline writes it into OUTPUT/SAMPLE, copy it from there",
}
POSITIONS = "a table of bead positions"
BARCODES = ("barcodes", "barcode")


def looks_like_slide_seq(path: Path) -> bool:
    """A folder with counts or positions of Slide-seq or Curio Seeker, or these counts."""
    return bool(_counts_files(path) or (path.is_dir() and _positions_files(path)))


def slide_seq_problems(source: SectionSource) -> list[CmrcnetError]:
    """Errors for a missing file, image or affine."""
    problems: list[CmrcnetError] = []
    try:
        path, kind = _counts_file(source.path)
        for part in PARTS[kind]:
            if part != PARTS[kind][0] or source.spots is None:
                _beside(path, kind, part)
    except CmrcnetError as error:
        problems.append(error)
    if source.image is None:
        problems.append(BadOption("image", None, want="the H&E image of the section, which no bead array has"))
    if source.affine is None:
        want = "the map from bead coordinates to pixels of the H&E, which no file states"
        problems.append(BadOption("affine", None, want=want))
    return problems


@register_reader("slide_seq", recognises=looks_like_slide_seq, problems=slide_seq_problems, binned=True)
def read_slide_seq(source: SectionSource) -> RawSection:
    """Read one puck or tile of beads.

    Parameters
    ----------
    source : SectionSource
        `path` is the folder or the counts in it; `spots` the positions, where they lie elsewhere; `image` the H&E;
        `affine` from bead coordinates to its pixels; `bin_um` the side of the bins, None for beads.

    Raises
    ------
    MissingInput, BadInput, BadOption, SectionError, ScaleError
    """
    path, kind = _counts_file(source.path)
    if source.image is None or source.affine is None:
        raise slide_seq_problems(source)[0]
    name = source.name or path.name.partition(kind)[0].rstrip("_.-") or path.resolve().parent.name
    slide = open_slide(source.image, mpp=source.mpp, name=name)
    unit_um = known_scale(slide) * source.affine.scale
    if kind == "MappedDGEForR.csv":
        table = read_count_table(path)
        barcodes, genes, counts = list(table.columns), table.rows, sparse.csr_matrix(table.values.T)
    else:
        texts = [read_text(_beside(path, kind, part), "The list") for part in ("barcodes.tsv", "genes.tsv")]
        barcodes, genes = ([line.split("\t")[0].strip() for line in text.split("\n") if line.strip()] for text in texts)
        counts = sparse.csr_matrix(read_mtx(path, (len(genes), len(barcodes))).T)
    positions = source.spots or _beside(path, kind, PARTS[kind][0])
    listed, places = _positions(positions)
    for names, where in ((barcodes, path.name), (listed, positions.name)):
        if twice := repeated(names):
            raise SectionError.repeated_barcodes(twice, where)
    line_of = dict(zip(listed, range(len(listed)), strict=True))
    kept = [i for i, barcode in enumerate(barcodes) if barcode in line_of]
    unlisted = [barcode for barcode in barcodes if barcode not in line_of]
    hint = f"check that {path.name} and {positions.name} are of one section"
    refuse_unmatched(unlisted, len(barcodes), f"beads of {path.name} have no position", hint)
    notes = [f"{len(unlisted)} of {len(barcodes)} beads have no position: dropped."] if unlisted else []
    centre = places[[line_of[barcodes[i]] for i in kept]]
    names, counts, diameter = [barcodes[i] for i in kept], counts[kept], BEAD_UM
    if source.bin_um is not None:
        bins, centre_um, counts = summed_cells(centre * unit_um, counts, source.affine, source.bin_um)
        centre, names, diameter = centre_um / unit_um, bin_names(bins, source.bin_um), source.bin_um
        notes.append(f"Bins of {source.bin_um:g} um are sums of the beads whose centre they hold.")
    notes.append(f"A unit of the bead coordinates has {unit_um:.4g} um, by the affine and the scale of the image.")
    return RawSection(
        name=name,
        patient=None,
        slide=slide,
        barcodes=names,
        centre_px=centre,
        diameter_um=source.spot_diameter_um or diameter,
        counts=counts,
        genes=genes,
        absent_genes="unmeasured",
        pitch_um=PITCH_UM if source.bin_um is None else (source.bin_um, source.bin_um),
        pitch_px=None if source.bin_um is None else source.bin_um / unit_um,
        notes=tuple(notes),
    )


def _counts_files(path: Path) -> list[tuple[Path, str]]:
    """Counts at a path and their kind."""
    if path.is_file():
        return [(path, kind) for kind in PARTS if path.name.removesuffix(".gz").endswith(kind)]
    return [(file, kind) for kind in PARTS for file in files_ending(path, kind)]


def _counts_file(path: Path) -> tuple[Path, str]:
    found = _counts_files(path)
    if len(found) > 1:
        names = ", ".join(file.name for file, _ in found)
        raise BadInput(path, "one section", f"{len(found)} files could be its counts ({names}); give one as counts")
    if not found:
        file, kind = next(iter(_positions_files(path)), (path / PARTS["MappedDGEForR.csv"][0], "MappedDGEForR.csv"))
        prefix = file.name.partition(PARTS[kind][0])[0]
        raise MissingInput(path / f"{prefix}{kind}", "The file of counts", WRITER[kind])
    return found[0]


def _positions_files(path: Path) -> list[tuple[Path, str]]:
    """Positions in a folder and the kind of the counts that they belong to."""
    return [(file, kind) for kind, parts in PARTS.items() for file in files_ending(path, parts[0])]


def _beside(counts: Path, kind: str, part: str) -> Path:
    """The file that belongs to the counts: same prefix, other ending, gzipped or not."""
    prefix = counts.name.partition(kind)[0]
    wanted = counts.with_name(f"{prefix}{part}")
    found = plain_or_gzipped(wanted)
    if found is None:
        raise MissingInput(wanted, "The file", WRITER[kind])
    return found


def _positions(path: Path) -> tuple[list[str], np.ndarray]:
    """Barcodes and x, y (beads, 2): two columns beside the column of barcodes, which is named so or the first."""
    try:
        columns = first_names(path, lines=1)[1]
    except UnicodeDecodeError as error:
        raise BadInput(path, POSITIONS, f"it is no UTF-8 text ({error.reason})") from error
    named = [column for column in columns if column in BARCODES]
    numbers = [column for column in columns if column not in BARCODES]
    if len(numbers) != 2:
        raise BadInput(path, POSITIONS, f"wanted barcodes, x and y, and it has the columns {', '.join(columns[:12])}")
    texts = {"barcode": named[:1]}
    blocks = list(long_table(path, POSITIONS, texts, {"x": numbers[:1], "y": numbers[1:]}))
    if not blocks:
        raise BadInput(path, POSITIONS, "it lists no bead")
    names = [str(name) for block in blocks for name in block["barcode"]]
    return names, np.concatenate([block[["x", "y"]].to_numpy() for block in blocks])
