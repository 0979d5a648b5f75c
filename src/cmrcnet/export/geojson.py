"""Locations as GeoJSON that QuPath reads: one tile a location, its predicted expression as measurements.

In QuPath: File, Import objects, from file; then Measure, Show measurement maps. Coordinates are level-0 pixels.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cmrcnet.export.shown_genes import genes_to_show
from cmrcnet.export.stored_prediction import StoredPrediction

DIGITS = 5
"""Significant digits of a measurement."""


def write_geojson(prediction: StoredPrediction, path: Path, genes: Sequence[str] | None = None) -> None:
    """Write a FeatureCollection, place by place.

    Parameters
    ----------
    prediction : StoredPrediction
    path : Path
    genes : sequence of str, optional
        Those that vary most when left out.
    """
    shown = genes_to_show(prediction, genes)
    values = np.column_stack([prediction.column(gene) for gene in shown])
    family = uuid.uuid5(uuid.NAMESPACE_URL, str(prediction.facts["slide_fingerprint"]))
    similarity, half = prediction.obs["similarity"].to_numpy(), prediction.side_px / 2
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for row, barcode in enumerate(prediction.obs.index):
            said = {"similarity": similarity[row], **dict(zip(shown, values[row], strict=True))}
            feature = {
                "type": "Feature",
                "id": str(uuid.uuid5(family, barcode)),
                "geometry": {"type": "Polygon", "coordinates": [_square(*prediction.centre_px[row], half)]},
                "properties": {
                    "objectType": "tile",
                    "name": barcode,
                    # JSON knows no NaN: what is not known is not said.
                    "measurements": {k: float(f"{v:.{DIGITS}g}") for k, v in said.items() if np.isfinite(v)},
                },
            }
            file.write((",\n" if row else "\n") + json.dumps(feature))
        file.write("\n]}\n")


def _square(x: float, y: float, half: float) -> list[list[float]]:
    """The corners of a location, the first one again at the end."""
    corners = ((-half, -half), (half, -half), (half, half), (-half, half), (-half, -half))
    return [[round(x + across, 2), round(y + down, 2)] for across, down in corners]
