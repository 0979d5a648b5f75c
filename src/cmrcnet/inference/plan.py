"""What is to be predicted: everything checked before any time is spent."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from cmrcnet.config import HeadConfig
from cmrcnet.errors import BadOption
from cmrcnet.inference.confidence import Confidence, confidence_of
from cmrcnet.inference.feature_spec import Sight, sight_of_model
from cmrcnet.inference.gene_columns import columns_of
from cmrcnet.inference.ood_flag import sound_alarm
from cmrcnet.retrieval.bank import ReferenceBank
from cmrcnet.slides.query_grid import make_query_grid
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import Slide
from cmrcnet.slides.tissue_mask import TissueMask

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from cmrcnet.inference.prediction_chunk import PredictionBlock
    from cmrcnet.models.trained_model import TrainedModel


class Plan(Protocol):
    """What is predicted on one slide, and how: from a bank (`PredictionPlan`) or by a student (`StudentPlan`).

    Attributes
    ----------
    slide : Slide
    locations : Spots
    in_tissue : numpy.ndarray, shape (locations,), bool
    columns : numpy.ndarray, shape (genes,), int
        Of all genes that could be predicted.
    """

    slide: Slide
    locations: Spots
    in_tissue: np.ndarray
    columns: np.ndarray

    @property
    def genes(self) -> list[str]:
        """The genes, in the order in which they were asked for."""

    @property
    def sight(self) -> Sight:
        """How locations are looked at."""

    @property
    def bytes_per_location(self) -> int:
        """Bytes that a location takes in the table, about."""

    def block(self, rows: slice, seen: np.ndarray) -> PredictionBlock:
        """Predict the locations `rows`, of which `seen` is what the sight gives."""

    def annotate(self, table: AnnData, neighbour_rows: np.ndarray) -> None:
        """Add what is told of all locations together, in memory and on disk alike.

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
    """Locations of a slide, genes, and how the genes are read from the bank; see `plan_prediction`.

    Parameters
    ----------
    model : TrainedModel
    bank : ReferenceBank
    slide : Slide
    locations : Spots
    in_tissue : numpy.ndarray, shape (locations,), bool
    columns : numpy.ndarray, shape (genes,), int
        Columns of the bank.
    head : HeadConfig
    confidence : Confidence
        How far it is to be believed.
    """

    model: TrainedModel
    bank: ReferenceBank
    slide: Slide
    locations: Spots
    in_tissue: np.ndarray
    columns: np.ndarray
    head: HeadConfig
    confidence: Confidence

    @property
    def genes(self) -> list[str]:
        """The genes, in the order in which they were asked for."""
        return [self.bank.genes[column] for column in self.columns]

    @cached_property
    def sight(self) -> Sight:
        """How locations are looked at: as the model does."""
        return sight_of_model(self.model)

    @property
    def bytes_per_location(self) -> int:
        """Bytes that a location takes in the table, about."""
        layers = 4 if self.confidence.intervals else 2
        return 4 * layers * len(self.columns) + 16 * self.head.k

    def block(self, rows: slice, seen: np.ndarray) -> PredictionBlock:
        """Search the bank for some locations, and read out the genes.

        Parameters
        ----------
        rows : slice
            Of the locations.
        seen : array, shape (locations, width)
            What the sight gives of them.
        """
        from cmrcnet.inference.bank_chunk import bank_block

        return bank_block(self, rows, seen)

    def annotate(self, table: AnnData, neighbour_rows: np.ndarray) -> None:
        """Add the neighbours' origin, the gene cards, and the alarm to a table of these locations.

        Parameters
        ----------
        table : anndata.AnnData
            A prediction table, or its frame: X and layers are not looked at.
        neighbour_rows : array of int
            Rows of the bank that are somebody's neighbour, each once.
        """
        table.uns["cmrcnet"]["neighbour_spots"] = neighbour_spots(self.bank, neighbour_rows)
        self.confidence.annotate(table)
        sound_alarm(table, self.model.trust, self.slide, self.locations)

    @property
    def head_weights(self) -> dict[str, float]:
        """Share of each part in the prediction: how much of it the neighbours account for."""
        if self.head.kind == "ensemble":
            return {name: round(float(share), 4) for name, share in self.model.head.ensemble.weights.items()}
        return {self.head.kind: 1.0}

    def provenance(self) -> dict[str, Any]:
        """What a prediction table says of where it comes from."""
        model, bank, head = self.model, self.bank, self.head
        return {
            "model_fingerprint": model.fingerprint,
            "bank_fingerprint": bank.fingerprint,
            "bank_sections": list(bank.sections),
            "bank_patients": list(bank.patients),
            "config": model.config.name,
            "target_sum": bank.target_sum,
            "patch_px": model.config.patch.size_px,
            "patch_mpp": model.config.patch.mpp,
            "k": head.k,
            "weighting": head.weighting,
            "temperature": head.temperature,
            "head": head.kind,
            "head_weights": self.head_weights,
            "with_intervals": int(self.confidence.intervals),
            "abstain": self.confidence.abstain or 0.0,
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
    head: Literal["retrieval", "ridge", "kernel", "ensemble"] | None = None,
    grid_um: float = 100.0,
    intervals: bool = False,
    abstain: float | None = None,
) -> PredictionPlan:
    """Check what is asked for, find the tissue and lay the locations; parameters and errors as `predict`."""
    config = _head(model, k, weighting, head)
    bank.require_model(model)
    bank.searcher()  # opened now: whatever becomes of the bank's folder while hours are spent, this one stays
    if k is not None and k > len(bank):
        raise BadOption("k", k, want=f"at most {len(bank)}, the number of spots in {bank.name}")
    columns = columns_of(genes, bank.genes)
    named = [bank.genes[column] for column in columns]
    belief = confidence_of(model, bank, config, named, intervals=intervals, abstain=abstain)
    locations, tissue = make_query_grid(slide, spots, mask, grid_um)
    inside = tissue.contains(locations.centre_px)
    return PredictionPlan(model, bank, slide, locations, inside, columns, config.within(len(bank)), belief)


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


def _head(model: TrainedModel, k: int | None, weighting: str | None, kind: str | None) -> HeadConfig:
    """The config's head, with what was asked for in its place."""
    if weighting not in (None, "mean", "similarity"):
        raise BadOption("weighting", weighting, want="mean or similarity")
    head = model.config.head
    if kind not in (None, "retrieval") and model.head is None:
        raise BadOption("head", kind, want="retrieval: this model does not work on expression components")
    if kind not in (None, "retrieval", "ridge", "kernel", "ensemble"):
        raise BadOption("head", kind, want="retrieval, ridge, kernel or ensemble")
    return dataclasses.replace(
        head,
        kind=head.kind if kind is None else kind,
        k=head.k if k is None else k,
        weighting=head.weighting if weighting is None else weighting,
    )
