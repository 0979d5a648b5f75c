"""What is to be predicted: everything checked before any time is spent."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cmrcnet.errors import BadOption, SpotsOffImage, TooFew
from cmrcnet.fingerprint import fingerprint
from cmrcnet.prediction.bank import ReferenceBank
from cmrcnet.prediction.confidence import Confidence, confidence_of
from cmrcnet.prediction.gene_columns import columns_of
from cmrcnet.recipe import ReadoutConfig
from cmrcnet.tissue.mask import TissueMask, find_tissue
from cmrcnet.tissue.patches import patch_grid
from cmrcnet.tissue.slide import Slide
from cmrcnet.tissue.spots import Spots

if TYPE_CHECKING:
    from cmrcnet.model.trained_model import TrainedModel


@dataclass(frozen=True, eq=False)
class PredictionPlan:
    """Places of a slide, genes, and how the genes are read from the bank; see `plan_prediction`.

    Parameters
    ----------
    model : TrainedModel
    bank : ReferenceBank
    slide : Slide
    places : Spots
    in_tissue : numpy.ndarray, shape (places,), bool
    columns : numpy.ndarray, shape (genes,), int
        Columns of the bank.
    readout : ReadoutConfig
    confidence : Confidence
        How far it is to be believed.
    """

    model: TrainedModel
    bank: ReferenceBank
    slide: Slide
    places: Spots
    in_tissue: np.ndarray
    columns: np.ndarray
    readout: ReadoutConfig
    confidence: Confidence

    @property
    def genes(self) -> list[str]:
        """The genes, in the order in which they were asked for."""
        return [self.bank.genes[column] for column in self.columns]

    @cached_property
    def features_name(self) -> str:
        """Name of the features of these places: whatever they depend on, so not the bank and not the genes."""
        recipe = self.model.recipe.to_dict()
        return fingerprint(
            self.model.fingerprint,
            {name: recipe[name] for name in ("features", "patch")} | {"precision": recipe["train"]["precision"]},
            self.slide.fingerprint(),
            self.slide.um_per_px,
            self.places.centre_px,
        )

    @property
    def readout_weights(self) -> dict[str, float]:
        """Share of each part in the prediction: how much of it the neighbours account for."""
        if self.readout.kind == "blend":
            return {name: round(float(share), 4) for name, share in self.model.readout.blend.weights.items()}
        return {self.readout.kind: 1.0}

    def provenance(self) -> dict[str, Any]:
        """What a prediction table says of where it comes from."""
        model, bank, readout = self.model, self.bank, self.readout
        return {
            "model_fingerprint": model.fingerprint,
            "bank_fingerprint": bank.fingerprint,
            "bank_sections": list(bank.sections),
            "bank_patients": list(bank.patients),
            "recipe": model.recipe.name,
            "target_sum": bank.target_sum,
            "patch_px": model.recipe.patch.size_px,
            "patch_um_per_px": model.recipe.patch.um_per_px,
            "k": readout.k,
            "weighting": readout.weighting,
            "temperature": readout.temperature,
            "readout": readout.kind,
            "readout_weights": self.readout_weights,
            "with_intervals": int(self.confidence.intervals),
            "refuse": self.confidence.refuse or 0.0,
        }


def plan_prediction(
    model: TrainedModel,
    bank: ReferenceBank,
    slide: Slide,
    *,
    spots: Spots | None = None,
    mask: TissueMask | None = None,
    genes: Sequence[str] | None = None,
    k: int | None = None,
    weighting: Literal["mean", "similarity"] | None = None,
    readout: Literal["retrieval", "ridge", "kernel", "blend"] | None = None,
    grid_um: float = 100.0,
    intervals: bool = False,
    refuse: float | None = None,
) -> PredictionPlan:
    """Check what is asked for, find the tissue and lay the places; parameters and errors as `predict`."""
    config = _readout(model, k, weighting, readout)
    bank.require_model(model)
    if k is not None and k > len(bank):
        raise BadOption("k", k, want=f"at most {len(bank)}, the number of spots in {bank.name}")
    columns = columns_of(genes, bank.genes)
    named = [bank.genes[column] for column in columns]
    belief = confidence_of(model, bank, config, named, intervals=intervals, refuse=refuse)
    config = dataclasses.replace(config, k=min(config.k, len(bank)))  # the recipe's k is a wish, one given a demand
    tissue = find_tissue(slide) if mask is None else mask
    places = patch_grid(slide, tissue, pitch_um=grid_um) if spots is None else spots
    if len(places) == 0:
        raise TooFew("places to predict", 0, 1, "give spots on the slide, or leave them out for a grid over the tissue")
    _require_on_slide(places, slide)
    return PredictionPlan(model, bank, slide, places, tissue.contains(places.centre_px), columns, config, belief)


def _require_on_slide(places: Spots, slide: Slide) -> None:
    """Refuse places outside the picture, where a patch is nothing but padding: `SpotsOffImage`."""
    size = (slide.width_px, slide.height_px)
    outside = ~((places.centre_px >= 0) & (places.centre_px < size)).all(axis=1)
    if outside.any():
        (left, top), (right, bottom) = places.centre_px.min(axis=0), places.centre_px.max(axis=0)
        span = f"x {left:.0f} to {right:.0f}, y {top:.0f} to {bottom:.0f}"
        raise SpotsOffImage(slide.name, int(outside.sum()), len(places), size, span)


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
