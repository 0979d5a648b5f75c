"""10x Visium: the `outs` folder of Space Ranger, and the count matrix that CellRanger and Space Ranger write.

Scale
    Space Ranger writes the diameter of a *theoretical 65 um spot* in pixels of the full-resolution picture
    (`spot_diameter_fullres`; 10x Genomics, "Spatial outputs"), although a Visium spot is 55 um wide. Taking it for
    55 um makes every length 15 % too short, so the scale is measured instead: neighbouring spots lie 100 um apart,
    and all locations of the array are listed in the positions file, under tissue or not. The written diameter must
    agree within `WRITTEN_FACTOR`; it alone gives the scale when too few locations are listed. A `microns_per_pixel` in
    the file, or an `mpp` of the user, comes first. The notes state which one was used.
Picture
    The full-resolution picture is not part of `outs`: it is given as `image`. Without it,
    `spatial/tissue_hires_image.png` (2,000 px at most, 3 to 6 um per px) is used, and a note states its scale.
Counts
    One `.h5` file, or a folder of three Matrix Market files (10x Genomics, "Feature-barcode matrices"), read with h5py
    and SciPy; the tests compare with scanpy.
Probes
    Where genes are measured by probes (FFPE, CytAssist), `outs/probe_set.csv` lists them. A gene of which all probes
    are excluded and which was counted nowhere was not measured, and is dropped.
Libraries
    `spaceranger aggr` puts several capture areas into one matrix and tells them apart by the suffix of their barcodes
    (-1, -2), while the positions file of each says -1. One is chosen by `library`, or by the positions where these
    name exactly the spots of one suffix; otherwise such a matrix is refused.

Long because it is one thing: this platform.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadInput, BadOption, CmrcnetError, MissingInput, ScaleError, SectionError, UnknownName
from cmrcnet.readers.raw_section import RawSection, neighbour_distance_px, refuse_unmatched
from cmrcnet.readers.registry import Assay, SectionSource, register_reader
from cmrcnet.readers.sparse_files import open_h5, read_mtx
from cmrcnet.readers.tables import Table, read_table
from cmrcnet.readers.text_files import open_text, read_json, read_text
from cmrcnet.slides.section import repeated
from cmrcnet.slides.slide import open_slide
from cmrcnet.storage.arrays import LARGEST_SHAPE, sparse_fault

SPOT_UM = 55.0
PITCH_UM = (100.0, 100.0)
WRITTEN_SPOT_UM = 65.0
"""Diameter in micrometres of the spot that `spot_diameter_fullres` gives in pixels."""
WRITTEN_FACTOR = 1.5
FEWEST_LOCATIONS = 20
"""Fewest listed locations whose distance is measured; with fewer the scale is taken from the file."""

POSITION_COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
POSITION_FILES = ("tissue_positions.csv", "tissue_positions_list.csv", "tissue_positions.parquet")
MATRICES = ("filtered_feature_bc_matrix", "raw_feature_bc_matrix")
SCALED_PICTURES = {"tissue_hires_image": "tissue_hires_scalef", "tissue_lowres_image": "tissue_lowres_scalef"}


def looks_like_visium(path: Path) -> bool:
    """A folder with `spatial/` and a 10x matrix (or the `.h5` in it, or the folder above `outs`)."""
    if path.is_file() and not (path.suffix == ".h5" and any(name in path.name for name in MATRICES)):
        return False
    outs = _outs(path)
    if (outs / "binned_outputs").is_dir() or (outs / "spatial" / "tissue_positions.parquet").is_file():
        return False  # Visium HD
    return (outs / "spatial").is_dir() and (_positions_file(outs) is not None or _matrix_path(outs, path) is not None)


def visium_problems(source: SectionSource) -> list[CmrcnetError]:
    """Errors for a missing matrix, positions file or picture, and for Visium HD, which is another format."""
    outs = _outs(source.path)
    if (outs / "binned_outputs").is_dir():
        return [BadInput.unclear_format(source.path, "it is Visium HD (binned_outputs)", ["visium_hd"])]
    try:
        matrix, positions = _matrix_path(outs, source.path), source.spots or _positions_file(outs)
    except CmrcnetError as error:
        return [error]
    no_picture = source.image is None and not (outs / "spatial" / "tissue_hires_image.png").is_file()
    if matrix is not None and positions is not None and not no_picture:
        return []
    problems: list[CmrcnetError] = []
    seen = version_seen(outs, sorted(outs.glob("*_feature_bc_matrix.h5")))
    if matrix is None:
        hint = f"Space Ranger writes it into outs/, also as the folder {MATRICES[0]} ({seen}), copy it from there"
        problems.append(MissingInput(outs / f"{MATRICES[0]}.h5", "The count matrix", hint))
    if positions is None:
        hint = f"Space Ranger writes it into outs/spatial/, before 2.0 as tissue_positions_list.csv ({seen}), copy it"
        problems.append(MissingInput(outs / "spatial" / "tissue_positions.csv", "The file of spot positions", hint))
    if no_picture:
        want = "the full-resolution picture, which Space Ranger does not copy (outs/spatial/tissue_hires_image.png, "
        problems.append(BadOption("image", None, want=f"{want}the reduced one, is missing too; {seen})"))
    return problems


def version_seen(outs: Path, matrices: Iterable[Path]) -> str:
    """The version of Space Ranger that wrote a folder, as far as its files tell, as part of a sentence."""
    for path in (outs.parent / "_versions", outs / "_versions"):
        if path.is_file():
            stated = read_json(path, "The file of versions").get("pipelines", "none stated")
            return f"version seen: {stated} in _versions"
    for path in matrices:
        version = None
        with contextlib.suppress(BadInput), open_h5(path, H5, in_blocks=True) as file:
            version = file.attrs.get("software_version")
        if version is not None:
            return f"version seen: {version.decode() if isinstance(version, bytes) else version}"
    if (outs / "spatial" / "tissue_positions.csv").is_file():
        return "version seen: 2.0 or later, by its files"
    if (outs / "spatial" / "tissue_positions_list.csv").is_file():
        return "version seen: 1, by its files"
    return "its version is not stated in the files at hand"


@register_reader("visium", recognises=looks_like_visium, problems=visium_problems, proteins=True)
def read_visium(source: SectionSource) -> RawSection:
    """Read one Visium capture area.

    Parameters
    ----------
    source : SectionSource
        `path` is `outs`, the folder above it, or the `.h5` matrix in it; `image` the full-resolution picture.

    Raises
    ------
    MissingInput, BadInput, BadOption, SectionError, ScaleError
    """
    outs = _outs(source.path)
    matrix_path, positions_path = _matrix_path(outs, source.path), source.spots or _positions_file(outs)
    if matrix_path is None or positions_path is None:
        raise visium_problems(source)[0]
    matrix, positions = read_tenx_matrix(matrix_path, source.assay), read_positions(positions_path)
    factors = read_scale_factors(outs / "spatial" / "scalefactors_json.json")
    if source.assay == "genes":
        matrix = without_excluded(matrix, outs / "probe_set.csv")
    notes = list(matrix.notes)
    if matrix_path.name.startswith("raw") and source.path != matrix_path:
        notes.append(f"There is no filtered matrix; the spots under tissue of {matrix_path.name} are taken.")

    listed = positions.text("barcode")
    if twice := repeated(listed):
        raise SectionError.repeated_barcodes(twice, positions.path.name)
    under_tissue = positions.numbers("in_tissue") == 1
    library, how = _library(matrix.barcodes, listed, under_tissue, source.library, matrix_path)
    if how:
        notes.append(how)
    mine, lines = _of_library(matrix.barcodes, library), _of_library(listed, library)
    line_of = {(listed[i] if library is None else _stem(listed[i])): i for i in lines}
    found = {i: line_of.get(matrix.barcodes[i] if library is None else _stem(matrix.barcodes[i])) for i in mine}
    hint = f"check that {matrix_path.name} and {positions_path.name} are of one section"
    unlisted = [matrix.barcodes[i] for i in mine if found[i] is None]
    refuse_unmatched(unlisted, len(mine), f"barcodes of {matrix_path.name} have no position", hint)
    counted = set(found.values())
    tissue = [i for i in lines if under_tissue[i]]
    uncounted = [listed[i] for i in tissue if i not in counted]
    refuse_unmatched(uncounted, len(tissue), f"spots under tissue of {positions_path.name} have no counts", hint)
    line_of_row = {i: line for i, line in found.items() if line is not None and under_tissue[line]}
    if unlisted:
        notes.append(f"{len(unlisted)} of {len(mine)} barcodes have no position: dropped.")
    if off_tissue := len(mine) - len(unlisted) - len(line_of_row):
        notes.append(f"{off_tissue} of {len(mine)} spots are not under tissue: dropped.")
    pixels = np.column_stack([positions.numbers("pxl_col_in_fullres"), positions.numbers("pxl_row_in_fullres")])
    rows, centres, pixels = list(line_of_row), pixels[list(line_of_row.values())].reshape(-1, 2), pixels[lines]

    name = source.name or name_of_run(source.path if source.path.is_dir() else source.path.parent)
    array = np.column_stack([positions.numbers("array_col"), positions.numbers("array_row")])[lines]
    pitch_px = array_pitch_px(array, pixels) or neighbour_distance_px(pixels)
    stated = source.mpp if source.affine is None else None  # with an affine, mpp is the scale of another picture
    mpp, how = visium_scale(stated, factors, pitch_px if len(pixels) >= FEWEST_LOCATIONS else None, slide=name)
    if how:
        notes.append(how)
    image, scalef = picture_of(source.image, outs, factors)
    slide_mpp = None if mpp is None else mpp / scalef
    if source.affine is not None:
        slide_mpp, scalef = source.mpp, 1.0
    if scalef != 1.0:
        shown = "of unknown scale" if mpp is None else f"{mpp / scalef:.3g} um per px"
        notes.append(
            f"Only the reduced picture {image.name} is at hand ({shown}): "
            "too coarse for cells; give the full-resolution picture as image."
        )
    slide = open_slide(image, mpp=slide_mpp, name=name)
    if slide.mpp is None and not factors and source.affine is None:
        hint = f"Space Ranger writes it into outs/spatial ({version_seen(outs, [matrix_path])}), copy it or give mpp"
        raise MissingInput(outs / "spatial" / "scalefactors_json.json", "The file of scale factors", hint)
    return RawSection(
        name=name,
        patient=None,
        slide=slide,
        barcodes=[matrix.barcodes[i] for i in rows],
        centre_px=centres * scalef,
        diameter_um=source.spot_diameter_um or SPOT_UM,
        counts=matrix.counts[rows],
        genes=matrix.genes,
        absent_genes="unmeasured",
        pitch_um=PITCH_UM,
        pitch_px=None if pitch_px is None else pitch_px * scalef,
        assay_mpp=mpp,
        notes=tuple(notes),
    )


def _suffix(barcode: str) -> str:
    """``2`` of ``AAACAAGTATCTCCCA-2``; empty without a suffix."""
    return barcode.rpartition("-")[2] if "-" in barcode else ""


def _stem(barcode: str) -> str:
    return barcode.rpartition("-")[0] if "-" in barcode else barcode


def _of_library(barcodes: Sequence[str], library: str | None) -> list[int]:
    """Rows of a library: those with its suffix, or all where there is one suffix only."""
    several = library is not None and len(set(map(_suffix, barcodes))) > 1
    return [i for i, barcode in enumerate(barcodes) if not several or _suffix(barcode) == library]


def _library(
    barcodes: Sequence[str], listed: Sequence[str], under_tissue: np.ndarray, wanted: str | None, matrix: Path
) -> tuple[str | None, str]:
    """The suffix of the section in a matrix or a positions file of several, and a sentence that says how it was found.

    Raises
    ------
    BadOption
        There are several and neither `wanted` nor the positions tell which one it is.
    UnknownName
        There is no library of this name.
    """
    of_matrix, of_positions = set(map(_suffix, barcodes)), set(map(_suffix, listed))
    known = sorted(of_matrix | of_positions)
    if wanted is not None:
        named, listing = {}, matrix.parent / "aggregation.csv"  # which `spaceranger aggr` copies to outs
        if listing.is_file():
            table = read_table(listing, "a list of aggregated libraries")
            column = next((name for name in ("library_id", "sample_id") if name in table.columns), table.columns[0])
            named = {name: str(number) for number, name in enumerate(table.text(column), 1)}
        suffix = named.get(wanted, wanted.removeprefix("-"))
        if suffix not in (of_matrix if len(of_matrix) > 1 else known):
            raise UnknownName(f"library in {matrix.name}", wanted, [*known, *named])
        return suffix, ""
    if len(of_matrix) <= 1 and len(of_positions) <= 1:
        return None, ""
    if len(of_positions) == 1:
        tissue = {_stem(barcode) for barcode, under in zip(listed, under_tissue, strict=True) if under}
        stems: dict[str, set[str]] = {suffix: set() for suffix in known}
        for barcode in barcodes:
            stems[_suffix(barcode)].add(_stem(barcode))
        fitting = [suffix for suffix in known if stems[suffix] == tissue]
        if len(fitting) == 1:
            return fitting[0], (
                f"{matrix.name} holds {len(of_matrix)} libraries; those of suffix -{fitting[0]} are taken, because "
                "their barcodes are exactly the spots under tissue."
            )
    want = (
        f"the suffix of this section's barcodes, one of {', '.join(known)}: {matrix.name} or its positions hold the "
        "barcodes of several libraries (spaceranger aggr); fill in the column library of cohort.csv, or library="
    )
    raise BadOption("library", None, want=want)


def array_pitch_px(array: np.ndarray, pixels: np.ndarray) -> float | None:
    """Pixels between neighbouring locations of the hexagonal array, also where a file lists few of them.

    Parameters
    ----------
    array : numpy.ndarray, shape (n, 2)
        array_col and array_row. Neighbours are 2 columns, or 1 column and 1 row, apart.
    pixels : numpy.ndarray, shape (n, 2)

    Returns
    -------
    float or None
        None where the locations lie otherwise, or are too few.
    """
    if len(array) < FEWEST_LOCATIONS:
        return None
    design = np.column_stack([array, np.ones(len(array))])
    to_px, _, rank, _ = np.linalg.lstsq(design, pixels, rcond=None)
    sides = np.linalg.norm(np.array([[2, 0], [1, 1], [1, -1]]) @ to_px[:2], axis=1)
    off = np.median(np.linalg.norm(design @ to_px - pixels, axis=1))
    is_array = rank == 3 and np.ptp(sides) < 0.05 * sides.mean() and off < 0.1 * sides.mean()
    return float(sides.mean()) if is_array else None


def visium_scale(
    stated: float | None, factors: dict[str, float], pitch_px: float | None, slide: str
) -> tuple[float | None, str]:
    """Micrometres per full-resolution pixel of a Visium section, and a sentence that states its source.

    Parameters
    ----------
    stated : float or None
        Given by the user; it is taken as it is.
    factors : dict
        Of `scalefactors_json.json`.
    pitch_px : float or None
        Pixels between neighbouring locations of the array.
    slide : str
        For the error.

    Raises
    ------
    ScaleError
        When measured and written scale differ by more than `WRITTEN_FACTOR`.
    """
    if stated is not None:
        return stated, ""
    if factors.get("microns_per_pixel"):
        return factors["microns_per_pixel"], "um per px is the microns_per_pixel of Space Ranger."
    written = WRITTEN_SPOT_UM / factors["spot_diameter_fullres"] if factors.get("spot_diameter_fullres") else None
    if pitch_px is None:
        how = f"um per px is {WRITTEN_SPOT_UM:g} um over Space Ranger's spot_diameter_fullres: {written or 0:.4g}."
        return written, how if written else ""
    measured = PITCH_UM[0] / pitch_px
    if written is not None and not 1 / WRITTEN_FACTOR <= measured / written <= WRITTEN_FACTOR:
        evidence = (
            f"the locations of its array are {pitch_px:.1f} px apart, which makes {measured:.4g} (neighbours are "
            f"{PITCH_UM[0]:g} um apart); check that the positions and spot_diameter_fullres, which states that, are of "
            "one section"
        )
        raise ScaleError.contradicted(slide, written, evidence)
    how = f"um per px is measured: neighbouring locations are {pitch_px:.1f} px or 100 um apart: {measured:.4g}."
    return measured, how


def without_excluded(matrix: TenxMatrix, probe_set: Path) -> TenxMatrix:
    """A matrix without the genes of which `probe_set.csv` excludes every probe, unless they were counted all the same.

    Space Ranger excludes probes that may bind to other genes, unless it runs with ``--filter-probes=false``.

    Parameters
    ----------
    matrix : TenxMatrix
    probe_set : pathlib.Path
        Columns probe_id (``ENSG00000121410|A1BG|1e4b2a0``) and included; an absent file changes nothing.

    Raises
    ------
    BadInput
    """
    if not probe_set.is_file():
        return matrix
    lines = [line for line in read_text(probe_set, "The probe set").split("\n") if line and not line.startswith("#")]
    rows = [[cell.strip() for cell in line.split(",")] for line in lines]
    if not rows or "probe_id" not in rows[0] or any(len(row) != len(rows[0]) for row in rows):
        raise BadInput(probe_set, "a probe set of Space Ranger", "it has no column probe_id, or lines of other lengths")
    if "included" not in rows[0]:
        return matrix  # the first probe sets exclude none
    probe, included = rows[0].index("probe_id"), rows[0].index("included")
    of_probe = [(row[probe].split("|")[1:2], row[included].upper() == "TRUE") for row in rows[1:]]
    measured = {name for names, kept in of_probe if kept for name in names}
    excluded = {name for names, kept in of_probe if not kept for name in names} - measured
    counted = np.asarray(matrix.counts.sum(axis=0)).ravel() > 0
    out = np.array([name in excluded for name in matrix.genes])
    notes = list(matrix.notes)
    if (out & ~counted).any():
        notes.append(f"{int((out & ~counted).sum())} genes have excluded probes only and no counts: not measured.")
    if (out & counted).any():
        notes.append(f"{int((out & counted).sum())} genes have counts of probes that {probe_set.name} excludes: kept.")
    kept = np.flatnonzero(~out | counted)
    genes = tuple(matrix.genes[i] for i in kept)
    return TenxMatrix(matrix.barcodes, genes, matrix.counts[:, kept], tuple(notes))


def read_positions(path: Path) -> Table:
    """Read `tissue_positions.csv` (with a header) or `tissue_positions_list.csv` (without).

    Raises
    ------
    MissingInput, BadInput
    """
    if path.suffix == ".parquet":
        raise BadInput(path, "spot positions", "parquet positions belong to Visium HD; give the format visium_hd")
    with open_text(path, "The file of spot positions") as file:
        has_header = b"in_tissue" in file.readline(1 << 12)
    table = read_table(path, "spot positions", columns=None if has_header else POSITION_COLUMNS)
    table.require(POSITION_COLUMNS)
    return table


def read_scale_factors(path: Path) -> dict[str, float]:
    """Read `scalefactors_json.json`; an absent file is an empty dict.

    Raises
    ------
    BadInput
    """
    if not path.is_file():
        return {}
    values = read_json(path, "The scale factors")
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and 0 < value < LARGEST_SHAPE
    }


def _outs(path: Path) -> Path:
    folder = path.parent if path.is_file() else path
    return folder / "outs" if not (folder / "spatial").is_dir() and (folder / "outs").is_dir() else folder


def _matrix_path(outs: Path, path: Path) -> Path | None:
    if path.is_file():
        return path
    for name in MATRICES:
        files = [file for file in sorted(outs.glob(f"*{name}.h5")) if not file.name.startswith(".")]
        if len(files) > 1:
            found = ", ".join(file.name for file in files)
            raise BadInput(outs, "one section", f"{len(files)} files could be its matrix ({found}); give one as counts")
        if files:
            return files[0]
        if (outs / name).is_dir():
            return outs / name
    return None


def _positions_file(outs: Path) -> Path | None:
    found = [path for name in POSITION_FILES if (path := outs / "spatial" / name).is_file()]
    tables = [read_positions(path) for path in found if len(found) > 1 and path.suffix == ".csv"]
    if len(tables) > 1 and [list(row.values()) for row in tables[0].rows] != [
        list(row.values()) for row in tables[1].rows
    ]:
        why = f"{found[0].name} and {found[1].name} list other positions; give one of them as spots"
        raise BadInput(outs / "spatial", "spot positions", why)
    return found[0] if found else None


def picture_of(image: Path | None, outs: Path, factors: dict[str, float]) -> tuple[Path, float]:
    """The picture, and the factor from positions to its pixels."""
    image = image or outs / "spatial" / "tissue_hires_image.png"
    key = SCALED_PICTURES.get(image.stem)
    if key is None:
        return image, 1.0
    if key not in factors:
        raise BadInput(outs / "spatial" / "scalefactors_json.json", "Space Ranger's scale factors", f"it lacks {key}")
    return image, factors[key]


def name_of_run(folder: Path) -> str:
    """Name of an output folder of 10x: that of the folder above where it is called `outs`."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "outs" else folder.name


