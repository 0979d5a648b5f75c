"""Predict expression on a slide that has none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from cmrcnet.genes.table import prediction_table
from cmrcnet.inference.chunks import predict_blocks
from cmrcnet.inference.location_features import LocationFeatures
from cmrcnet.inference.plan import Plan, plan_prediction
from cmrcnet.inference.prediction_chunk import PredictionBlock
from cmrcnet.retrieval.bank import ReferenceBank
from cmrcnet.search.neighbours import Neighbours
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import Slide
from cmrcnet.slides.tissue_mask import TissueMask

if TYPE_CHECKING:
    from anndata import AnnData

    from cmrcnet.models.trained_model import TrainedModel
    from cmrcnet.storage.cache import TokenCache


def predict(
    model: TrainedModel,
    bank: ReferenceBank,
    slide: Slide,
    *,
    spots: Spots | None = None,
    mask: TissueMask | None = None,
    genes: Sequence[str] | None = None,
    k: int | None = None,
    weighting: Literal["mean", "similarity"] | None = None,
    head: Literal["retrieval", "ridge", "kernel", "ensemble"] | None = None,
    grid_um: float = 100.0,
    intervals: bool = False,
    abstain: float | None = None,
    cache: TokenCache | None = None,
) -> AnnData:
    """Predict expression at locations of a slide.

    Each location's patch is embedded; the `k` bank spots whose gene embedding has the largest cosine to it are looked
    up, and their measured expression is averaged. A slide holds no counts, so no truth can enter. All that is
    predicted is held in memory; `inference.slide_job.predict_to_file` writes the same to disk block by block.

    Parameters
    ----------
    model : TrainedModel
    bank : ReferenceBank
        Made with this model.
    slide : Slide
        Its mpp must be known.
    spots : Spots, optional
        Locations to predict; a grid over the tissue when left out.
    mask : TissueMask, optional
        Where the tissue is; found on the slide when left out.
    genes : sequence of str, optional
        Genes to predict, in this order; every gene that the bank measured when left out.
    k : int, optional
        Measured spots averaged for one location; when left out the config's choice, or all of a smaller bank.
    weighting : {"mean", "similarity"}, optional
        How they are averaged; the config's choice when left out.
    head : {"retrieval", "ridge", "kernel", "ensemble"}, optional
        What the prediction is read from; the config's choice when left out. All but retrieval need a model that works
        on expression components. The neighbours are named whatever the head.
    grid_um : float
        Distance between the locations of the grid.
    intervals : bool
        Add ``layers["lower"]`` and ``layers["upper"]``: each value's calibrated interval.
    abstain : float, optional
        Mark in ``obs["abstained"]`` the locations that are less certain than this share of validation training spots.
    cache : TokenCache, optional
        Where what the frozen encoder sees is kept from one call to the next.

    Returns
    -------
    anndata.AnnData
        The prediction table (`genes.table`). Besides, ``uns["cmrcnet"]["neighbour_spots"]`` tells of every bank
        row in ``obsm["neighbour_ids"]`` its section, patient, barcode, x and y: the measured tissue behind each
        prediction, without the bank at hand. A value is NaN where no neighbour's section measured the gene.

    Raises
    ------
    Incompatible
        Another model made the bank.
    UnknownName, TooFew
        A gene that the bank does not have; no genes or no locations at all.
    BadOption
        k is larger than the bank.
    SectionError
        A location whose centre lies outside the slide: there is nothing to look at.
    NotAvailable
        Intervals or translate_os_errors are asked of a model that has nothing to calibrate them on.
    ScaleError, TooFew

    Warns
    -----
    CmrcnetWarning
        The slide does not look like the sections of training (``uns["cmrcnet"]["ood"]``).
    """
    plan = plan_prediction(
        model,
        bank,
        slide,
        spots=spots,
        mask=mask,
        genes=genes,
        k=k,
        weighting=weighting,
        head=head,
        grid_um=grid_um,
        intervals=intervals,
        abstain=abstain,
    )
    return table_of(plan, cache)


def table_of(plan: Plan, cache: TokenCache | None = None) -> AnnData:
    """Encode and predict all that is planned into a table in memory.

    Parameters
    ----------
    plan : Plan
    cache : TokenCache, optional
    """
    features = LocationFeatures(plan.sight, plan.slide, plan.locations.centre_px)
    features.encode(cache)
    return _joined(plan, predict_blocks(plan, features))


def _joined(plan: Plan, blocks: Iterable[PredictionBlock]) -> AnnData:
    """The blocks of all locations as one table."""
    joined: dict[tuple[str, str], np.ndarray] = {}
    for block in blocks:
        parts = {("", "mean"): block.mean}
        parts |= {("layers", name): values for name, values in block.stored_layers().items()}
        parts |= {("obs", name): values for name, values in block.obs.items()}
        parts |= {("obsm", name): values for name, values in block.stored_obsm().items()}
        for key, values in parts.items():
            if key not in joined:
                joined[key] = np.empty((len(plan.locations), *values.shape[1:]), values.dtype)
            joined[key][block.rows] = values
    ids = joined.pop(("obsm", "neighbour_ids"), None)
    neighbours = None if ids is None else Neighbours(ids, joined.pop(("obsm", "neighbour_similarity")))
    table = prediction_table(
        joined.pop(("", "mean")),
        joined.pop(("layers", "neighbour_std"), None),
        genes=plan.genes,
        spots=plan.locations,
        slide=plan.slide,
        neighbours=neighbours,
        provenance=plan.provenance(),
        in_tissue=plan.in_tissue,
    )
    for (place, name), values in joined.items():
        getattr(table, place)[name] = values
    plan.annotate(table, np.empty(0, np.int64) if ids is None else np.unique(ids))
    return table
