"""SpatialData stores (`.zarr`): what spatialdata-io writes of any platform.

Elements
    `counts` is the store, or one table in it (``S1.zarr/tables/table``); `spots` one element of shapes
    (``S1.zarr/shapes/cells``); `image` one image in it (``S1.zarr/images/he``). Each may be left out where only one
    fits: a table that annotates one element of shapes, one 8-bit RGB image. Otherwise the candidates are named.
Coordinate system
    `library`; it may be left out where image and shapes share one system, or all that they share agree.
Image
    Read by region from the chunks of the store, never as a whole. An `image` outside the store needs an `affine`,
    which maps the coordinate system to its level-0 pixels.
Spots
    Centroids of circles or polygons. The diameter is that of the median circle; the side of the median polygon of four
    corners; that of a disc of the median area for other polygons.
Scale
    `mpp` of the user, because neither images nor coordinate systems of a store state micrometres.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadInput, BadOption, CmrcnetError, MissingExtra, MissingInput, UnknownName
from cmrcnet.readers.ann_data import raw_counts
from cmrcnet.readers.raw_section import RawSection, neighbour_distance_px
from cmrcnet.readers.registry import SectionSource, register_reader
from cmrcnet.readers.sparse_files import FREE_BYTES, MOST_INFLATED
from cmrcnet.slides.slide import FileSlide, Slide, known_scale, open_slide
from cmrcnet.slides.spot_tables import annotated_shapes, patient_of_table, shape_centres, system_matrix, under_tissue
from cmrcnet.storage.arrays import sparse_fault
from cmrcnet.storage.refusals import first_line

WHAT = "a SpatialData store (.zarr)"
CHANNELS = ("r", "g", "b", "a", "red", "green", "blue", "alpha", "0", "1", "2", "3")
"""Names of channels, in lower case, of an RGB image; others (DAPI) are stains."""
TEXT_BYTES = 64
"""Memory that a text of an array takes, however short."""
FREE_CHUNKS, MOST_ABSENT = 10_000, 100
"""An array may be cut into so many chunks, and into so many for each that is there; each takes 0.2 ms to look for."""
SAME_PLACE_PX = 0.5
"""Largest distance of the places that two coordinate systems give one spot and that count as the same."""


def store_of(path: Path) -> Path | None:
    """The store that a path is, or that the path of an element (``S1.zarr/images/he``) lies in; None when in none."""
    for folder in (path, *path.parents[:2]):
        described = any((folder / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs"))
        if described and (folder / "tables").is_dir():
            return folder
    return None


def looks_like_spatial_data(path: Path) -> bool:
    """A zarr group with `tables`, or a table in one; any folder called `.zarr`."""
    return path.is_dir() and (store_of(path) is not None or path.suffix == ".zarr")


def spatial_data_problems(source: SectionSource) -> list[CmrcnetError]:
    """Errors for a store without tables, elements of another store, and an image outside without an affine."""
    store = store_of(source.path)
    if store is None:
        hint = (
            "sdata.write of SpatialData writes zarr.json (or .zattrs) and the folder tables into a store, copy it whole"
        )
        lacks = "zarr.json" if (source.path / "tables").is_dir() else "tables"
        return [MissingInput(source.path / lacks, "The part of a store", hint)]
    problems: list[CmrcnetError] = []
    if source.spots is not None and _named(source.spots, store, "shapes") is None:
        problems.append(BadOption("spots", str(source.spots), want=f"an element of the store: {store}/shapes/NAME"))
    outside = source.image is not None and _named(source.image, store, "images") is None
    if outside and source.affine is None:
        want = f"the map from the coordinate system to pixels of {source.image}, which is not in {store.name}/images"
        problems.append(BadOption("affine", None, want=want))
    if source.affine is not None and not outside:
        want = f"nothing, because the store says where its own image lies; or an image outside {store.name}"
        problems.append(BadOption("affine", source.affine.text, want=want))
    return problems


@register_reader("spatialdata", recognises=looks_like_spatial_data, problems=spatial_data_problems)
def read_spatial_data(source: SectionSource) -> RawSection:
    """Read one section of a SpatialData store.

    Parameters
    ----------
    source : SectionSource
        `path` is the store or a table in it; `spots` and `image` elements of it; `library` the coordinate system.

    Raises
    ------
    MissingExtra, MissingInput, BadInput, BadOption, UnknownName, SectionError, ScaleError
    """
    store = store_of(source.path)
    if store is None:
        raise spatial_data_problems(source)[0]
    sdata = _opened(store)
    name = source.name or source.library or store.resolve().stem
    table = _only("counts", _named(source.path, store, "tables"), list(sdata.tables), store, "tables")
    named = None if source.spots is None else _named(source.spots, store, "shapes")
    if named is None:
        keys = sdata.tables[table].uns.get("spatialdata_attrs", {})
        regions = sdata.tables[table].obs[keys["region_key"]].astype(str).unique() if keys else []
        for kind in ("labels", "points"):
            if len(regions) == 1 and (store / kind / regions[0]).is_dir():
                why = f"it annotates {kind}/{regions[0]}, and only shapes are read; write circles or polygons of them "
                raise BadInput(
                    store / "tables" / table, WHAT, f"{why}(spatialdata.to_circles) and let it annotate these"
                )
        if len(regions) > 1:
            named = _only("spots", None, sorted(regions), store, "shapes")
    adata, shapes, shapes_name = annotated_shapes(sdata, table, named)
    counts, genes, where = raw_counts(adata, name)
    kept = np.flatnonzero(under_tissue(adata))
    notes = [] if where == "X" else [f"Counts are those of {where}."]
    if len(kept) < adata.n_obs:
        notes.append(f"{adata.n_obs - len(kept)} of {adata.n_obs} spots are not under tissue: dropped.")
    slide, matrix, system = _placed_image(source, sdata, store, shapes, shapes_name, name)
    notes.append(f"{shapes_name} and the image are placed by the coordinate system {system}.")
    if isinstance(slide, FileSlide) and (absent := ZarrPixels.absent_chunks(slide.path)):
        notes.append(f"{absent} chunks of the image are not in the store and read as black: copy it whole.")
    centres, diameter = shape_centres(shapes, matrix)
    if diameter is None:
        diameter = _polygon_diameter(shapes) * float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
    stretch = 1.0 if source.affine is None else source.affine.scale
    pitch = neighbour_distance_px(centres[kept])
    mpp = known_scale(slide)
    pitch_um = (pitch or diameter) * stretch * mpp
    return RawSection(
        name=name,
        patient=patient_of_table(adata),
        slide=slide,
        barcodes=[str(barcode) for barcode in adata.obs_names[kept]],
        centre_px=centres[kept],
        diameter_um=source.spot_diameter_um or diameter * stretch * mpp,
        counts=counts[kept],
        genes=genes,
        absent_genes="unmeasured",
        pitch_um=(pitch_um, pitch_um),
        pitch_px=pitch,
        notes=tuple(notes),
    )


def _opened(store: Path) -> Any:
    """The SpatialData object of a store, with sound matrices; images stay on disk."""
    try:
        import spatialdata
    except ImportError as error:
        raise MissingExtra("spatialdata", f"Reading {store.name}", "'cmrcnet[spatialdata]'") from error
    if why := _irregular_fault(store) or _declared_fault(store / "tables"):
        raise BadInput(store, WHAT, why)
    try:
        elements: Any = ("images", "shapes", "tables")
        sdata = spatialdata.read_zarr(store, selection=elements)
    except Exception as error:  # spatialdata, zarr and geopandas raise a dozen kinds for a damaged store
        raise BadInput(
            store,
            WHAT,
            f"it is incomplete, damaged or of another version; copy it whole or write it again ({first_line(error)})",
        ) from error
    for name, table in sdata.tables.items():
        matrix: Any
        for matrix in (table.X, *table.layers.values(), *([] if table.raw is None else [table.raw.X])):
            if not sparse.issparse(matrix):
                continue
            arrays = (matrix.data, matrix.indices, matrix.indptr)
            if why := sparse_fault(*arrays, matrix.shape, by_row=matrix.format == "csr"):
                raise BadInput(store / "tables" / name, WHAT, f"a matrix is damaged: {why}")
    return sdata


def _irregular_fault(store: Path) -> str | None:
    """Why a store is not to be read, or None: it holds something that zarr would wait for, or read without end."""
    for where, folders, names in os.walk(store):
        folders.sort()
        for path in (Path(where, name) for name in sorted(names)):
            if not path.is_file() and path.exists():
                return f"{path.relative_to(store)} is a pipe, socket or device, not an ordinary file"
    return None


def _declared_fault(tables: Path) -> str | None:
    """Why an array of the tables is not to be read, or None: it declares far more than its files hold."""
    import zarr

    for described in (path for name in ("zarr.json", ".zarray") for path in tables.rglob(name)):
        name = described.parent.relative_to(tables.parent)
        try:
            array: Any = zarr.open(described.parent, mode="r")
            if not hasattr(array, "shape"):  # a group
                continue
            entries = math.prod(array.shape)
            declared = entries * (array.dtype.itemsize if array.dtype.kind in "biufc" else TEXT_BYTES)
            parts = zip(array.shape, array.shards or array.chunks, strict=True)
            chunks = math.prod(-(-side // part) for side, part in parts)
            if described.parent.name == "data" and array.nchunks_initialized < array.nchunks:
                return f"chunks of {name} are absent; copy it whole"
        except Exception as error:  # zarr raises a dozen kinds
            return f"{name}/{described.name} cannot be read ({first_line(error)})"
        if declared > FREE_BYTES or chunks > FREE_CHUNKS:
            files = [path.stat().st_size for path in described.parent.rglob("*") if path.is_file()]
            if declared > max(FREE_BYTES, MOST_INFLATED * sum(files)):
                return f"{name} declares {declared:,} bytes and holds {sum(files):,}"
            if chunks > max(FREE_CHUNKS, MOST_ABSENT * len(files)):
                return f"{name} declares {chunks:,} chunks and holds {len(files):,} files"
    return None


def _named(path: Path, store: Path, kind: str) -> str | None:
    """``he`` of ``S1.zarr/images/he``; None for a path that is no such element of this store."""
    folder = store.resolve() / kind
    inside = path.resolve()
    return inside.relative_to(folder).parts[0] if folder in inside.parents else None


def _only(option: str, named: str | None, candidates: list[str], store: Path, kind: str) -> str:
    """The element that is named, or the only one."""
    if named is not None:
        if named not in candidates:
            raise UnknownName(f"element in {store.name}/{kind}", named, candidates)
        return named
    if len(candidates) != 1:
        several = f"one of {', '.join(f'{store.name}/{kind}/{name}' for name in candidates[:12])}"
        want = several if candidates else f"a store with an element that fits in {kind}; {store.name} has none"
        raise BadOption(option, None, want=want)
    return candidates[0]


def _placed_image(
    source: SectionSource, sdata: Any, store: Path, shapes: Any, shapes_name: str, name: str
) -> tuple[Slide, np.ndarray, str]:
    """The slide, the matrix from coordinates of the shapes to its pixels, and the coordinate system that is used.

    With an affine the matrix maps to the coordinate system only.
    """
    from spatialdata.models import get_channel_names
    from spatialdata.transformations import get_transformation

    of_shapes: Any = get_transformation(shapes, get_all=True)
    if source.affine is not None and source.image is not None:
        if source.library is None and len(of_shapes) > 1:
            want = f"the coordinate system that the affine maps from, one of {', '.join(of_shapes)}"
            raise BadOption("library", None, want=want)
        system = source.library or next(iter(of_shapes))
        return open_slide(source.image, mpp=source.mpp, name=name), system_matrix(shapes, shapes_name, system), system
    image = None if source.image is None else _named(source.image, store, "images")
    if image is None:
        candidates = [
            key for key in sdata.images if {str(c).lower() for c in get_channel_names(sdata.images[key])} <= {*CHANNELS}
        ]
        candidates = [key for key in candidates if ZarrPixels.fault(store / "images" / key) is None]
        image = _only("image", None, candidates, store, "images")
    elif image not in sdata.images:
        raise UnknownName(f"element in {store.name}/images", image, list(sdata.images))
    element = sdata.images[image]
    of_image: Any = get_transformation(element, get_all=True)
    shared = [source.library] if source.library else [system for system in of_shapes if system in of_image]
    if not shared:
        why = f"{shapes_name} ({', '.join(of_shapes)}) and {image} ({', '.join(of_image)}) share no coordinate system"
        raise BadInput(store, WHAT, why)
    matrices = [
        np.linalg.inv(system_matrix(element, image, system)) @ system_matrix(shapes, shapes_name, system)
        for system in shared
    ]
    places = [shape_centres(shapes, matrix)[0] for matrix in matrices]
    if any(np.abs(other - places[0]).max(initial=0) > SAME_PLACE_PX for other in places[1:]):
        want = f"the coordinate system, one of {', '.join(shared)}, which place {shapes_name} differently on {image}"
        raise BadOption("library", None, want=want)
    folder = store / "images" / image
    return FileSlide(folder, ZarrPixels(folder), source.mpp, name), matrices[0], shared[0]


def _polygon_diameter(shapes: Any) -> float:
    """Side of the median polygon where it has four corners, otherwise the diameter of a disc of the median area."""
    import shapely

    area = float(np.median(shapes.geometry.area))
    if not area > 0:
        return 0.0
    corners = np.median(shapely.get_num_coordinates(shapes.geometry.to_numpy())) - 1
    return float(np.sqrt(area if corners == 4 else 4 / np.pi * area))


class ZarrPixels:
    """8-bit RGB pixels of an image element, read from its chunks; a `PixelSource`.

    Parameters
    ----------
    folder : pathlib.Path
        ``S1.zarr/images/he``.

    Raises
    ------
    BadInput
        It is no pyramid of 8-bit RGB.
    """

    mpp: float | None = None

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if why := self.fault(folder):
            raise BadInput(folder, "a slide", why)
        self._keys, self._axes = self._described(folder)
        arrays = [self._array(key) for key in self._keys]
        self.sizes = tuple((array.shape[self._axes.index("x")], array.shape[self._axes.index("y")]) for array in arrays)

    @classmethod
    def fault(cls, folder: Path) -> str | None:
        """Why an image element is no 8-bit RGB image, or None."""
        import zarr

        try:
            keys, axes = cls._described(folder)
            arrays: list[Any] = [zarr.open_array(folder / key, mode="r") for key in keys]
        except Exception as error:  # zarr raises a dozen kinds
            return f"its description cannot be read ({first_line(error)})"
        if sorted(axes) != ["c", "x", "y"] or any(len(array.shape) != 3 for array in arrays):
            return f"its axes are {', '.join(axes)}; wanted c, y, x"
        for array in arrays:
            if array.dtype != np.uint8 or array.shape[axes.index("c")] not in (3, 4):
                return f"it is {array.shape[axes.index('c')]} x {array.dtype}; convert it to 8-bit RGB"
        return None

    @classmethod
    def absent_chunks(cls, folder: Path) -> int:
        """Chunks of the full-resolution image without a file; zarr reads them as 0. 0 for another kind of slide."""
        import zarr

        if cls.fault(folder) is not None:
            return 0
        array: Any = zarr.open_array(folder / cls._described(folder)[0][0], mode="r")
        return array.nchunks - array.nchunks_initialized

    @staticmethod
    def _described(folder: Path) -> tuple[list[str], list[str]]:
        import zarr

        facts: Any = dict(zarr.open_group(folder, mode="r").attrs)
        scales = facts.get("ome", facts)["multiscales"][0]
        return [str(level["path"]) for level in scales["datasets"]], [str(axis["name"]) for axis in scales["axes"]]

    def _array(self, key: str) -> Any:
        import zarr

        return zarr.open_array(self._folder / key, mode="r")

    def files(self) -> tuple[Path, ...]:
        """Chunks and descriptions, in a fixed order."""
        return tuple(sorted(path for path in self._folder.rglob("*") if path.is_file()))

    def region(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """See `PixelSource.region`."""
        wanted = {"c": slice(0, 3), "y": slice(top, top + height), "x": slice(left, left + width)}
        try:
            block = np.asarray(self._array(self._keys[level])[tuple(wanted[axis] for axis in self._axes)])
        except Exception as error:  # zarr and the codecs raise a dozen kinds for a damaged chunk
            raise BadInput(self._folder, "a slide", f"a chunk cannot be read ({first_line(error)})") from error
        return np.ascontiguousarray(np.transpose(block, [self._axes.index(axis) for axis in ("y", "x", "c")]))

    def close(self) -> None:
        """Nothing is held."""