GENES = "Gene Expression"
PROTEINS = ("Antibody Capture", "Protein Expression")
"""How 10x names the types of features."""
"""The feature type that is a gene; others (antibodies, CRISPR guides) are left out."""

H5 = "a 10x count matrix (.h5)"
FOLDER = "a 10x count matrix (folder of matrix.mtx, barcodes.tsv, features.tsv)"


@dataclass(frozen=True, eq=False)
class TenxMatrix:
    """A count matrix, spots by genes, as stored.

    Parameters
    ----------
    genes : tuple of str
        Symbols; may repeat.
    counts : scipy.sparse.csr_matrix, shape (barcodes, genes)
    """

    barcodes: tuple[str, ...]
    genes: tuple[str, ...]
    counts: sparse.csr_matrix
    notes: tuple[str, ...] = ()


def read_tenx_matrix(path: Path, assay: Assay = "genes") -> TenxMatrix:
    """Read the genes or the proteins of a 10x matrix from its `.h5` file or its folder.

    Raises
    ------
    MissingInput, BadInput
    """
    if not path.is_dir():
        return _read_h5(path, assay)
    barcodes = _lines(_one_of(path, "barcodes.tsv"))
    listed = [line.split("\t") for line in _lines(_one_of(path, "features.tsv", "genes.tsv"))]
    names = [cells[1] if len(cells) > 1 else cells[0] for cells in listed]
    types = [cells[2] if len(cells) > 2 else GENES for cells in listed]
    matrix = read_mtx(_one_of(path, "matrix.mtx"), (len(names), len(barcodes)))
    return _matrix(path, FOLDER, barcodes, names, types, matrix, assay)


