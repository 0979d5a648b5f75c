"""10x Xenium: the output folder of Xenium Onboard Analysis or Xenium Ranger, with an H&E of the same section.

Coordinates
    Micrometres, from the corner of the morphology (DAPI) image. They are mapped to the H&E by, in this order: the
    `affine` of the user (micrometres to level-0 pixels); the alignment that Xenium Explorer exports,
    ``<image>alignment.csv`` beside the image or in the folder (3x3, H&E pixels to DAPI pixels, inverted here); or, for
    an H&E that was registered already, the identity, if its size is that of the morphology image.
Cells
    Without `bin_um` the spots are the cells: `cell_feature_matrix` (.h5, folder or .zarr.zip) at the centroids of
    `cells.parquet` or `cells.csv.gz`. The diameter is that of a disc of the median cell area.
Bins
    With `bin_um`, transcripts of `transcripts.parquet` with a quality of 20 and more are counted in squares of that
    side, whose edges are parallel to those of the H&E. Squares further than 20 um from every cell are no tissue
    and dropped. The diameter of a spot is the side of its square.
Features
    Genes only. Negative control probes and codewords, genomic controls, unassigned and deprecated codewords, and
    proteins are left out, by the type that the matrix states and by `is_gene`.

Long because it is one thing: this platform.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadInput, BadOption, CmrcnetError, MissingInput, SectionError, TooFew
from cmrcnet.genes.naming import CONTROL_PATTERNS
from cmrcnet.readers.affine import Affine, read_affine
from cmrcnet.readers.long_tables import numbers_of, parquet_batches, texts_of
from cmrcnet.readers.raw_section import RawSection, neighbour_distance_px
from cmrcnet.readers.registry import Assay, SectionSource, register_reader
from cmrcnet.readers.sparse_files import open_h5
from cmrcnet.readers.square_bins import CELL_UM, SquareBins, bin_names, bins_near_cells, listed_cells, turn_of
from cmrcnet.readers.text_files import FREE_BYTES, MOST_UNPACKED, open_bytes, read_json
from cmrcnet.readers.visium import GENES, H5, PROTEINS, TenxMatrix, name_of_run, read_tenx_matrix
from cmrcnet.slides.section import repeated
from cmrcnet.slides.slide import Slide, open_slide
from cmrcnet.storage.arrays import sparse_fault
from cmrcnet.storage.refusals import first_line

LEAST_QUALITY = 20.0
"""Quality (qv) of a transcript, as in the cell matrix of Xenium."""
LEAST_BIN_UM = 2.0
"""Smallest side of a bin; transcripts are located to a fraction of a micrometre."""
REGISTERED = 0.01
"""Largest relative difference in size between the morphology image and an H&E that counts as registered to it."""
NO_MORPHOLOGY = "and there is no morphology image that it could be registered to"

WHAT = "experiment.xenium"
TRANSCRIPTS = "transcripts (transcripts.parquet)"
CELLS = "cells (cells.parquet)"
MATRICES = ("cell_feature_matrix.h5", "cell_feature_matrix", "cell_feature_matrix.zarr.zip")
MORPHOLOGY = (
    "morphology.ome.tif",
    "morphology_focus.ome.tif",
    "morphology_mip.ome.tif",
    "morphology_focus/[!.]*.ome.tif",
)


def looks_like_xenium(path: Path) -> bool:
    """A folder with experiment.xenium or transcripts of Xenium, the folder above it (`outs`), or a file in it."""
    outs = _outs(path)
    return any((outs / name).is_file() for name in (WHAT, "transcripts.parquet", "transcripts.zarr.zip"))


def xenium_problems(source: SectionSource) -> list[CmrcnetError]:
    """Errors for a missing file, image or alignment, with the program that writes it and the version seen."""
    outs = _outs(source.path)
    try:
        experiment = read_experiment(outs / WHAT)
    except CmrcnetError as error:
        return [error]
    hint = f"Xenium Onboard Analysis and Xenium Ranger write it there (version seen: {experiment.version}), copy it"
    problems: list[CmrcnetError] = []
    if source.spots is not None:
        problems.append(BadOption("spots", source.spots.name, want="nothing: the folder holds the cells"))
    if source.bin_um is not None and source.bin_um < LEAST_BIN_UM:
        problems.append(BadOption("bin_um", source.bin_um, want=f"{LEAST_BIN_UM:g} um or more"))
    if _cells_file(outs) is None:
        problems.append(MissingInput(outs / "cells.parquet", "The cell table", f"{hint} or cells.csv.gz"))
    if source.bin_um is None and _matrix_path(outs) is None:
        problems.append(MissingInput(outs / MATRICES[0], "The count matrix", f"{hint}, its folder or its .zarr.zip"))
    if source.bin_um is not None and not (outs / "transcripts.parquet").is_file():
        others = [path.name for path in sorted(outs.glob("transcripts.*")) if not path.name.startswith(".")]
        instead = f" (found, but not read: {', '.join(others)})" if others else ""
        problems.append(MissingInput(outs / "transcripts.parquet", "The file of transcripts", f"{hint}{instead}"))
    if source.image is None:
        problems.append(BadOption("image", None, want="the H&E image of the section, which is not part of the folder"))
    elif source.affine is None and not any(
        map(Path.is_file, (*alignment_paths(source.image, outs), *_morphology(outs)))
    ):
        problems.append(_unaligned(source.image, outs, NO_MORPHOLOGY))
    return problems


@register_reader("xenium", recognises=looks_like_xenium, problems=xenium_problems, binned=True, proteins=True)
def read_xenium(source: SectionSource) -> RawSection:
    """Read one Xenium region: its cells, or its transcripts in square bins.

    Parameters
    ----------
    source : SectionSource
        `path` is the output folder; `image` the H&E; `bin_um` the side of the bins, None for cells.

    Raises
    ------
    MissingExtra, MissingInput, BadInput, BadOption, SectionError
    """
    outs = _outs(source.path)
    if source.image is None:
        raise xenium_problems(source)[0]
    experiment = read_experiment(outs / WHAT)
    name = source.name or name_of_run(outs)
    slide = open_slide(source.image, mpp=source.mpp, name=name)
    affine, how = source.affine, ""
    if affine is None:
        affine, how = _affine_of(source.image, outs, slide, experiment)
    if source.assay == "proteins" and source.bin_um is not None:
        raise BadOption("bin_um", source.bin_um, want="nothing for proteins, which are measured cell by cell")
    cells = read_cells(outs)
    if source.bin_um is None:
        spots = _cell_spots(outs, cells, source.assay)
    else:
        spots = _bin_spots(outs, cells, affine, source.bin_um)
    pitch = source.bin_um or neighbour_distance_px(spots.centre_um)
    return RawSection(
        name=name,
        patient=None,
        slide=slide,
        barcodes=spots.barcodes,
        centre_px=spots.centre_um,
        diameter_um=source.spot_diameter_um or spots.diameter_um,
        counts=spots.counts,
        genes=spots.genes,
        absent_genes="unmeasured",
        pitch_um=(pitch or CELL_UM, pitch or CELL_UM),
        pitch_px=pitch,
        affine=affine,
        assay_mpp=1.0,
        notes=(*spots.notes, *([how] if how else [])),
    )


@dataclass(frozen=True)
class Experiment:
    """What `experiment.xenium` states.

    Parameters
    ----------
    pixel_um : float
        Micrometres per pixel of the morphology image.
    version : str
        Of Xenium Ranger where it made the folder, else of Xenium Onboard Analysis.
    """

    pixel_um: float
    version: str


def read_experiment(path: Path) -> Experiment:
    """Read `experiment.xenium`.

    Raises
    ------
    MissingInput, BadInput
    """
    if not path.is_file():
        hint = "Xenium Onboard Analysis and Xenium Ranger write it into their output folder, give that whole folder"
        raise MissingInput(path, "The file", hint)
    content = read_json(path, "The experiment")
    try:
        pixel_um = float(content["pixel_size"])
        ranger = content.get("xenium_ranger") or {}
        version = str(ranger.get("version") or content.get("analysis_sw_version") or "none stated")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise BadInput(path, "a Xenium experiment (JSON)", "it states no pixel_size, or no version as text") from error
    if not 0.01 < pixel_um < 10:
        raise BadInput(path, "a Xenium experiment (JSON)", f"its pixel_size is {pixel_um:g} um")
    return Experiment(pixel_um, version)


def _outs(path: Path) -> Path:
    folder = path.parent if path.is_file() else path
    return folder / "outs" if not (folder / WHAT).is_file() and (folder / "outs" / WHAT).is_file() else folder


# --- alignment ---------------------------------------------------------------------------------------------------


def alignment_paths(image: Path, outs: Path) -> tuple[Path, ...]:
    """Where the alignment of an image may lie: ``S1_he_image.ome.tif`` has ``S1_he_imagealignment.csv``."""
    stem = image.name
    for suffix in (image.suffix, ".ome"):
        stem = stem.removesuffix(suffix)
    return tuple(folder / f"{stem}{joint}alignment.csv" for folder in (image.parent, outs) for joint in ("", "_"))


def _affine_of(image: Path, outs: Path, slide: Slide, experiment: Experiment) -> tuple[Affine, str]:
    """The map from micrometres to level-0 pixels of the H&E that the files state, and a sentence on its source."""
    found = [path for path in alignment_paths(image, outs) if path.is_file()]
    if found:
        to_image = read_affine(found[0], alignment=True).inverse().matrix  # from pixels of the morphology image
        to_image[:, :2] /= experiment.pixel_um
        return Affine.of(to_image, found[0]), f"The H&E is aligned by {found[0].name} of Xenium Explorer."
    morphology = next(iter(_morphology(outs)), None)
    if morphology is None:
        raise _unaligned(image, outs, NO_MORPHOLOGY)
    width, height = _size_of(morphology)
    across, down = slide.width_px / width, slide.height_px / height
    implied = experiment.pixel_um / np.sqrt(across * down)
    same_shape = abs(across / down - 1) <= REGISTERED
    if not same_shape or (slide.mpp is not None and abs(slide.mpp / implied - 1) > REGISTERED):
        scale = "" if slide.mpp is None else f" of {slide.mpp:.4g} um"
        why = f"and its {slide.width_px} x {slide.height_px} px{scale} are not the size of {morphology.name} "
        raise _unaligned(image, outs, why + f"({width} x {height} px of {experiment.pixel_um:.4g} um)")
    px_of_um = 1 / implied
    how = f"No alignment: {image.name} has the size of {morphology.name} and is taken as registered to it."
    return Affine(px_of_um, 0.0, 0.0, 0.0, px_of_um, 0.0), how


def _unaligned(image: Path, outs: Path, why: str) -> BadInput:
    """The error of an H&E whose place is unknown."""
    path = alignment_paths(image, outs)[0]
    found = sorted({file.name for folder in (image.parent, outs) for file in folder.glob("[!.]*alignment.csv")})
    others = f" (found: {', '.join(found[:3])})" if found else ""
    return BadInput.from_sentence(
        f"{image.name} has no alignment, {why}; export it from Xenium Explorer (Add image, Download alignment) as "
        f"{path.name} beside the image{others}, or give the affine from micrometres to pixels of the image."
    )


def _morphology(outs: Path) -> list[Path]:
    """Morphology images of the folder."""
    return [path for pattern in MORPHOLOGY for path in sorted(outs.glob(pattern))]


def _size_of(path: Path) -> tuple[int, int]:
    """Width and height of an OME-TIFF."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            return int(page.imagewidth), int(page.imagelength)
    except Exception as error:  # tifffile raises a dozen kinds for a damaged file
        raise BadInput(path, "a morphology image (OME-TIFF)", first_line(error)) from error


