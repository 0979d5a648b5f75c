"""Tables of spots in memory: what AnnData and SpatialData objects hold of a section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadInput, BadOption, MissingExtra, UnknownName
from cmrcnet.slides.table_kinds import as_sparse
from cmrcnet.storage.names import id_text

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

LIBRARY_COLUMNS = ("library_id", "library", "sample_id", "sample", "section_id", "section", "slide_id", "batch")
"""Columns of ``obs`` that tell several sections in one table apart."""


@dataclass(frozen=True, eq=False)
class SpotTable:
    """What an AnnData table holds of one section, not yet checked.

    Parameters
    ----------
    barcodes, genes : tuple of str
        Names of the rows and columns of `counts`.
    counts : scipy.sparse.csr_matrix, shape (spots, genes)
        As stored.
    centre_px : numpy.ndarray, shape (spots, 2), float64
        x, y in level-0 pixels.
    diameter_px : float or None
        Diameter of a spot in level-0 pixels, where it is stated.
    patient : str or None
        Where the table states one.
    notes : tuple of str
        What was dropped.
    """

    barcodes: tuple[str, ...]
    genes: tuple[str, ...]
    counts: sparse.csr_matrix
    centre_px: np.ndarray
    diameter_px: float | None
    patient: str | None
    notes: tuple[str, ...] = ()


def spots_of_anndata(
    adata: AnnData,
    name: str,
    *,
    layer: str | None = None,
    library: str | None = None,
    centre_px: np.ndarray | None = None,
    diameter_px: float | None = None,
) -> SpotTable:
    """Spots under tissue, their counts and centres.

    Parameters
    ----------
    name : str
        Of the section, for messages.
    layer : str, optional
        Where the counts are; ``X`` by default.
    library : str, optional
        The section, where the table holds several (see `one_library`).
    centre_px, diameter_px : optional
        Taken instead of ``obsm["spatial"]`` and ``uns["spatial"]``.

    Raises
    ------
    BadInput, BadOption, UnknownName
    """
    if layer is not None and layer not in adata.layers:
        raise UnknownName("layer", layer, list(adata.layers))
    counts = adata.X if layer is None else adata.layers[layer]
    if counts is None:
        raise BadOption("layer", None, want=f"the layer of the counts of {name}, because X is empty")
    mine = np.ones(adata.n_obs, bool)
    if centre_px is None:
        mine, entry = one_library(adata, library, name)
        centre_px = spatial_centres(adata, name)
        diameter_px = scale_factors_of(entry).get("spot_diameter_fullres")
    kept = under_tissue(adata)
    rows, off = np.flatnonzero(kept & mine), int((mine & ~kept).sum())
    return SpotTable(
        barcodes=tuple(str(adata.obs_names[row]) for row in rows),
        genes=tuple(str(gene) for gene in adata.var_names),
        counts=as_sparse(counts)[rows],
        centre_px=centre_px[rows],
        diameter_px=diameter_px,
        patient=patient_of_table(adata, mine),
        notes=(f"{off} of {int(mine.sum())} spots are not under tissue: dropped.",) if off else (),
    )


def image_and_spots(
    sdata: SpatialData,
    image: str,
    shapes: str | None,
    table: str,
    coordinate_system: str,
    *,
    section_name: str,
    layer: str | None = None,
) -> tuple[np.ndarray, SpotTable]:
    """RGB pixels (height, width, 3) of an image, and the spots on it in its pixels; see `Section.from_spatialdata`.

    Raises
    ------
    MissingExtra, UnknownName, BadInput, BadOption
    """
    try:
        from spatialdata import get_pyramid_levels
    except ImportError as error:
        raise MissingExtra("spatialdata", "Section.from_spatialdata", "'cmrcnet[spatialdata]'") from error
    if image not in sdata.images:
        raise UnknownName("image in the SpatialData object", image, list(sdata.images))
    pixels: Any = sdata.images[image]
    adata, spots, shapes = annotated_shapes(sdata, table, shapes)
    to_system = [
        system_matrix(element, what, coordinate_system) for element, what in ((pixels, image), (spots, shapes))
    ]
    centres, diameter = shape_centres(spots, np.linalg.inv(to_system[0]) @ to_system[1])
    level = next(iter(get_pyramid_levels(pixels))) if hasattr(pixels, "children") else pixels
    array = np.asarray(level.transpose("y", "x", "c").data)
    if array.dtype != np.uint8 or array.shape[2] not in (3, 4):
        raise BadInput(f"image {image}", "a slide", f"it is {array.shape[2]} x {array.dtype}; convert it to 8-bit RGB")
    spot_table = spots_of_anndata(adata, section_name, layer=layer, centre_px=centres, diameter_px=diameter)
    return np.ascontiguousarray(array[..., :3]), spot_table


def annotated_shapes(sdata: SpatialData, table: str, shapes: str | None) -> tuple[AnnData, Any, str]:
    """Rows of a table of a SpatialData object that annotate one element, its shapes in the same order, and its name.

    Parameters
    ----------
    shapes : str or None
        None: the only element that the table annotates.

    Raises
    ------
    UnknownName, BadInput, BadOption
    """
    if table not in sdata.tables:
        raise UnknownName("table in the SpatialData object", table, list(sdata.tables))
    adata: Any = sdata.tables[table]
    keys = adata.uns.get("spatialdata_attrs")
    if not keys:
        raise BadInput(f"table {table}", "counts of spots", "it annotates no shapes (uns has no spatialdata_attrs)")
    regions = adata.obs[keys["region_key"]].astype(str)
    if shapes is None:
        if regions.nunique() != 1:
            want = f"the element of the spots, one of: {', '.join(sorted(regions.unique()))}"
            raise BadOption("shapes", None, want=want)
        shapes = str(regions.iloc[0])
    if shapes not in sdata.shapes:
        raise UnknownName("shapes in the SpatialData object", shapes, list(sdata.shapes))
    spots: Any = sdata.shapes[shapes]
    adata = adata[np.flatnonzero(regions == shapes)]
    instances = adata.obs[keys["instance_key"]]
    if not instances.isin(spots.index).all():
        raise BadInput(f"table {table}", "counts of spots", f"it annotates spots that {shapes} does not hold")
    if not spots.index.is_unique:
        raise BadInput(f"table {table}", "counts of spots", f"{shapes} holds several shapes of one name")
    return adata, spots.loc[instances], shapes


def system_matrix(element: Any, what: str, coordinate_system: str) -> np.ndarray:
    """Matrix (3, 3) from x, y of an element of a SpatialData object to a coordinate system.

    Raises
    ------
    UnknownName
        The element, called `what` in the error, is not in that system.
    """
    from spatialdata.transformations import get_transformation

    transformations: Any = get_transformation(element, get_all=True)
    if coordinate_system not in transformations:
        raise UnknownName(f"coordinate system of {what}", coordinate_system, list(transformations))
    return transformations[coordinate_system].to_affine_matrix(("x", "y"), ("x", "y"))


def shape_centres(shapes: Any, matrix: np.ndarray) -> tuple[np.ndarray, float | None]:
    """Centres (n, 2) of circles or polygons mapped by a matrix (3, 3), and the diameter of the median circle, mapped.

    The diameter is None for polygons.
    """
    points = shapes.geometry.centroid
    centres = np.column_stack([points.x, points.y, np.ones(len(shapes))]) @ matrix[:2].T
    diameter = None
    if "radius" in shapes.columns and len(shapes):
        diameter = 2 * float(np.median(shapes["radius"])) * float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
    return centres, diameter


def spatial_centres(table: AnnData, where: object) -> np.ndarray:
    """`obsm["spatial"]` as x, y in float64, shape (spots, 2); `where` is named in the error.

    Raises
    ------
    BadInput
    """
    if "spatial" not in table.obsm:
        held = ", ".join(table.obsm.keys()) or "nothing"
        why = f'it has no spot positions: obsm["spatial"] is missing (obsm holds {held})'
        raise BadInput(where, "an AnnData table of spots", why)
    try:
        centres = np.asarray(table.obsm["spatial"], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BadInput(where, "an AnnData table of spots", f'obsm["spatial"] holds no numbers ({error})') from error
    if centres.ndim != 2 or centres.shape[1] < 2 or not np.isfinite(centres[:, :2]).all():
        why = f'obsm["spatial"] has shape {centres.shape}; wanted (spots, 2), all finite'
        raise BadInput(where, "an AnnData table of spots", why)
    return centres[:, :2]


def one_library(table: AnnData, library: str | None, where: object) -> tuple[np.ndarray, dict]:
    """Spots of one section in a table that may hold several, and its entry of ``uns["spatial"]``.

    Parameters
    ----------
    library : str or None
        A value of one of `LIBRARY_COLUMNS`, or the key of an entry of ``uns["spatial"]``.
    where : object
        Named in the error.

    Returns
    -------
    rows : numpy.ndarray, shape (spots,), bool
    entry : dict
        Empty when there is none for this section.

    Raises
    ------
    BadOption
        The table holds several sections and `library` is None.
    UnknownName
        No spot is of that library.
    BadInput
        There are several entries of ``uns["spatial"]`` and no column says which spot is of which.
    """
    entries = table.uns.get("spatial", {})
    entries = {str(key): entry for key, entry in entries.items()} if isinstance(entries, dict) else {}
    columns = {column: table.obs[column].map(id_text).astype(str) for column in LIBRARY_COLUMNS if column in table.obs}
    several = {column: each for column, each in columns.items() if 1 < each.nunique() <= table.n_obs / 2}
    single = [str(each.iloc[0]) for each in columns.values() if each.nunique() == 1]
    everything = np.ones(table.n_obs, bool)
    if library is None and not several:
        if len(entries) < 2:
            return everything, dict(next(iter(entries.values()), {}))
        library = next((name for name in single if name in entries), None)  # a table cut out of a larger one
    known = list(dict.fromkeys([*(value for each in several.values() for value in each.unique()), *single, *entries]))
    if library is None:
        told_by = ", ".join(f'obs["{column}"]' for column in several) or 'the entries of uns["spatial"]'
        want = f"one of {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}, because {where} holds several "
        want += f"sections by {told_by}; fill in the column library of cohort.csv, or library="
        raise BadOption("library", None, want=want)
    if library not in known:
        raise UnknownName(f"library in {where}", library, known)
    for each in several.values():
        if library in set(each):
            return (each == library).to_numpy(), dict(entries.get(library, {}))
    if len(entries) > 1 and library not in single:
        why = f'uns["spatial"] has {len(entries)} entries, and no column of obs ({", ".join(LIBRARY_COLUMNS)}) '
        raise BadInput(where, "an AnnData table of spots", f"{why}says which spot is of which")
    if several:
        raise UnknownName(f"library in {where}", library, [name for name in known if name not in single])
    return everything, dict(entries.get(library, {}))


def scale_factors_of(library: dict) -> dict[str, float]:
    """The numbers in the ``scalefactors`` of an entry of ``uns["spatial"]``."""
    factors = dict(library.get("scalefactors", {}))
    return {key: float(np.asarray(value)) for key, value in factors.items() if np.isscalar(value)}


def under_tissue(table: AnnData) -> np.ndarray:
    """Which spots are under tissue by ``obs["in_tissue"]``, as bool (spots,); all of them without that column."""
    if "in_tissue" not in table.obs:
        return np.ones(table.n_obs, bool)
    return np.isin(np.asarray(table.obs["in_tissue"]).astype(str), ["1", "1.0", "True", "true"])


def patient_of_table(table: AnnData, rows: np.ndarray | None = None) -> str | None:
    """``obs["patient"]`` or ``obs["patient_id"]``, when it is one for all spots (at `rows`)."""
    for column in ("patient", "patient_id"):
        if column in table.obs:
            stated: Any = table.obs[column] if rows is None else table.obs[column][rows]
            if stated.nunique() == 1:
                return id_text(stated.dropna().iloc[0]) or None
    return None
