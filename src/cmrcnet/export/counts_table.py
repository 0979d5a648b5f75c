"""Predictions as counts at a stated depth, in an .h5ad of their own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from cmrcnet.errors import BadOption, Incompatible
from cmrcnet.export.stored_prediction import StoredPrediction
from cmrcnet.genes.scaling import Scaling

NOTE = (
    "expm1 of a predicted mean of log values: no integers, smoother than measured counts, and below the mean of counts "
    "where the averaged spots differ"
)


def write_counts(prediction: StoredPrediction, path: Path, depth: float) -> None:
    """Write an AnnData whose X (and layers lower and upper) are counts of a location with `depth` counts in all.

    With X = log1p(c s) of counts c scaled to the library size of the model, the counts are expm1(X) times depth over
    that library size. Depth is not predicted: it is the number of molecules that an assay reads of a spot.

    Raises
    ------
    BadOption
        The depth is no number above 0.
    Incompatible
        X is no logarithm of counts at one library size.
    """
    import anndata

    if not 0 < depth < math.inf:
        raise BadOption("depth", depth, want="counts of a location in all genes, above 0")
    scaling = Scaling.from_dict(json.loads(str(prediction.facts["scaling"])))
    if not scaling.logs or scaling.target_sum == "median":
        why = f"its units are {scaling.units}, which is no logarithm of counts at one library size"
        raise Incompatible.lacks("counts of this prediction", why)
    factor = depth / float(scaling.target_sum)

    def counts(layer: str | None = None) -> np.ndarray:
        return (np.expm1(prediction.rows(slice(None), layer).astype(np.float64)) * factor).astype(np.float32)

    bounds = {layer: counts(layer) for layer in ("lower", "upper") if layer in prediction.layers}
    facts = {"depth": float(depth), "units": f"counts at a depth of {depth:,.10g}", "note": NOTE}
    facts |= {key: prediction.facts[key] for key in ("slide", "licences", "version") if key in prediction.facts}
    prediction.require_unchanged()
    centres: Any = {"spatial": prediction.centre_px}
    anndata.AnnData(
        X=counts(),
        obs=prediction.obs,
        var=prediction.var,
        obsm=centres,
        layers=bounds,
        uns={"cmrcnet_counts": facts},
    ).write_h5ad(path)
