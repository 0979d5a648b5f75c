"""Regions of a slide as polygons in a GeoJSON file, as QuPath writes them, and the locations inside each.

Coordinates are level-0 pixels. A region is named by the `id` of its feature, or by `id` or `name` among its properties:
by the one that a table of regions has, else by the first that is there. QuPath writes a UUID as `id`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from cmrcnet.errors import BadInput, BadOption, SectionError, TooFew
from cmrcnet.readers.text_files import read_json
from cmrcnet.slides.section import Spots, repeated
from cmrcnet.slides.slide import Slide, known_scale
from cmrcnet.storage.names import id_text

GEOJSON = ".geojson"
WHAT = "a GeoJSON file of regions"


def read_region_spots(path: Path, slide: Slide, *, pitch_um: float = 100.0, wanted: Collection[str] = ()) -> Spots:
    """Regions of a slide, each with the locations of a square grid that lie inside of it.

    Parameters
    ----------
    path : pathlib.Path
        A FeatureCollection of Polygons and MultiPolygons; holes are left out.
    slide : Slide
        Its scale must be known; locations beyond its edge are left out.
    pitch_um : float
        Distance of the locations. A region that no location of the grid falls into has one, `point_inside`.
    wanted : collection of str
        Names in a table of regions, which are preferred.

    Returns
    -------
    Spots
        One a region, in the order of the file, its centre the mean of its locations.

    Raises
    ------
    MissingInput, BadInput, SectionError, ScaleError, BadOption, TooFew
    """
    if not 0 < pitch_um < np.inf:
        raise BadOption("pitch_um", pitch_um, want="micrometres between neighbouring locations, above 0")
    pitch = pitch_um / known_scale(slide)
    regions = read_polygons(path, wanted)
    if twice := repeated([name for name, _ in regions]):
        raise SectionError.repeated_barcodes(twice, f"the regions of {path.name}")
    members = []
    for name, polygons in regions:
        corners = np.concatenate([rings[0] for rings in polygons])
        low = np.maximum(np.floor(corners.min(axis=0) / pitch), 0)
        high = np.minimum(
            np.ceil(corners.max(axis=0) / pitch), np.floor((slide.width_px / pitch, slide.height_px / pitch))
        )
        x, y = (np.arange(a, b + 1) for a, b in zip(low, high, strict=True))
        grid = (np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2) + 0.5) * pitch
        on = np.all((grid >= 0) & (grid < (slide.width_px, slide.height_px)), axis=1)
        chosen = grid[inside(grid, polygons) & on]
        if not len(chosen):
            point = point_inside(polygons, slide.width_px, slide.height_px)
            if point is None:
                raise SectionError(
                    f"Region {name} of {path.name} lies outside the image of {slide.name} ({slide.width_px} x "
                    f"{slide.height_px} px), or has no area; its corners must be level-0 pixels."
                )
            chosen = point[None]
        members.append(chosen)
    centres = np.array([each.mean(axis=0) for each in members])
    return Spots(tuple(name for name, _ in regions), centres, pitch_um, tuple(members))


def read_polygons(path: Path, wanted: Collection[str] = ()) -> list[tuple[str, list[list[np.ndarray]]]]:
    """Name of each region, and its polygons: rings (corners, 2), the outer one first.

    Names that are `wanted` are preferred.

    Raises
    ------
    MissingInput, BadInput, TooFew
    """
    content: Any = read_json(path, "The regions")
    if not isinstance(content, dict) or not isinstance(content.get("features"), list):
        raise BadInput(path, WHAT, "it is no FeatureCollection (a list `features`)")
    found, preferred = [], frozenset(wanted)
    for number, feature in enumerate(content["features"], 1):
        geometry = (feature.get("geometry") or {}) if isinstance(feature, dict) else {}
        properties = (feature.get("properties") or {}) if isinstance(feature, dict) else {}
        names = (feature.get("id"), properties.get("id"), properties.get("name")) if isinstance(feature, dict) else ()
        called = [text for each in names if (text := id_text(each))]
        name = next((each for each in called if each in preferred), called[0] if called else "")
        if not name:
            raise BadInput(path, WHAT, f"feature {number} has no name (id, or properties id or name)")
        kind, coordinates = geometry.get("type"), geometry.get("coordinates") or []
        if kind not in ("Polygon", "MultiPolygon"):
            raise BadInput(path, WHAT, f"feature {number} ({name}) is a {kind}; wanted a Polygon or MultiPolygon")
        try:
            polygons = [
                [np.asarray(ring, np.float64)[:, :2] for ring in polygon]
                for polygon in ([coordinates] if kind == "Polygon" else coordinates)
            ]
            sound = bool(polygons) and all(
                rings and all(len(ring) >= 3 and np.isfinite(ring).all() for ring in rings) for rings in polygons
            )
        except (TypeError, ValueError, IndexError):
            sound, polygons = False, []
        if not sound:
            raise BadInput(path, WHAT, f"feature {number} ({name}) has no ring of three corners or more")
        found.append((name, polygons))
    if not found:
        raise TooFew(f"regions in {path}", 0, 1, "write one feature a region")
    return found


def point_inside(polygons: list[list[np.ndarray]], width: float, height: float) -> np.ndarray | None:
    """A point (x, y) of an image that lies inside polygons; None where they have no area in it (shapely).

    Examples
    --------
    >>> corner = np.array([[0, 0], [40, 0], [40, 4], [4, 4], [4, 40], [0, 40]])
    >>> inside(point_inside([[corner]], 100, 100)[None], [[corner]]).tolist()
    [True]
    """
    import shapely

    parts = [shapely.make_valid(shapely.Polygon(outer, holes)) for outer, *holes in polygons]
    shown = shapely.union_all(parts).intersection(shapely.box(0, 0, width, height))
    return np.array(shown.representative_point().coords[0]) if shown.area > 0 else None


def inside(points: np.ndarray, polygons: list[list[np.ndarray]]) -> np.ndarray:
    """Which points (n, 2) lie in any of the polygons and in none of its holes: (n,) bool.

    Examples
    --------
    >>> square, hole = np.array([[0, 0], [4, 0], [4, 4], [0, 4]]), np.array([[1, 1], [3, 1], [3, 3], [1, 3]])
    >>> inside(np.array([[0.5, 0.5], [2.0, 2.0], [5.0, 5.0]]), [[square, hole]]).tolist()
    [True, False, False]
    """
    from matplotlib.path import Path as Outline

    within = np.zeros(len(points), bool)
    for outer, *holes in polygons:
        here = Outline(outer).contains_points(points)
        for hole in holes:
            here &= ~Outline(hole).contains_points(points)
        within |= here
    return within
