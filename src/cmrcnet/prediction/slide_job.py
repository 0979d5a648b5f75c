"""Predict a whole slide into a file: in bounded memory, block by block, and going on where a killed run stopped.

While it runs, its state lies in ``OUT.partial``: the features of the places (`encoding.feature_draft`) and the draft
of the table (`outputs.table_file`). Both bear names of what they were made from, so that the state of another model,
slide, grid or bank is never gone on with.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from cmrcnet.atomic import refusals
from cmrcnet.errors import CmrcnetError, DiskFull, NoRoom
from cmrcnet.expression.table import table_frame
from cmrcnet.fingerprint import fingerprint
from cmrcnet.outputs.export import STORE, export
from cmrcnet.outputs.spatial_store import require_spatialdata
from cmrcnet.outputs.stored_prediction import StoredPrediction
from cmrcnet.outputs.table_file import TableFile
from cmrcnet.prediction.blocks import predict_blocks
from cmrcnet.prediction.place_features import PlaceFeatures
from cmrcnet.prediction.plan import PredictionPlan
from cmrcnet.prediction.predict import annotate

if TYPE_CHECKING:
    from cmrcnet.encoding.token_cache import TokenCache


def predict_to_file(
    plan: PredictionPlan, out: Path, *, cache: TokenCache | None = None, batch: int | Literal["auto"] = "auto"
) -> Path:
    """Predict and write the table that `predict` returns.

    Parameters
    ----------
    plan : PredictionPlan
    out : Path
        The .h5ad, or .zarr, to write. It appears when it is whole, and replaces what is there.
    cache : TokenCache, optional
        Where what the encoder sees is kept from one job to the next.
    batch : int or "auto"
        Patches a forward pass.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    NoRoom
        The disk is too small, before anything is encoded.
    DiskFull
        Nothing of `out` is left; what was encoded is kept, and the same call goes on from there.
    Unwritable, BadFile
    MissingExtra
        .zarr without spatialdata, before anything is encoded.
    """
    if out.suffix == STORE:
        require_spatialdata()
    work = out.with_name(f"{out.name}.partial")
    draft = work / "table.h5ad"
    _require_room(plan, out, work)
    try:
        features = PlaceFeatures(plan, work / "features")
        features.encode(cache, batch)
        _fill(plan, features, draft)
        if out.suffix == STORE:
            with StoredPrediction(draft) as table:
                export(table, out, slide=plan.slide, overwrite=True)
        else:
            with refusals(out):
                draft.replace(out)
    except DiskFull:
        draft.unlink(missing_ok=True)
        raise
    except CmrcnetError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)
    return out


def _require_room(plan: PredictionPlan, out: Path, work: Path) -> None:
    """Refuse a disk that is too small before anything is encoded: `NoRoom`."""
    with refusals(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        kept = sum(file.stat().st_size for file in work.rglob("*") if file.is_file())
    views = max(len(plan.model.recipe.features.views_um), 1)
    layers = 4 if plan.confidence.intervals else 2
    table = 4 * layers * len(plan.columns) + 16 * plan.readout.k
    place = 4 * views * plan.model.encoder.dim + table * (2 if out.suffix == STORE else 1)
    needed = place * len(plan.places) - kept
    if needed > free:
        raise NoRoom(out, needed / 1e9, free / 1e9)


def _fill(plan: PredictionPlan, features: PlaceFeatures, draft: Path) -> None:
    """Write every block that is not written yet, and then what all of them together tell."""
    name = fingerprint(plan.features_name, plan.bank.fingerprint, plan.genes, plan.provenance())
    table = TableFile(draft, len(plan.places), name)
    try:
        for block in predict_blocks(plan, features, start=table.written):
            table.write(
                block.rows,
                block.mean,
                layers={"spread": block.spread, **block.layers},
                obsm={
                    "neighbour_ids": block.neighbours.ids.astype(np.int64, copy=False),
                    "neighbour_similarity": block.neighbours.similarity,
                    **block.obsm,
                },
                obs=block.obs,
            )
            del block  # before the next one is made
        frame = table_frame(
            genes=plan.genes,
            spots=plan.places,
            slide=plan.slide,
            similarity=table.neighbour_similarity(),
            provenance=plan.provenance(),
            in_tissue=plan.in_tissue,
        )
        annotate(frame, plan, table.neighbour_rows())
        table.finish(frame)
    finally:
        table.close()
