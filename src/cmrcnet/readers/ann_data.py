"""AnnData files: a section as `.h5ad` with `obsm["spatial"]`, and one row of a prediction table.

Picture
    `image` (positions are its level-0 pixels), or the one `hires` picture in `uns["spatial"]`, to which the positions
    are scaled by its scale factor.
Counts
    The first of `layers["counts"]`, `raw` and `X` that holds whole numbers. A file that holds only normalised values
    is refused: they cannot be converted back without the library sizes.
Other kinds of tables
    `X`, where the cohort states a `table_kind`, or the file in `uns["cmrcnet_table_kind"]`.
Sections
    A file of several (several entries of `uns["spatial"]`, several values of `library_id` and the like) gives one,
    named by `library`; the picture inside is used only if its entry bears that name.
Scale
    `mpp` of the user; else what the picture states; else, for Visium (Space Ranger's scale factors are in the
    file), as in `visium`; else `spot_diameter_um` over `spot_diameter_fullres`. Otherwise it is unknown, an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadInput, BadOption, SectionError, UnknownName
from cmrcnet.genes.table import decode
from cmrcnet.readers import visium
from cmrcnet.readers.raw_section import RawSection, neighbour_distance_px
from cmrcnet.readers.registry import SectionSource, register_reader
from cmrcnet.readers.sparse_files import open_h5
from cmrcnet.slides.slide import ArraySlide, Slide, open_slide
from cmrcnet.slides.spot_tables import (
    one_library,
    patient_of_table,
    scale_factors_of,
    spatial_centres,
    under_tissue,
)
from cmrcnet.slides.table_kinds import TableKind, as_sparse, count_fault, table_kind
from cmrcnet.storage.refusals import fault_of_file

if TYPE_CHECKING:
    from anndata import AnnData

WHAT = "an AnnData file (.h5ad)"


def looks_like_ann_data(path: Path) -> bool:
    """An `.h5ad` file that is no part of a HEST folder."""
    return path.is_file() and path.suffix == ".h5ad" and not in_hest_folder(path)


def in_hest_folder(path: Path) -> bool:
    """Whether a file is in `st/` or `adata/` beside `patches/` or `wsis/`."""
    root = path.parent.parent
    return path.parent.name in ("st", "adata") and ((root / "patches").is_dir() or (root / "wsis").is_dir())


@register_reader("ann_data", recognises=looks_like_ann_data)
def read_ann_data(source: SectionSource) -> RawSection:
    """Read one section from an `.h5ad` file.

    Raises
    ------
    BadInput, SectionError, BadOption, ScaleError
    """
    table = read_h5ad(source.path)
    name = source.name or source.library or source.path.stem
    kind = source.table_kind or stated_kind(table, source.path)
    if kind == "counts":
        counts, genes, where = raw_counts(table, name)
    elif table.X is None:
        raise SectionError.not_of_kind(name, kind, "X is empty")
    else:
        counts, genes, where = as_sparse(table.X), tuple(str(feature) for feature in table.var_names), "X"
    notes = [] if where == "X" else [f"Counts are those of {where}."]
    centres = spatial_centres(table, source.path)
    mine, library = one_library(table, source.library, source.path)
    if not mine.all():
        notes.append(
            f"{int(mine.sum())} of {len(mine)} spots are of library {source.library}; the others are left out."
        )
    factors = scale_factors_of(library)
    is_visium = "fiducial_diameter_fullres" in factors
    pitch_px = neighbour_distance_px(centres[mine])
    kept = mine & under_tissue(table)
    if not kept[mine].all():
        notes.append(f"{int((mine & ~kept).sum())} of {int(mine.sum())} spots are not under tissue: dropped.")

    diameter = source.spot_diameter_um or (visium.SPOT_UM if is_visium else None)
    mpp = source.mpp if source.affine is None else None  # with an affine, mpp is the scale of another picture
    if mpp is None and is_visium:
        enough = mine.sum() >= visium.FEWEST_LOCATIONS
        mpp, how = visium.visium_scale(None, factors, pitch_px if enough else None, slide=name)
        notes.append(how)
    elif mpp is None and diameter and factors.get("spot_diameter_fullres"):
        mpp = diameter / factors["spot_diameter_fullres"]
        notes.append(f"um per px is the spot diameter over spot_diameter_fullres: {mpp:.4g}.")
    assay_mpp = mpp
    if source.affine is None or source.image is None:
        slide, scalef = _slide(source, library, factors, mpp, name)
    else:
        slide, scalef = open_slide(source.image, mpp=source.mpp, name=name), 1.0
    if scalef != 1.0:
        notes.append(
            "The picture is the reduced one inside the file: too coarse for cells; give the full one as image."
        )
    if diameter is None:
        want = f"the diameter of the spots of {name}, which the file does not state"
        raise BadOption("spot_diameter_um", None, want=want)
    return RawSection(
        name=name,
        patient=patient_of_table(table, mine),
        slide=slide,
        barcodes=[str(barcode) for barcode in table.obs_names[kept]],
        centre_px=centres[kept] * scalef,
        diameter_um=diameter,
        counts=counts[np.flatnonzero(kept)],
        genes=genes,
        absent_genes="unmeasured",
        pitch_um=visium.PITCH_UM if is_visium else (diameter, 2 * diameter),
        pitch_px=(pitch_px or 0) * scalef or None,
        assay_mpp=assay_mpp,
        table_kind=kind,
        notes=tuple(notes),
    )


def read_h5ad(path: Path) -> AnnData:
    """Read an `.h5ad` file.

    Raises
    ------
    MissingInput, BadInput
    """
    import warnings

    import anndata

    with open_h5(path, WHAT):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # repeated names are checked later
            return anndata.read_h5ad(path)
    except Exception as error:  # anndata and h5py raise a dozen kinds for a damaged file
        raise BadInput(path, WHAT, fault_of_file(error)) from error


def raw_counts(table: AnnData, name: str) -> tuple[sparse.csr_matrix, tuple[str, ...], str]:
    """The counts of an AnnData, their genes, and where in it they were found.

    Parameters
    ----------
    name : str
        For the error.

    Returns
    -------
    counts : scipy.sparse.csr_matrix, shape (spots, genes)
    genes : tuple of str
    where : str
        ``layers["counts"]``, ``raw`` or ``X``.

    Raises
    ------
    SectionError
        When none of them holds whole numbers.
    """
    stored = []
    if "counts" in table.layers:
        stored.append(('layers["counts"]', table.layers["counts"], table.var_names))
    if table.raw is not None:
        stored.append(("raw", table.raw.X, table.raw.var_names))
    if table.X is not None:
        stored.append(("X", table.X, table.var_names))
    why = []
    for where, values, names in stored:
        fault = count_fault(values)
        if fault is None:
            return as_sparse(values), tuple(str(gene) for gene in names), where
        why.append(f"in {where}, {fault}")
    hint = ' (put the raw counts in layers["counts"])'
    raise SectionError.not_counts(name, "; ".join(why) + hint if why else "there are none")


def stated_kind(table: AnnData, path: Path) -> TableKind:
    """The kind that a file states of its table; counts where it states none.

    Raises
    ------
    BadInput
        It states one that does not exist.
    """
    stated = table.uns.get("cmrcnet_table_kind", "counts")
    try:
        return table_kind(stated)
    except BadOption as error:
        raise BadInput(path, WHAT, f'uns["cmrcnet_table_kind"]: {error}'.rstrip(".")) from error


def _slide(
    source: SectionSource, library: dict, factors: dict[str, float], mpp: float | None, name: str
) -> tuple[Slide, float]:
    """The slide, and the factor from positions to its level-0 pixels."""
    if source.image is not None:
        key = visium.SCALED_PICTURES.get(source.image.stem)
        scalef = factors.get(key, 1.0) if key else 1.0
        return open_slide(source.image, mpp=None if mpp is None else mpp / scalef, name=name), scalef
    pictures = library.get("images", {})
    if "hires" not in pictures or "tissue_hires_scalef" not in factors:
        want = f'the picture of {name}: {source.path.name} holds none in uns["spatial"] (hires and scale factor)'
        raise BadOption("image", None, want=want)
    pixels = np.asarray(pictures["hires"])
    if pixels.dtype != np.uint8:  # scanpy keeps pictures as floats from 0 to 1
        pixels = np.clip(np.round(pixels * (255 if pixels.max() <= 1 else 1)), 0, 255).astype(np.uint8)
    scalef = factors["tissue_hires_scalef"]
    slide = ArraySlide(np.ascontiguousarray(pixels[..., :3]), None if mpp is None else mpp / scalef, name)
    return slide, scalef


def read_location(path: Path, location: str) -> AnnData:
    """Read the row of one location from a prediction table on disk, which may not fit in memory.

    Parameters
    ----------
    path : Path
        The .h5ad.
    location : str
        Name of the location, as in `obs_names`.

    Returns
    -------
    anndata.AnnData
        One row: X (decoded, where the table holds components), obs, obsm; var and uns as they are; no layers.

    Raises
    ------
    MissingInput, BadInput
    UnknownName
        There is no such location.
    """
    import anndata
    from anndata.io import read_elem

    with open_h5(path, "a prediction table") as content:
        obs, var, uns = (cast(Any, read_elem(content[part])) for part in ("obs", "var", "uns"))
        names = list(map(str, obs.index))
        if location not in names:
            raise UnknownName("location in the prediction", location, names)
        only = slice(names.index(location), names.index(location) + 1)
        if "X" in content:
            values = np.asarray(content["X"][only])
        else:
            loadings, level = content["varm/loadings"][:], var["level"].to_numpy()
            values = decode(content["obsm/components"][only], loadings, level, uns["cmrcnet"])
        return anndata.AnnData(
            X=values,
            obs=obs.iloc[only],
            var=var,
            obsm=cast(Any, {name: np.asarray(values[only]) for name, values in content["obsm"].items()}),
            uns=uns,
        )