# --- cells -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Cells:
    """The cell table.

    Parameters
    ----------
    names : list of str
        All different.
    centre_um : numpy.ndarray, shape (cells, 2), float64
        x, y of the centroids.
    area_um2 : numpy.ndarray, shape (cells,), float64, or None
        Where stated.
    """

    names: list[str]
    centre_um: np.ndarray
    area_um2: np.ndarray | None


@dataclass(frozen=True, eq=False)
class _Spots:
    """Spots of one mode: cells or bins; centres in micrometres."""

    barcodes: list[str]
    centre_um: np.ndarray
    diameter_um: float
    counts: sparse.csr_matrix
    genes: tuple[str, ...]
    notes: tuple[str, ...]


def _cells_file(outs: Path) -> Path | None:
    return next(
        (path for path in (outs / "cells.parquet", outs / "cells.csv.gz", outs / "cells.csv") if path.is_file()), None
    )


def _matrix_path(outs: Path) -> Path | None:
    return next((outs / name for name in MATRICES if (outs / name).exists()), None)


def read_cells(outs: Path) -> Cells:
    """Read `cells.parquet`, or `cells.csv.gz`.

    Raises
    ------
    MissingExtra, MissingInput, BadInput, SectionError
    """
    path = _cells_file(outs)
    if path is None:
        raise MissingInput(outs / "cells.parquet", "The cell table")
    columns = ("cell_id", "x_centroid", "y_centroid")
    if path.suffix == ".parquet":
        names: list[str] = []
        numbers: list[np.ndarray] = []
        for batch in parquet_batches(path, CELLS, columns, optional=("cell_area",)):
            names += texts_of(batch.column("cell_id"), path)
            wanted = [key for key in (*columns[1:], "cell_area") if key in batch.schema.names]
            numbers.append(np.column_stack([numbers_of(batch, key, path, CELLS).astype(np.float64) for key in wanted]))
        values = np.concatenate(numbers) if numbers else np.empty((0, 2))
    else:
        names, values = _cells_of_text(path, columns)
    if not names:
        raise TooFew(f"cells in {path}", 0, 1, "check that the folder was copied as a whole")
    if twice := repeated(names):
        raise SectionError.repeated_barcodes(twice, path.name)
    return Cells(names, values[:, :2], values[:, 2] if values.shape[1] > 2 else None)