def _read_h5(path: Path, assay: Assay) -> TenxMatrix:
    with open_h5(path, H5) as file:
        if "matrix" in file:
            group, listed = file["matrix"], file["matrix/features"]
            names, types = _texts(listed["name"]), _texts(listed["feature_type"])
        else:  # CellRanger 2: one group a genome
            genomes = [name for name in file if "gene_names" in getattr(file[name], "keys", tuple)()]
            if len(genomes) != 1:
                raise BadInput(path, H5, f"it holds no group 'matrix' and {len(genomes)} genomes")
            group = file[genomes[0]]
            names, types = _texts(group["gene_names"]), [GENES] * len(group["gene_names"])
        barcodes = _texts(group["barcodes"])
        shape = tuple(int(n) for n in group["shape"][:])
        data, indices, indptr = group["data"], group["indices"], group["indptr"]
        if why := sparse_fault(data, indices, indptr, shape, by_row=False):
            raise BadInput(path, H5, why)
        matrix = sparse.csc_matrix((data[:], indices[:], indptr[:]), shape=shape)
    return _matrix(path, H5, barcodes, names, types, matrix, assay)


def _matrix(
    path: Path,
    what: str,
    barcodes: list[str],
    names: list[str],
    types: list[str],
    matrix: sparse.csc_matrix,
    assay: Assay,
) -> TenxMatrix:
    """Transpose features x barcodes, and keep the genes, or the proteins."""
    if matrix.shape != (len(names), len(barcodes)) or len(types) != len(names):
        raise BadInput(
            path, what, f"{len(names)} features and {len(barcodes)} barcodes do not fit {matrix.shape} counts"
        )
    wanted = PROTEINS if assay == "proteins" else (GENES,)
    genes = np.flatnonzero([kind in wanted for kind in types])
    if assay == "proteins" and not len(genes):
        why = f"it holds no proteins (features of type {' or '.join(wanted)}), only {', '.join(sorted(set(types)))}"
        raise BadInput(path, what, why)
    notes: tuple[str, ...] = ()
    if len(genes) < len(names):
        others = ", ".join(sorted(set(types) - set(wanted)))
        notes = (f"{len(names) - len(genes)} features are of another kind ({others}): left out.",)
    counts = sparse.csr_matrix(matrix.T)[:, genes]
    return TenxMatrix(tuple(barcodes), tuple(names[i] for i in genes), counts, notes)


def _one_of(folder: Path, *names: str) -> Path:
    found = [path for name in names for path in (folder / f"{name}.gz", folder / name) if path.is_file()]
    if len(found) > 1:
        several = ", ".join(path.name for path in found)
        raise BadInput(folder, FOLDER, f"it holds {several}, of which one is wanted; remove the others")
    if not found:
        hint = "a 10x matrix folder holds matrix.mtx, barcodes.tsv, features.tsv"
        raise MissingInput(folder / names[0], "The file", hint)
    return found[0]


def _lines(path: Path) -> list[str]:
    return [line for line in read_text(path, "The list").split("\n") if line.strip()]


def _texts(dataset) -> list[str]:
    return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in dataset[:]]
