"""What is to be predicted: everything checked before any time is spent."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from cmrcnet.errors import BadOption
from cmrcnet.prediction.alarm import sound_alarm
from cmrcnet.prediction.bank import ReferenceBank
from cmrcnet.prediction.confidence import Confidence, confidence_of
from cmrcnet.prediction.gene_columns import columns_of
from cmrcnet.prediction.laid_places import lay_places
from cmrcnet.prediction.sight import Sight, sight_of_model
from cmrcnet.recipe import ReadoutConfig
from cmrcnet.tissue.mask import TissueMask
from cmrcnet.tissue.slide import Slide
from cmrcnet.tissue.spots import Spots

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from cmrcnet.model.trained_model import TrainedModel
    from cmrcnet.prediction.prediction_block import PredictionBlock


class Plan(Protocol):
    """What is predicted on one slide, and how: from a bank (`PredictionPlan`) or by a student (`StudentPlan`).

    Attributes
    ----------
    slide : Slide
    places : Spots
    in_tissue : numpy.ndarray, shape (places,), bool
    columns : numpy.ndarray, shape (genes,), int
        Of all genes that could be predicted.
    """

    slide: Slide
    places: Spots
    in_tissue: np.ndarray
    columns: np.ndarray

    @property
    def genes(self) -> list[str]:
        """The genes, in the order in which they were asked for."""

    @property
    def sight(self) -> Sight:
        """How places are looked at."""

    @property
    def bytes_a_place(self) -> int:
        """Bytes that a place takes in the table, about."""

    def block(self, rows: slice, seen: np.ndarray) -> PredictionBlock:
        """Predict the places `rows`, of which `seen` is what the sight gives."""

    def annotate(self, table: AnnData, neighbour_rows: np.ndarray) -> None:
        """Add what is told of all places together, in memory and on disk alike.

        Parameters
        ----------
        table : anndata.AnnData
            A prediction table, or its frame: X and layers are not looked at.
        neighbour_rows : array of int
            Rows of the bank that are somebody's neighbour, each once.
        """

    def provenance(self) -> dict[str, Any]:
        """What a prediction table says of where it comes from."""


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
    def sight(self) -> Sight:
        """How places are looked at: as the model does."""
        return sight_of_model(self.model)

    @property
    def bytes_a_place(self) -> int:
        """Bytes that a place takes in the table, about."""
        layers = 4 if self.confidence.intervals else 2
        return 4 * layers * len(self.columns) + 16 * self.readout.k

    def block(self, rows: slice, seen: np.ndarray) -> PredictionBlock:
        """Search the bank for some places, and read out the genes.

        Parameters
        ----------
        rows : slice
            Of the places.
        seen : array, shape (places, width)
            What the sight gives of them.
        """
        from cmrcnet.prediction.bank_block import bank_block

        return bank_block(self, rows, seen)

    def annotate(self, table: AnnData, neighbour_rows: np.ndarray) -> None:
        """Add the neighbours' origin, the gene cards, and the alarm to a table of these places.

        Parameters
        ----------
        table : anndata.AnnData
            A prediction table, or its frame: X and layers are not looked at.
        neighbour_rows : array of int
            Rows of the bank that are somebody's neighbour, each once.
        """
        table.uns["cmrcnet"]["neighbour_spots"] = neighbour_spots(self.bank, neighbour_rows)
        self.confidence.annotate(table)
        sound_alarm(table, self.model.trust, self.slide, self.places)

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
    bank.searcher()  # opened now: whatever becomes of the bank's folder while hours are spent, this one stays
    if k is not None and k > len(bank):
        raise BadOption("k", k, want=f"at most {len(bank)}, the number of spots in {bank.name}")
    columns = columns_of(genes, bank.genes)
    named = [bank.genes[column] for column in columns]
    belief = confidence_of(model, bank, config, named, intervals=intervals, refuse=refuse)
    places, tissue = lay_places(slide, spots, mask, grid_um)
    inside = tissue.contains(places.centre_px)
    return PredictionPlan(model, bank, slide, places, inside, columns, config.within(len(bank)), belief)


def neighbour_spots(bank: ReferenceBank, rows: np.ndarray) -> pd.DataFrame:
    """Where rows of the bank come from.

    Parameters
    ----------
    bank : ReferenceBank
    rows : array of int
        Rows of the bank that are somebody's neighbour, each once.

    Returns
    -------
    pandas.DataFrame
        Columns section, patient, barcode, x, y; the index is the bank row, as text (AnnData stores no other).
    """
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
