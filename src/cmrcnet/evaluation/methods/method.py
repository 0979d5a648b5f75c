"""The one interface of everything that is compared: learn from training sections, predict from a slide.

A method of your own is a class with a `name`, an `about` and a `fit`; what `fit` returns has a `predict`. See
`baselines.GeneMean` for the shortest one. Neither side ever holds a count of a held-out section: `TrainingData`
is built from the training sections alone, and a `Location` has a slide, spots and features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from scipy import sparse

from cmrcnet.config import Config
from cmrcnet.errors import ShapeMismatch, UnknownName
from cmrcnet.evaluation.methods.frozen_features import PooledFeatures
from cmrcnet.evaluation.protocol.folds import Fold
from cmrcnet.genes.gene_sets import GenePanel
from cmrcnet.slides.section import Cohort, Section, Spots
from cmrcnet.slides.slide import Slide

if TYPE_CHECKING:
    from anndata import AnnData

    from cmrcnet.evaluation.protocol.model_shelf import ModelShelf
    from cmrcnet.models.trained_model import TrainedModel
    from cmrcnet.storage.cache import TokenCache
    from cmrcnet.training.checkpoint import Checkpoints

MAIN = "cmrcnet"
"""The method whose prediction tables are kept, and of which the verdict speaks."""


@dataclass(frozen=True, eq=False)
class Location:
    """All that a method may know of a held-out section: where it is, and what can be seen there."""

    section: str
    slide: Slide
    spots: Spots
    features: PooledFeatures = field(repr=False)

    def pooled(self) -> np.ndarray:
        """The frozen encoder's mean token of each spot: (spots, dim) float32."""
        return self.features.of(self.slide, self.spots)


@dataclass(frozen=True, eq=False)
class DiagnosticLocation(Location):
    """A location that also tells how deeply each spot was sequenced: something that no slide shows.

    Only a method with the attribute ``diagnostic = True`` is handed one. It is for nulls that ask how far depth alone
    explains a score; such a method cannot be used on a slide without counts.

    Parameters
    ----------
    log_depth : numpy.ndarray, shape (spots,), float64
        ``log(1 + all counts of the spot)``; no count of a single gene.
    """

    log_depth: np.ndarray = field(repr=False)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a method says of one location.

    Parameters
    ----------
    genes : tuple of str
    mean : numpy.ndarray, shape (spots, genes), float32
        Log-normalised expression at the config's target sum.
    table : AnnData or None
        The prediction table, from methods that make one.
    """

    genes: tuple[str, ...]
    mean: np.ndarray
    table: AnnData | None = None

    def __post_init__(self) -> None:
        if self.mean.ndim != 2 or self.mean.shape[1] != len(self.genes):
            raise ShapeMismatch("A prediction", want=("spots", len(self.genes)), got=self.mean.shape)

    def take(self, genes: tuple[str, ...]) -> np.ndarray:
        """The columns of these genes, in this order."""
        column = {gene: i for i, gene in enumerate(self.genes)}
        missing = [gene for gene in genes if gene not in column]
        if missing:
            raise UnknownName(
                "predicted gene", missing[0], self.genes, "A method predicts every gene of `training.genes`."
            )
        return self.mean[:, [column[gene] for gene in genes]]


@dataclass(frozen=True, eq=False)
class TrainingData:
    """All that a method may learn from in one fold.

    Parameters
    ----------
    cohort : Cohort
        The training sections, and no other.
    fold : Fold
        Names only.
    config : Config
    panel : GenePanel
        Genes of the gene encoder.
    sets : mapping of str to tuple of str
        HEG, HVG, all: chosen on the training sections.
    features : PooledFeatures
        Frozen features of any location.
    cache : TokenCache or None
    checkpoints : Checkpoints or None
        Where a long training may keep its state, to go on after an interruption.
    shelf : ModelShelf or None
        Trained models that differ in their head alone; see `trained`.
    """

    cohort: Cohort
    fold: Fold
    config: Config
    panel: GenePanel
    sets: Mapping[str, tuple[str, ...]]
    features: PooledFeatures
    cache: TokenCache | None = None
    checkpoints: Checkpoints | None = None
    shelf: ModelShelf | None = None

    def trained(self, config: Config, cohort: Cohort, train: Callable[[], TrainedModel]) -> TrainedModel:
        """The model that `train` gives: from the shelf, where there is one and the same training was done before.

        Parameters
        ----------
        config : Config
            What it is trained by: `self.config`, or one made of it.
        cohort : Cohort
            What it is trained on: `self.cohort`, or a cohort of another name made of it.
        train : callable
        """
        return train() if self.shelf is None else self.shelf.trained(config, self.panel, cohort, train)

    @property
    def seed(self) -> int:
        """Seed of every random choice."""
        return self.config.train.seed

    @cached_property
    def genes(self) -> tuple[str, ...]:
        """Genes measured in every training section, in order of first appearance."""
        return tuple(self.sets["all"])

    @cached_property
    def expression(self) -> sparse.csr_matrix:
        """Log-normalised expression of every training spot, sections one after another: (spots, genes)."""
        everything = GenePanel(self.genes, self.config.panel.target_sum, {"kind": "measured in all training sections"})
        return sparse.vstack([everything.select(section) for section in self.cohort], format="csr")

    @cached_property
    def pooled(self) -> np.ndarray:
        """Frozen features of every training spot, rows as in `expression`: (spots, dim) float32."""
        return np.concatenate([self.features.of(section.slide, section.spots) for section in self.cohort])

    @cached_property
    def section_of(self) -> np.ndarray:
        """Section name of every row of `expression`."""
        names = [np.repeat(section.name, len(section.spots)) for section in self.cohort]
        return np.concatenate(names)

    @cached_property
    def unit_of(self) -> np.ndarray:
        """What an inner split must keep together, row by row: patients, or sections where that is the protocol.

        With a single training patient it is sections all the same.
        """
        if self.config.evaluation.group_by == "section" or len(self.cohort.patients) < 2:
            return self.section_of
        patient = {name: self.cohort.patient_of(name) for name in self.cohort.sections}
        return np.array([patient[name] for name in self.section_of])


class Predictor(Protocol):
    """A fitted method.

    Attributes
    ----------
    record : dict
        What it chose and how training went, JSON-able; goes into `run.json` and the report.
    """

    record: dict[str, Any]

    def predict(self, place: Location) -> Prediction:
        """Predict log-normalised expression at the spots of a location."""
        ...


@runtime_checkable
class Method(Protocol):
    """One row of the table.

    Attributes
    ----------
    name : str
        Short, unique, fit for a file name.
    about : str
        One sentence for the report: what it is, and from whom.

    A null that may know the test section's sequencing depth has ``diagnostic = True`` besides; see
    `DiagnosticLocation`.
    """

    name: str
    about: str

    def fit(self, training: TrainingData) -> Predictor:
        """Learn from the training sections."""
        ...


def location_of(section: Section, features: PooledFeatures, method: Method | None = None) -> Location:
    """The part of a held-out section that a method may see.

    Parameters
    ----------
    section : Section
    features : PooledFeatures
    method : Method, optional
        One with ``diagnostic = True`` also gets each spot's depth; no other can.

    Returns
    -------
    Location
    """
    if getattr(method, "diagnostic", False) is True:
        return DiagnosticLocation(section.name, section.slide, section.spots, features, log_depth_of(section))
    return Location(section.name, section.slide, section.spots, features)


def log_depth_of(section: Section) -> np.ndarray:
    """``log(1 + all counts)`` of each spot: (spots,) float64."""
    return np.log1p(np.asarray(section.counts.sum(axis=1), np.float64).ravel())
