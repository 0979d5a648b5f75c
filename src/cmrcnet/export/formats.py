"""Export of a prediction table to another format, chosen by the ending of the file name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cmrcnet.errors import BadOption
from cmrcnet.export.gene_maps import write_geojson, write_heat_maps, write_ome_tiff
from cmrcnet.export.spatial_store import write_spatial_data
from cmrcnet.export.stored_prediction import StoredPrediction, write_expression
from cmrcnet.slides.slide import Slide
from cmrcnet.storage.atomic import atomic_file, atomic_folder

OF_GENES = {
    ".geojson": write_geojson,
    ".png": write_heat_maps,
    ".ome.tiff": write_ome_tiff,
    ".ome.tif": write_ome_tiff,
    ".h5ad": write_expression,
}
"""Files of selected genes."""
STORE = ".zarr"
"""Ending of a store of the whole table."""


def ending_of(path: Path, among: Sequence[str] = (*OF_GENES, STORE)) -> str:
    """Ending of a path, which selects the format; a name with none of the endings is a `BadOption`."""
    for ending in among:
        if path.name.lower().endswith(ending) and len(path.name) > len(ending):
            return ending
    listed = among[0] if len(among) == 1 else f"{', '.join(among[:-1])} or {among[-1]}"
    raise BadOption("to", str(path), want=f"a name that ends in {listed}")


def export(
    prediction: StoredPrediction,
    path: Path,
    *,
    genes: Sequence[str] | None = None,
    slide: Slide | None = None,
    overwrite: bool = False,
) -> None:
    """Write a prediction in another format, atomically: .geojson (QuPath), .png (heat maps), .ome.tiff (rasters),
    .h5ad (a table of fewer genes, decoded where it holds components), .zarr.

    A .zarr store (SpatialData, WSIData) holds all genes, and the image of `slide` if it is given; the others hold
    `genes`, by default those that vary most.

    Raises
    ------
    BadOption, UnknownName, TooFew, MissingExtra, OutputExists, Unwritable, NoSpace
    """
    ending = ending_of(path)
    if ending == STORE:
        if genes is not None:
            raise BadOption("genes", list(genes), want="nothing together with .zarr, which holds every gene")
        with atomic_folder(path, overwrite) as tmp:
            write_spatial_data(prediction, tmp / "store", slide)  # a store makes its folder itself
            for entry in sorted((tmp / "store").iterdir()):
                entry.rename(tmp / entry.name)
            (tmp / "store").rmdir()
        return
    with atomic_file(path) as tmp:
        OF_GENES[ending](prediction, tmp, genes)