def _cells_of_text(path: Path, columns: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    """Names, and x, y and perhaps area, of `cells.csv.gz`."""
    import pandas as pd

    wanted = (*columns, "cell_area")
    read_csv: Any = pd.read_csv
    try:
        with open_bytes(path, "The cell table") as file:
            table = read_csv(
                file,
                dtype={"cell_id": str},
                keep_default_na=False,
                usecols=lambda key: key in wanted,
                float_precision="round_trip",  # the others crash on an exponent of many digits
            )
        if missing := [key for key in columns if key not in table]:
            raise BadInput.columns(path, missing, list(table))
        values = table[[key for key in wanted[1:] if key in table]].to_numpy(np.float64)
    except BadInput:
        raise
    except (ValueError, OSError) as error:
        raise BadInput(path, CELLS, first_line(error)) from error
    if not np.isfinite(values).all():
        raise BadInput(path, CELLS, "its columns hold empty cells or no numbers")
    return table["cell_id"].tolist(), values


def _cell_spots(outs: Path, cells: Cells, assay: Assay) -> _Spots:
    """Every cell as a spot."""
    path = _matrix_path(outs)
    if path is None:
        raise MissingInput(outs / MATRICES[0], "The count matrix")
    matrix = read_zarr_matrix(path, assay) if path.suffix == ".zip" else read_tenx_matrix(path, assay)
    listed, missing = listed_cells(matrix.barcodes, cells.names, path, "a Xenium count matrix", "the cell table")
    notes = [*matrix.notes, *missing]
    diameter = CELL_UM
    if cells.area_um2 is not None and np.median(cells.area_um2) > 0:
        diameter = float(np.sqrt(4 / np.pi * np.median(cells.area_um2)))
    else:
        notes.append(f"The cell table states no area; the diameter of a cell is taken as {CELL_UM:g} um.")
    rows = np.flatnonzero(listed >= 0)
    return _Spots(
        [matrix.barcodes[row] for row in rows],
        cells.centre_um[listed[rows]],
        diameter,
        matrix.counts[rows] if missing else matrix.counts,
        matrix.genes,
        tuple(notes),
    )


def read_zarr_matrix(path: Path, assay: Assay = "genes") -> TenxMatrix:
    """Read `cell_feature_matrix.zarr.zip`: one row a feature, one column a cell.

    Raises
    ------
    BadInput
    """
    import zarr
    from zarr.storage import ZipStore

    try:
        store = ZipStore(path, mode="r")
        try:
            group: Any = zarr.open_group(store, mode="r")["cell_features"]
            names, kinds = group.attrs["feature_keys"], group.attrs["feature_types"]
            arrays = [group[key] for key in ("data", "indices", "indptr", "cell_id")]
            if max(array.nbytes for array in arrays) > max(FREE_BYTES, MOST_UNPACKED * path.stat().st_size):
                raise ValueError("its arrays are too large for the file")
            data, indices, starts, ids = (np.asarray(array[:]) for array in arrays)
        finally:
            store.close()
        if why := sparse_fault(data, indices, starts, (len(names), len(ids)), by_row=True):
            raise ValueError(why)
        if len(kinds) != len(names):
            raise ValueError(f"{len(names)} features have {len(kinds)} types")
        by_feature = sparse.csr_matrix((data, indices, starts), shape=(len(names), len(ids)))
    except Exception as error:  # zarr, zipfile and the codecs raise a dozen kinds for a damaged file
        raise BadInput(
            path, "a Xenium count matrix (.zarr.zip)", f"it is damaged or of another kind ({first_line(error)})"
        ) from error
    wanted = ("protein", *PROTEINS) if assay == "proteins" else ("gene", GENES)
    genes = [i for i, kind in enumerate(kinds) if kind in wanted]
    if assay == "proteins" and not genes:
        why = f"it holds no proteins, only features of type {', '.join(sorted(set(kinds)))}"
        raise BadInput(path, "a Xenium count matrix (.zarr.zip)", why)
    others = sorted(set(kinds) - set(wanted))
    notes = (
        (f"{len(kinds) - len(genes)} features are of another kind ({', '.join(others)}): left out.",) if others else ()
    )
    counts = sparse.csr_matrix(by_feature[genes].T)
    return TenxMatrix(tuple(_cell_names(ids)), tuple(str(names[i]) for i in genes), counts, notes)


def _cell_names(ids: np.ndarray) -> list[str]:
    """Names of cells that are stored as (prefix, suffix): the prefix as eight hexadecimal digits written a to p."""
    if ids.ndim == 1:
        return [str(number) for number in ids]
    letters = str.maketrans("0123456789abcdef", "abcdefghijklmnop")
    return [f"{int(prefix):08x}".translate(letters) + f"-{int(suffix)}" for prefix, suffix in ids[:, :2]]


# --- bins --------------------------------------------------------------------------------------------------------


def _bin_spots(outs: Path, cells: Cells, affine: Affine, bin_um: float) -> _Spots:
    """Transcripts counted in squares whose edges are parallel to those of the H&E."""
    turn, matrix, panel = turn_of(affine), outs / MATRICES[0], None
    if matrix.is_file():
        with open_h5(matrix, H5) as file:
            kinds, names = (file[f"matrix/features/{key}"].asstr()[:] for key in ("feature_type", "name"))
        panel = list(dict.fromkeys(names[kinds == GENES]))  # in the order of the matrix
    places, genes, counts, notes = counted_bins(outs / "transcripts.parquet", panel, turn, bin_um)
    named = bin_names(places, bin_um)
    kept, centre_um, beside = bins_near_cells(places, bin_um, turn, cells.centre_um)
    return _Spots([named[i] for i in kept], centre_um, bin_um, counts[kept], genes, (*notes, *beside))


def counted_bins(
    path: Path, panel: list[str] | None, turn: np.ndarray, bin_um: float
) -> tuple[np.ndarray, tuple[str, ...], sparse.csr_matrix, list[str]]:
    """Count the transcripts of genes in square bins, batch by batch.

    Parameters
    ----------
    path : pathlib.Path
        `transcripts.parquet`.
    panel : list of str or None
        Genes; None: all features that no column and no name tells to be a control.
    turn : numpy.ndarray, shape (2, 2)
        Rotation of x, y before they are binned.
    bin_um : float
        Side of a bin.

    Returns
    -------
    places : numpy.ndarray, shape (bins, 2), int64
        x and y of each bin that holds a transcript, in bins.
    genes : tuple of str
        The panel, or what was seen.
    counts : scipy.sparse.csr_matrix, shape (bins, genes)
    notes : list of str
        How many transcripts were left out.

    Raises
    ------
    MissingExtra, MissingInput, BadInput
    """
    gene_of: dict[str, int] = {gene: i for i, gene in enumerate(panel or [])}
    bins = SquareBins()
    total = poor = controls = 0
    columns = ("feature_name", "x_location", "y_location", "qv")
    for batch in parquet_batches(path, TRANSCRIPTS, columns, optional=("is_gene",)):
        features = batch.column("feature_name").dictionary_encode()
        if features.null_count:
            raise BadInput(path, TRANSCRIPTS, "its column feature_name holds empty cells")
        texts = texts_of(features.dictionary, path)
        if panel is None:
            for text in texts:
                if not any(pattern.fullmatch(text) for pattern in CONTROL_PATTERNS.values()):
                    gene_of.setdefault(text, len(gene_of))
        gene = np.array([gene_of.get(text, -1) for text in texts], np.int64)[features.indices.to_numpy()]
        if "is_gene" in batch.schema.names:
            gene[numbers_of(batch, "is_gene", path, TRANSCRIPTS) == 0] = -1
        good = numbers_of(batch, "qv", path, TRANSCRIPTS) >= LEAST_QUALITY
        xy = np.column_stack([numbers_of(batch, key, path, TRANSCRIPTS) for key in columns[1:3]]) @ turn.T / bin_um
        total, poor = total + len(gene), poor + int((~good).sum())
        controls += int((good & (gene < 0)).sum())
        kept = good & (gene >= 0)
        bins.add(xy[kept], gene[kept], np.ones(int(kept.sum()), np.int32))
    places, counts = bins.result(len(gene_of))
    notes = [f"{poor} of {total} transcripts have a quality below {LEAST_QUALITY:g}: dropped."] if poor else []
    if controls:
        notes.append(f"{controls} of {total} transcripts are of controls, not genes: dropped.")
    return places, tuple(gene_of), counts, notes
