"""Chosen genes as an OME-TIFF: one channel a gene, one pixel a location, float32, with its size in micrometres."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cmrcnet.export.shown_genes import genes_to_show
from cmrcnet.export.stored_prediction import StoredPrediction


def write_ome_tiff(prediction: StoredPrediction, path: Path, genes: Sequence[str] | None = None) -> None:
    """Write the rasters of `raster`.

    Parameters
    ----------
    prediction : StoredPrediction
    path : Path
    genes : sequence of str, optional
        Those that vary most when left out.
    """
    import tifffile

    shown = genes_to_show(prediction, genes)
    pixel_um = float(prediction.facts["spot_diameter_um"])
    planes = np.stack([raster(prediction, prediction.column(gene)) for gene in shown])
    tifffile.imwrite(
        path,
        planes,
        ome=True,
        photometric="minisblack",
        compression="deflate",
        tile=(256, 256) if min(planes.shape[1:]) > 256 else None,
        metadata={
            "axes": "CYX",
            "Channel": {"Name": shown},
            "PhysicalSizeX": pixel_um,
            "PhysicalSizeXUnit": "µm",
            "PhysicalSizeY": pixel_um,
            "PhysicalSizeYUnit": "µm",
        },
    )


def raster(prediction: StoredPrediction, values: np.ndarray) -> np.ndarray:
    """Values of the locations laid out as they lie on the slide: (height, width) float32.

    A pixel is as large as a location, and the picture spans the slide from its top left corner. Where nothing was
    predicted it is NaN; where several locations share a pixel, their mean.

    Parameters
    ----------
    prediction : StoredPrediction
    values : array, shape (locations,)
    """
    size = np.ceil(np.array(prediction.slide_px) / prediction.side_px - 1e-6).astype(int)
    column, row = np.minimum(np.floor(prediction.centre_px / prediction.side_px).astype(int), size - 1).T
    known = np.isfinite(values)
    where = row[known] * size[0] + column[known]
    count = np.bincount(where, minlength=size.prod())
    total = np.bincount(where, values[known], minlength=size.prod())
    mean = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return mean.reshape(size[1], size[0]).astype(np.float32)
