"""A region drawn on a slide: its locations, mean expression, genes that differ from another region, and its GeoJSON."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from cmrcnet.errors import TooFew
from cmrcnet.export.stored_prediction import StoredPrediction
from cmrcnet.export.table_file import BLOCK
from cmrcnet.genes.table import scaling_of
from cmrcnet.viewer.overlay import PredictedSlide

if TYPE_CHECKING:
    import pandas as pd

FEWEST = 5
"""Fewest locations of a region, and of what it is compared with."""
MOST = 20_000
"""Locations of a region that are read, at most: of a larger one, blocks at even distances."""
CAVEAT = (
    "Predicted values are smooth and neighbouring locations are alike: p-values are far too small here and do not say "
    "that a difference is real. Judge by the size of the difference and by the grade of the gene."
)


@dataclass(frozen=True, eq=False)
class Region:
    """An outline, (corners, 2) in micrometres, and the rows of the locations whose centre it holds, ascending."""

    name: str
    outline_um: np.ndarray
    rows: np.ndarray

    @classmethod
    def drawn(cls, name: str, outline_um: np.ndarray, centre_um: np.ndarray) -> Region:
        """The region within an outline; a line that crosses itself encloses what it winds around."""
        from matplotlib.path import Path as Outline

        inside = Outline(outline_um, closed=False).contains_points(centre_um)
        return cls(name, np.asarray(outline_um, np.float64), np.flatnonzero(inside))


def expression_of(prediction: StoredPrediction, rows: np.ndarray, most: int = MOST) -> tuple[np.ndarray, np.ndarray]:
    """Read locations, or a sample of many: the rows that were read (ascending), and (rows, genes) float32."""
    blocks = np.unique(rows // BLOCK[0])
    blocks = blocks[:: max(1, -(-len(rows) // most))]
    used, found = [], []
    for block in blocks:
        start = int(block) * BLOCK[0]
        here = rows[(rows >= start) & (rows < start + BLOCK[0])]
        found.append(prediction.rows(slice(start, start + BLOCK[0]))[here - start])
        used.append(here)
    return np.concatenate(used), np.concatenate(found)


def region_table(prediction: StoredPrediction, region: Region, other: np.ndarray) -> pd.DataFrame:
    """Mean expression of a region and what differs from other locations, the largest difference first.

    Parameters
    ----------
    prediction : StoredPrediction
    region : Region
    other : numpy.ndarray
        Rows of the locations to compare with, ascending.

    Returns
    -------
    pandas.DataFrame
        One row a gene that is predicted at all of the locations: `gene`, `grade`, `mean` and `other_mean` (units of the
        prediction), `lower` and `upper` (means of the locations' calibrated bounds: right where the errors of a region
        go together, too wide otherwise; NaN where there are none), `difference` of the means, `log2_fold_change` (of
        counts; else NaN) and `p_adjusted` (Benjamini-Hochberg) of Welch's t test, both of scanpy's `rank_genes_groups`.

    Raises
    ------
    TooFew
    """
    import anndata
    import pandas as pd
    import scanpy as sc

    for name, rows in ((f"region {region.name}", region.rows), ("what it is compared with", other)):
        if len(rows) < FEWEST:
            raise TooFew(f"locations lie in {name}", len(rows), FEWEST, "draw it larger")
    scaling = scaling_of(prediction.location(0))
    (mine, inside), (_, outside) = expression_of(prediction, region.rows), expression_of(prediction, other)
    whole = np.isfinite(inside).all(axis=0) & np.isfinite(outside).all(axis=0)
    if not whole.any():
        raise TooFew("genes are predicted at all of these locations", 0, 1, "draw it elsewhere")
    var: Any = prediction.var[whole]
    inside, outside = inside[:, whole], outside[:, whole]
    both = anndata.AnnData(
        np.concatenate([inside, outside]),
        obs=pd.DataFrame(
            {"region": pd.Categorical(np.repeat(["A", "B"], [len(inside), len(outside)]))},
            index=pd.Index([str(i) for i in range(len(inside) + len(outside))]),
        ),
        var=pd.DataFrame(index=var.index),
    )
    both.uns["log1p"] = {"base": None}
    sc.tl.rank_genes_groups(both, "region", groups=["A"], reference="B", method="t-test")
    tested = cast(Any, sc.get.rank_genes_groups_df(both, "A")).set_index("names").loc[var.index]
    mean, other_mean = inside.mean(axis=0, dtype=np.float64), outside.mean(axis=0, dtype=np.float64)
    lower = upper = np.full(len(var), np.nan)
    if "interval_scale" in prediction.obs and "interval_low" in var:
        scale = prediction.obs["interval_scale"].to_numpy(np.float64)[mine]
        low, high = (var[name].to_numpy(np.float64) for name in ("interval_low", "interval_high"))
        lower, upper = (
            np.array([np.clip(inside[:, g] + scale * side[g], *scaling.limits).mean() for g in range(len(var))])
            for side in (low, high)
        )
    table: Any = pd.DataFrame(
        {
            "gene": var.index,
            "grade": var["grade"].astype(str).to_numpy() if "grade" in var else "not measured",
            "mean": mean,
            "lower": lower,
            "upper": upper,
            "other_mean": other_mean,
            "difference": mean - other_mean,
            "log2_fold_change": tested["logfoldchanges"].to_numpy(np.float64) if scaling.kind == "counts" else np.nan,
            "p_adjusted": tested["pvals_adj"].to_numpy(np.float64),
        }
    )
    order = np.argsort(-np.abs(table["difference"].to_numpy()), kind="stable")
    return table.iloc[order].reset_index(drop=True)


def to_geojson(regions: Sequence[Region], slide: PredictedSlide) -> str:
    """Regions as QuPath annotations in level-0 pixels, each with its number of locations as a measurement."""
    family = uuid.uuid5(uuid.NAMESPACE_URL, str(slide.prediction.facts["slide_fingerprint"]))
    features = []
    for region in regions:
        outline = (np.concatenate([region.outline_um, region.outline_um[:1]]) / slide.mpp).round(2).tolist()
        features.append(
            {
                "type": "Feature",
                "id": str(uuid.uuid5(family, json.dumps(outline))),
                "geometry": {"type": "Polygon", "coordinates": [outline]},
                "properties": {
                    "objectType": "annotation",
                    "name": f"Region {region.name}",
                    "measurements": {"predicted locations": len(region.rows)},
                },
            }
        )
    return json.dumps({"type": "FeatureCollection", "features": features})
