"""AnnData files: a section as `.h5ad` with `obsm["spatial"]`, and one row of a prediction table.

Picture
    `image` (positions are its level-0 pixels), or the one `hires` picture in `uns["spatial"]`, to which the positions
    are scaled by its scale factor.
Counts
    The first of `layers["counts"]`, `raw` and `X` that holds whole numbers. A file that holds only normalised values
    is refused: they cannot be converted back without the library sizes.
Scale
    `mpp` of the user; else what the picture states; else, for Visium (Space Ranger's scale factors are in the
    file), as in `visium`; else `spot_diameter_um` over `spot_diameter_fullres`. Otherwise it is unknown, an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadInput, BadOption, CmrcnetError, MissingInput, SectionError, UnknownName
from cmrcnet.readers import visium
from cmrcnet.readers.registry import RawSection, SectionSource, neighbour_distance_px, register_reader
from cmrcnet.slides.slide import ArraySlide, Slide

if TYPE_CHECKING:
    from anndata import AnnData

WHAT = "an AnnData file (.h5ad)"


def looks_like_ann_data(path: Path) -> bool:
    """An `.h5ad` file that is no part of a HEST folder."""
    from cmrcnet.readers.hest import looks_like_hest

    return path.is_file() and path.suffix == ".h5ad" and not looks_like_hest(path)


@register_reader("ann_data", recognises=looks_like_ann_data)
def read_ann_data(source: SectionSource) -> RawSection:
    """Read one section from an `.h5ad` file.

    Parameters
    ----------
    source : SectionSource

    Raises
    ------
    BadInput, SectionError, BadOption, ScaleError
    """
    table = read_h5ad(source.path)
    name = source.name or source.path.stem
    counts, genes, where = raw_counts(table, name)
    notes = [] if where == "X" else [f"Counts are those of {where}."]
    centres = spatial_centres(table, source.path)
    barcodes = [str(barcode) for barcode in table.obs_names]
    library = _library(table, source.path, needed=source.image is None)
    factors = _factors(library)
    is_visium = "fiducial_diameter_fullres" in factors
    all_centres = centres
    if "in_tissue" in table.obs:
        kept = np.asarray(table.obs["in_tissue"]).astype(str)
        under = np.isin(kept, ["1", "1.0", "True", "true"])
        if not under.all():
            notes.append(f"{int((~under).sum())} of {len(under)} spots are not under tissue: dropped.")
        barcodes = [b for b, keep in zip(barcodes, under, strict=True) if keep]
        counts, centres = counts[np.flatnonzero(under)], centres[under]

    diameter = source.spot_diameter_um or (visium.SPOT_UM if is_visium else None)
    mpp = source.mpp
    if mpp is None and is_visium:
        pitch = neighbour_distance_px(all_centres) if len(all_centres) >= visium.FEWEST_LOCATIONS else None
        mpp, how = visium.visium_scale(None, factors, pitch, slide=name)
        notes.append(how)
    elif mpp is None and diameter and factors.get("spot_diameter_fullres"):
        mpp = diameter / factors["spot_diameter_fullres"]
        notes.append(f"um per px is the spot diameter over spot_diameter_fullres: {mpp:.4g}.")
    slide, scalef = _slide(source, library, factors, mpp, name)
    if scalef != 1.0:
        notes.append(
            "The picture is the reduced one inside the file: too coarse for cells; give the full one as image."
        )
    if diameter is None:
        raise BadOption(
            "spot_diameter_um", None, want=f"the diameter of the spots of {name}, which the file does not say"
        )
    return RawSection(
        name=name,
        patient=_patient(table),
        slide=slide,
        barcodes=barcodes,
        centre_px=centres * scalef,
        diameter_um=diameter,
        counts=counts,
        genes=genes,
        absent_genes="unmeasured",
        pitch_um=visium.PITCH_UM if is_visium else (diameter, 2 * diameter),
        pitch_px=(neighbour_distance_px(all_centres) or 0) * scalef or None,
        notes=tuple(notes),
    )


def read_h5ad(path: Path) -> AnnData:
    """Read an `.h5ad` file, or say that it is damaged.

    Raises
    ------
    MissingInput, BadInput
    """
    import warnings

    import anndata

    if not Path(path).is_file():
        raise MissingInput(path, "The AnnData file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # names that repeat: we look for them ourselves
            return anndata.read_h5ad(path)
    except CmrcnetError:
        raise
    except Exception as error:  # anndata and h5py raise a dozen kinds for a damaged file
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise BadInput(path, WHAT, f"the file is truncated, damaged or of another kind ({lines[0][:120]})") from error


def raw_counts(table: AnnData, name: str) -> tuple[sparse.csr_matrix, tuple[str, ...], str]:
    """The counts of an AnnData, their genes, and where in it they were found.

    Parameters
    ----------
    table : anndata.AnnData
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
    locations = []
    if "counts" in table.layers:
        locations.append(('layers["counts"]', table.layers["counts"], table.var_names))
    if table.raw is not None:
        locations.append(("raw", table.raw.X, table.raw.var_names))
    if table.X is not None:
        locations.append(("X", table.X, table.var_names))
    why = []
    for where, values, names in locations:
        counts = sparse.csr_matrix(values)
        fault = _fault(counts.data)
        if fault is None:
            return counts, tuple(str(gene) for gene in names), where
        why.append(f"{where} holds {fault}")
    raise SectionError.not_counts(
        name, "; ".join(why) + ' (put the raw counts in layers["counts"])' if why else "there are none"
    )


