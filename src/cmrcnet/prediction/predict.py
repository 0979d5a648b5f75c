"""Predict expression on a slide that has none."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from cmrcnet.encoding.spot_tokens import spot_tokens
from cmrcnet.errors import BadOption, SpotsOffImage, TooFew
from cmrcnet.expression.table import prediction_table
from cmrcnet.prediction.alarm import sound_alarm
from cmrcnet.prediction.bank import ReferenceBank
from cmrcnet.prediction.confidence import confidence_of
from cmrcnet.prediction.gene_columns import columns_of
from cmrcnet.prediction.readout import read_out
from cmrcnet.prediction.receipts import receipts
from cmrcnet.recipe import ReadoutConfig
from cmrcnet.search.average import average
from cmrcnet.search.exact import ExactSearch
from cmrcnet.search.neighbours import Neighbours
from cmrcnet.tissue.mask import find_tissue
from cmrcnet.tissue.patches import patch_grid
from cmrcnet.tissue.slide import Slide
from cmrcnet.tissue.spots import Spots

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from cmrcnet.encoding.token_cache import TokenCache
    from cmrcnet.model.trained_model import TrainedModel

PATCHES_AT_ONCE = 1024
"""Patches whose tokens are in memory together when there is no cache to map them from."""


def predict(
    model: TrainedModel,
    bank: ReferenceBank,
    slide: Slide,
    *,
    spots: Spots | None = None,
    genes: Sequence[str] | None = None,
    k: int | None = None,
    weighting: Literal["mean", "similarity"] | None = None,
    readout: Literal["retrieval", "ridge", "kernel", "blend"] | None = None,
    grid_um: float = 100.0,
    intervals: bool = False,
    refuse: float | None = None,
    cache: TokenCache | None = None,
) -> AnnData:
    """Predict expression at places of a slide.

    Each place's patch is embedded; the `k` bank spots whose gene embedding has the largest cosine to it are looked
    up, and their measured expression is averaged. A slide holds no counts, so no truth can enter.

    Parameters
    ----------
    model : TrainedModel
    bank : ReferenceBank
        Made with this model.
    slide : Slide
        Its um_per_px must be known.
    spots : Spots, optional
        Places to predict; a grid over the tissue when left out.
    genes : sequence of str, optional
        Genes to predict, in this order; every gene that the bank measured when left out.
    k : int, optional
        Measured spots averaged for one place; the recipe's choice when left out.
    weighting : {"mean", "similarity"}, optional
        How they are averaged; the recipe's choice when left out.
    readout : {"retrieval", "ridge", "kernel", "blend"}, optional
        What the prediction is read from; the recipe's choice when left out. All but retrieval need a model that works
        on expression components. The neighbours are named whatever the readout.
    grid_um : float
        Distance between the places of the grid.
    intervals : bool
        Add ``layers["lower"]`` and ``layers["upper"]``: each value's calibrated interval.
    refuse : float, optional
        Mark in ``obs["refused"]`` the places that are less certain than this share of held-in training spots.
    cache : TokenCache, optional
        Where the frozen encoder's tokens are kept. Without one they are made and used part by part.

    Returns
    -------
    anndata.AnnData
        The prediction table (`expression.table`). Besides, ``uns["cmrcnet"]["neighbour_spots"]`` tells of every bank
        row in ``obsm["neighbour_ids"]`` its section, patient, barcode, x and y: the measured tissue behind each
        prediction, without the bank at hand. A value is NaN where no neighbour's section measured the gene.

    Raises
    ------
    ForeignBank
        Another model made the bank.
    UnknownName, TooFew
        A gene that the bank does not have; no genes or no places at all.
    BadOption
        k is larger than the bank.
    SpotsOffImage
        A place whose centre lies outside the slide: there is nothing to look at.
    NotCalibrated
        Intervals or refusals are asked of a model that has nothing to calibrate them on.
    UnknownScale, NoTissue

    Warns
    -----
    CmrcnetWarning
        The slide does not look like the sections of training (``uns["cmrcnet"]["alarm"]``).
    """
    config = _readout(model, k, weighting, readout)
    bank.require_model(model)
    if config.k > len(bank):
        raise BadOption("k", config.k, want=f"at most {len(bank)}, the number of spots in {bank.name}")
    columns = columns_of(genes, bank.genes)
    genes = [bank.genes[column] for column in columns]
    belief = confidence_of(model, bank, config, genes, intervals=intervals, refuse=refuse)
    tissue = find_tissue(slide)
    places = patch_grid(slide, tissue, pitch_um=grid_um) if spots is None else spots
    if len(places) == 0:
        raise TooFew("places to predict", 0, 1, "give spots on the slide, or leave them out for a grid over the tissue")
    _require_on_slide(places, slide)
    if model.readout is None:
        tokens, queries = None, embed_places(model, slide, places, cache)
    else:
        tokens = place_tokens(model, slide, places, cache)
        queries = model.embed_tokens(tokens)
    neighbours = ExactSearch(bank.vectors).nearest(queries, config.k)
    mean, spread = read_out(neighbours, bank, config, columns)
    certain: dict[str, np.ndarray] = {}
    if tokens is not None and bank.scores is not None and bank.levels is not None:
        retrieved, varied = average(neighbours, bank.scores, weighting=config.weighting, temperature=config.temperature)
        unmeasured = np.isnan(mean)
        parts = model.readout.parts(model.readout.reduction.apply(tokens), retrieved)
        scores = model.readout.combine(parts, config.kind)
        mean = bank.levels.expression(
            scores, columns, covariance=model.readout.blend.covariance, amplitude=config.amplitude
        )
        mean[unmeasured] = np.nan
        certain = belief.of_places(neighbours.similarity, varied, parts, scores)
    provenance = {
        "model_fingerprint": model.fingerprint,
        "bank_fingerprint": bank.fingerprint,
        "bank_sections": list(bank.sections),
        "bank_patients": list(bank.patients),
        "recipe": model.recipe.name,
        "target_sum": bank.target_sum,
        "patch_px": model.recipe.patch.size_px,
        "patch_um_per_px": model.recipe.patch.um_per_px,
        "k": config.k,
        "weighting": config.weighting,
        "temperature": config.temperature,
        "readout": config.kind,
        "readout_weights": readout_weights(model, config),
    }
    table = prediction_table(
        mean,
        spread,
        genes=genes,
        spots=places,
        slide=slide,
        neighbours=neighbours,
        provenance=provenance,
        in_tissue=tissue.contains(places.centre_px),
    )
    table.uns["cmrcnet"]["neighbour_spots"] = neighbour_spots(bank, neighbours)
    table.obsm["neighbour_weight"], table.obsm["votes"] = receipts(neighbours, bank, config)
    for name, values in certain.items():
        table.obs[name] = values
    for name, values in belief.layers(mean, certain).items():
        table.layers[name] = values
    belief.annotate(table)
    sound_alarm(table, model, slide, places)
    return table


def readout_weights(model: TrainedModel, config: ReadoutConfig) -> dict[str, float]:
    """Share of each part in the prediction: how much of it the neighbours account for."""
    if config.kind == "blend":
        return {name: round(float(share), 4) for name, share in model.readout.blend.weights.items()}
    return {config.kind: 1.0}


def _require_on_slide(places: Spots, slide: Slide) -> None:
    """Refuse places outside the picture, where a patch is nothing but padding: `SpotsOffImage`."""
    size = (slide.width_px, slide.height_px)
    outside = ~((places.centre_px >= 0) & (places.centre_px < size)).all(axis=1)
    if outside.any():
        (left, top), (right, bottom) = places.centre_px.min(axis=0), places.centre_px.max(axis=0)
        span = f"x {left:.0f} to {right:.0f}, y {top:.0f} to {bottom:.0f}"
        raise SpotsOffImage(slide.name, int(outside.sum()), len(places), size, span)


def place_tokens(model: TrainedModel, slide: Slide, places: Spots, cache: TokenCache | None) -> np.ndarray:
    """Image tokens of each place, as the model's recipe wants them: (places, tokens, dim).

    Parameters
    ----------
    model : TrainedModel
    slide : Slide
    places : Spots
    cache : TokenCache or None
    """
    return spot_tokens(model.encoder, slide, places.centre_px, model.recipe, cache=cache)


def embed_places(model: TrainedModel, slide: Slide, places: Spots, cache: TokenCache | None) -> np.ndarray:
    """Image embeddings of the patches around each place: (places, dim) float32, unit length.

    Parameters
    ----------
    model : TrainedModel
    slide : Slide
    places : Spots
    cache : TokenCache or None
    """
    whole = cache is not None or bool(model.recipe.features.views_um)
    step = max(1, len(places)) if whole else PATCHES_AT_ONCE
    found = []
    for start in range(0, len(places), step):
        part = places if whole else places.take(np.arange(start, min(start + step, len(places))))
        found.append(model.embed_tokens(place_tokens(model, slide, part, cache)))
    return np.concatenate(found)


def neighbour_spots(bank: ReferenceBank, neighbours: Neighbours) -> pd.DataFrame:
    """Where the bank rows among the neighbours come from.

    Parameters
    ----------
    bank : ReferenceBank
    neighbours : Neighbours

    Returns
    -------
    pandas.DataFrame
        Columns section, patient, barcode, x, y; the index is the bank row, as text (AnnData stores no other).
    """
    rows = np.unique(neighbours.ids)
    table = bank.spots.iloc[rows].astype({"section": object, "patient": object, "barcode": object})
    table.index = rows.astype(str).astype(object)
    return table


def _readout(model: TrainedModel, k: int | None, weighting: str | None, kind: str | None) -> ReadoutConfig:
    """The recipe's readout, with what was asked for in its place."""
    if weighting not in (None, "mean", "similarity"):
        raise BadOption("weighting", weighting, want="mean or similarity")
    readout = model.recipe.readout
    if kind not in (None, "retrieval") and model.readout is None:
        raise BadOption("readout", kind, want="retrieval: this model does not work on expression components")
    if kind not in (None, "retrieval", "ridge", "kernel", "blend"):
        raise BadOption("readout", kind, want="retrieval, ridge, kernel or blend")
    return dataclasses.replace(
        readout,
        kind=readout.kind if kind is None else kind,
        k=readout.k if k is None else k,
        weighting=readout.weighting if weighting is None else weighting,
    )
