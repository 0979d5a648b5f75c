"""Predict a whole slide into a file: in bounded memory, block by block, and going on where a killed run stopped.

While it runs, its state lies in ``OUT.partial``: the features of the locations (`features.resumable`) and the tmp
of the table (`export.table_file`). Both bear names of what they were made from, so that the state of another model,
slide, grid or bank is never gone on with.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cmrcnet.errors import CmrcnetError, InUse, NoSpace
from cmrcnet.export.formats import STORE, export
from cmrcnet.export.spatial_store import require_spatialdata
from cmrcnet.export.stored_prediction import StoredPrediction
from cmrcnet.export.table_file import TableFile
from cmrcnet.genes.table import table_frame
from cmrcnet.inference.chunks import predict_blocks
from cmrcnet.inference.location_features import LocationFeatures, features_name
from cmrcnet.inference.plan import Plan
from cmrcnet.storage.atomic import translate_os_errors
from cmrcnet.storage.file_lock import file_lock
from cmrcnet.storage.hashing import fingerprint

if TYPE_CHECKING:
    from cmrcnet.storage.cache import TokenCache

LOCK = "lock"


def predict_to_file(
    plan: Plan, out: Path, *, cache: TokenCache | None = None, batch: int | Literal["auto"] = "auto"
) -> Path:
    """Predict and write the table that `predict` returns.

    Parameters
    ----------
    plan : Plan
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
    InUse
        Another process is writing it.
    NoSpace
        The disk is too small, before anything is encoded.
    NoSpace
        Nothing of `out` is left; what was encoded is kept, and the same call goes on from there.
    Unwritable, BadInput
    MissingExtra
        .zarr without spatialdata, before anything is encoded.
    """
    if out.suffix == STORE:
        require_spatialdata()
    work = out.with_name(f"{out.name}.partial")
    _require_room(plan, out, work)
    with translate_os_errors(out):
        work.mkdir(exist_ok=True)
    with file_lock(work / LOCK) as mine:
        if not mine:
            raise InUse(out)
        _write(plan, out, work, cache, batch)
    return out


def _write(plan: Plan, out: Path, work: Path, cache: TokenCache | None, batch: int | Literal["auto"]) -> None:
    tmp = work / "table.h5ad"
    try:
        features = LocationFeatures(plan.sight, plan.slide, plan.locations.centre_px, work / "features")
        features.encode(cache, batch)
        _fill(plan, features, tmp)
        if out.suffix == STORE:
            with StoredPrediction(tmp) as table:
                export(table, out, slide=plan.slide, overwrite=True)
        else:
            with translate_os_errors(out):
                tmp.replace(out)
    except NoSpace:
        tmp.unlink(missing_ok=True)
        raise
    except CmrcnetError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)


def _require_room(plan: Plan, out: Path, work: Path) -> None:
    """Refuse a disk that is too small before anything is encoded: `NoSpace`."""
    with translate_os_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        kept = sum(file.stat().st_size for file in work.rglob("*") if file.is_file())
    place = 4 * plan.sight.numbers_kept + plan.bytes_per_location * (2 if out.suffix == STORE else 1)
    needed = place * len(plan.locations) - kept
    if needed > free:
        raise NoSpace.from_sentence(
            f"{out} takes about {needed / 1e9:.1f} GB while it is made, and {free / 1e9:.1f} GB are free there; free "
            "space, choose another folder, or choose fewer genes (--genes) or locations (--grid-um)."
        )


def _fill(plan: Plan, features: LocationFeatures, tmp: Path) -> None:
    """Write every block that is not written yet, and then what all of them together tell."""
    seen = features_name(plan.sight, plan.slide, plan.locations.centre_px)
    name = fingerprint(seen, plan.genes, plan.provenance())
    table = TableFile(tmp, len(plan.locations), name)
    try:
        for block in predict_blocks(plan, features, start=table.written):
            table.write(
                block.rows,
                block.mean,
                layers=block.stored_layers(),
                obsm=block.stored_obsm(),
                obs=block.obs,
            )
            del block  # before the next one is made
        frame = table_frame(
            genes=plan.genes,
            spots=plan.locations,
            slide=plan.slide,
            similarity=table.neighbour_similarity(),
            provenance=plan.provenance(),
            in_tissue=plan.in_tissue,
        )
        plan.annotate(frame, table.neighbour_rows())
        table.finish(frame)
    finally:
        table.close()
