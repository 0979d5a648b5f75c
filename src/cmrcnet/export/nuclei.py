"""Predictions for nuclei that the user gives: each has the value of the window that holds it, and no finer one.

Nuclei in one window have the same values: the model predicts tissue around a location, not a cell. The table says how
far the window's centre is, how large the window is, and leaves nuclei in no window empty.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cmrcnet.errors import BadInput, MissingExtra, TooFew
from cmrcnet.export.stored_prediction import StoredPrediction, genes_to_show
from cmrcnet.readers.annotations import read_spots
from cmrcnet.slides.slide_files import require_file
from cmrcnet.storage.names import guard_table, id_text

if TYPE_CHECKING:
    import pandas as pd

ENDINGS = (".geojson", ".parquet", ".csv")
WHAT = "nuclei: a GeoJSON of points or outlines, or a table with pixel_x and pixel_y"
LARGEST_GEOJSON = 2 << 30


class Nuclei(NamedTuple):
    """Names, centres (nuclei, 2) in level-0 pixels, and where they come from a GeoJSON its features."""

    names: tuple[str, ...]
    centre_px: np.ndarray
    features: list[dict[str, Any]] | None = None


def read_nuclei(path: Path) -> Nuclei:
    """Read nuclei from a .geojson (as QuPath, CellViT or StarDist write it), a .parquet or a table of text.

    Raises
    ------
    MissingInput, BadInput, TooFew, SectionError, MissingExtra
    """
    path = require_file(path, "The nuclei")
    if path.suffix in (".geojson", ".json"):
        nuclei = _of_geojson(path)
    elif path.suffix == ".parquet":
        nuclei = _of_parquet(path)
    else:
        spots = read_spots(path)
        nuclei = Nuclei(spots.barcodes, spots.centre_px)
    if not len(nuclei.names):
        raise TooFew(f"nuclei in {path}", 0, 1, "give a file of nuclei")
    if not (np.abs(nuclei.centre_px) < 1e9).all():
        raise BadInput(path, WHAT, "a nucleus lies at no pixel of a slide")
    return nuclei


def nuclei_table(prediction: StoredPrediction, nuclei: Nuclei, genes: Sequence[str] | None = None) -> pd.DataFrame:
    """One row a nucleus: pixel_x, pixel_y, location, distance_um, window_um, and each gene; empty in no window.

    Parameters
    ----------
    genes : sequence of str, optional
        Those that vary most when left out.
    """
    import pandas as pd
    from scipy.spatial import KDTree

    shown, mpp = genes_to_show(prediction, genes), float(prediction.facts["mpp"])
    window_um = float(prediction.facts.get("window_um", prediction.facts["spot_diameter_um"]))
    _, rows = KDTree(prediction.centre_px).query(nuclei.centre_px, p=np.inf)
    apart = np.abs(prediction.centre_px[rows] - nuclei.centre_px) * mpp
    inside = (apart <= window_um / 2).all(axis=1)
    names = np.asarray(prediction.obs.index, object)[rows]
    table = {
        "nucleus": nuclei.names,
        "pixel_x": nuclei.centre_px[:, 0],
        "pixel_y": nuclei.centre_px[:, 1],
        "location": np.where(inside, names, ""),
        "distance_um": np.where(inside, np.hypot(*apart.T), np.nan),
        "window_um": window_um,
    }
    values = {gene: np.where(inside, prediction.column(gene)[rows], np.nan).astype(np.float32) for gene in shown}
    return pd.DataFrame(table | values)


def write_nuclei(
    prediction: StoredPrediction, nuclei: Nuclei, path: Path, ending: str, genes: Sequence[str] | None = None
) -> tuple[int, int]:
    """Write `nuclei_table` as .csv or .parquet, or into the features of a GeoJSON; nuclei, and those in a window.

    Raises
    ------
    UnknownName, TooFew, MissingExtra
    """
    table = nuclei_table(prediction, nuclei, genes)
    if ending == ".csv":
        guard_table(table).to_csv(path, index=False)
    elif ending == ".parquet":
        _require_pyarrow()
        table.to_parquet(path, index=False)
    else:
        features = nuclei.features or [
            {
                "type": "Feature",
                "geometry": {"type": "Point", "coordinates": [round(float(each), 2) for each in centre]},
                "properties": {"name": name},
            }
            for name, centre in zip(*nuclei[:2], strict=True)
        ]
        measured = table.drop(columns=["nucleus", "pixel_x", "pixel_y", "location"])
        with path.open("w", encoding="utf-8") as file:
            file.write('{"type": "FeatureCollection", "features": [')
            for number, (feature, row) in enumerate(zip(features, measured.to_dict("records"), strict=True)):
                properties = dict(feature.get("properties") or {})
                known = {key: float(f"{value:.5g}") for key, value in row.items() if np.isfinite(value)}
                before = properties.get("measurements")
                properties["measurements"] = (before if isinstance(before, dict) else {}) | known
                properties.setdefault("objectType", "detection")
                file.write((",\n" if number else "\n") + json.dumps({**feature, "properties": properties}))
            file.write("\n]}\n")
    return len(table), int((table["location"] != "").sum())


def _of_parquet(path: Path) -> Nuclei:
    _require_pyarrow()
    import pandas as pd
    import pyarrow as pa

    try:
        table = pd.read_parquet(path)
        centre_px = table[["pixel_x", "pixel_y"]].to_numpy(np.float64)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise BadInput(path, WHAT, str(error)[:150]) from error
    first = next((name for name in ("nucleus", "cell_id", "id", "barcode") if name in table), None)
    names = table.index if first is None else table[first]
    return Nuclei(tuple(map(id_text, names)), centre_px)


def _require_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise MissingExtra("pyarrow", "A .parquet", "'cmrcnet[platforms]'") from error


def _of_geojson(path: Path) -> Nuclei:
    if path.stat().st_size > LARGEST_GEOJSON:
        raise BadInput(path, WHAT, f"it has more than {LARGEST_GEOJSON >> 30} GB; split it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        features = content["features"] if isinstance(content, dict) else content
        if not isinstance(features, list):
            raise TypeError("it has no list of features")
        names, centres = [], []
        for number, feature in enumerate(features, start=1):
            geometry = feature.get("nucleusGeometry") or feature["geometry"]
            centres.append(_centre(geometry["type"], geometry["coordinates"]))
            names.append(str(feature.get("id") or number))
        centre_px = np.array(centres, np.float64).reshape(-1, 2)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError, OverflowError) as error:
        raise BadInput(path, WHAT, f"it is no GeoJSON of points or polygons ({str(error)[:100]})") from error
    return Nuclei(tuple(names), centre_px, features)


def _centre(kind: str, coordinates: Any) -> np.ndarray:
    """A point, or the centroid of the outer ring of a polygon (of several: the largest)."""
    if kind == "Point":
        return np.array(coordinates[:2], np.float64)
    if kind not in ("Polygon", "MultiPolygon"):
        raise ValueError(f"a {kind!r:.30}")
    rings = [coordinates[0]] if kind == "Polygon" else [polygon[0] for polygon in coordinates]
    found = [_centroid(np.array(ring, np.float64)[:, :2]) for ring in rings]
    return max(found, key=lambda each: each[0])[1]


def _centroid(ring: np.ndarray) -> tuple[float, np.ndarray]:
    """Area and centroid of a closed ring (points, 2); the mean point where it has no area."""
    here = ring - ring[0]  # keeps digits where coordinates are large
    there = np.roll(here, -1, axis=0)
    cross = here[:, 0] * there[:, 1] - there[:, 0] * here[:, 1]
    area = cross.sum() / 2
    if abs(area) < 1e-9:
        return 0.0, ring.mean(axis=0)
    return abs(area), ring[0] + ((here + there) * cross[:, None]).sum(axis=0) / (6 * area)