def spatial_centres(table: AnnData, path: Path) -> np.ndarray:
    """`obsm["spatial"]` as x, y in float64, shape (spots, 2).

    Raises
    ------
    BadInput
    """
    if "spatial" not in table.obsm:
        held = ", ".join(table.obsm.keys()) or "nothing"
        raise BadInput(path, WHAT, f'it has no spot positions: obsm["spatial"] is missing (obsm holds {held})')
    centres = np.asarray(table.obsm["spatial"], dtype=np.float64)
    if centres.ndim != 2 or centres.shape[1] < 2:
        raise BadInput(path, WHAT, f'obsm["spatial"] has shape {centres.shape}; wanted (spots, 2)')
    return centres[:, :2]


def _fault(values: np.ndarray) -> str | None:
    if values.dtype.kind in "iub":
        return "negative numbers" if values.size and values.min() < 0 else None
    if not np.isfinite(values).all():
        return "NaN or infinite values"
    if (values < 0).any():
        return f"negative numbers (the least is {values.min():.3g})"
    if (values != np.round(values)).any():
        return f"fractions such as {values[values != np.round(values)][0]:.3g}, so it is normalised"
    return None


def _library(table: AnnData, path: Path, needed: bool) -> dict:
    """The one entry of `uns["spatial"]`, or an empty dict."""
    libraries = table.uns.get("spatial", {})
    if not isinstance(libraries, dict) or not libraries:
        return {}
    if len(libraries) > 1:
        if needed:
            raise BadInput(
                path, WHAT, f'uns["spatial"] holds {len(libraries)} libraries; write one file a section, or give image'
            )
        return {}
    return dict(next(iter(libraries.values())))


def _factors(library: dict) -> dict[str, float]:
    return {key: float(value) for key, value in dict(library.get("scalefactors", {})).items() if np.isscalar(value)}


def _slide(
    source: SectionSource, library: dict, factors: dict[str, float], mpp: float | None, name: str
) -> tuple[Slide, float]:
    """The slide, and what positions are multiplied with to lie on it."""
    from cmrcnet.slides.slide import open_slide

    if source.image is not None:
        key = visium.SCALED_PICTURES.get(source.image.stem)
        scalef = factors.get(key, 1.0) if key else 1.0
        return open_slide(source.image, mpp=None if mpp is None else mpp / scalef, name=name), scalef
    pictures = library.get("images", {})
    if "hires" not in pictures or "tissue_hires_scalef" not in factors:
        raise BadOption(
            "image",
            None,
            want=f'the picture of {name}: {source.path.name} holds none in uns["spatial"] (hires and scale factor)',
        )
    pixels = np.asarray(pictures["hires"])
    if pixels.dtype != np.uint8:  # scanpy keeps pictures as floats from 0 to 1
        pixels = np.clip(np.round(pixels * (255 if pixels.max() <= 1 else 1)), 0, 255).astype(np.uint8)
    scalef = factors["tissue_hires_scalef"]
    slide = ArraySlide(np.ascontiguousarray(pixels[..., :3]), None if mpp is None else mpp / scalef, name)
    return slide, scalef


def _patient(table: AnnData) -> str | None:
    """`obs["patient"]`, when it is one for all spots."""
    for column in ("patient", "patient_id"):
        if column in table.obs and table.obs[column].nunique() == 1:
            return str(table.obs[column].iloc[0])
    return None


def read_location(path: Path, place: str) -> AnnData:
    """Read a location's row of a prediction table, and what the table tells of all locations.

    Parameters
    ----------
    path : Path
        The .h5ad.
    place : str
        Name of the place, as in `obs_names`.

    Returns
    -------
    anndata.AnnData
        One row: X, obs, obsm; var and uns as they are; no layers.

    Raises
    ------
    MissingInput, BadInput
    UnknownName
        No such place.
    """
    import anndata
    import h5py
    from anndata.io import read_elem

    if not path.is_file():
        raise MissingInput(path, "The prediction table")
    try:
        with h5py.File(path, "r") as file:
            obs = read_elem(file["obs"])
            names = list(map(str, obs.index))
            if place in names:
                only = slice(names.index(place), names.index(place) + 1)
                return anndata.AnnData(
                    X=np.asarray(file["X"][only]),
                    obs=obs.iloc[only],
                    var=read_elem(file["var"]),
                    obsm={name: np.asarray(values[only]) for name, values in file["obsm"].items()},
                    uns=read_elem(file["uns"]),
                )
    except (OSError, KeyError, TypeError) as error:
        lines = str(error).splitlines()
        raise BadInput(path, "a prediction table", lines[0][:120] if lines else type(error).__name__) from error
    raise UnknownName("place in the prediction", place, names)
