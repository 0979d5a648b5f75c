"""The interface of everything that is compared: learn from training sections, predict from a slide.

A method of your own is a class with a `name`, an `about` and a `fit`; what `fit` returns has a `record` and a
`predict`. `controls.GeneMean` is the shortest one. Neither side ever holds a count of a held-out section: `FoldData`
is built from the training sections alone, and a `Location` has a slide, spots and features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from scipy import sparse

from cmrcnet.config import Config, HeadConfig
from cmrcnet.errors import ShapeMismatch, UnknownName
from cmrcnet.evaluation import Sparse
from cmrcnet.evaluation.methods.frozen_features import PooledFeatures
from cmrcnet.evaluation.protocol.folds import Fold
from cmrcnet.genes.gene_sets import GenePanel
from cmrcnet.slides.section import Cohort, Section, Spots
from cmrcnet.slides.slide import Slide
from cmrcnet.storage.hashing import fingerprint

if TYPE_CHECKING:
    from anndata import AnnData

    from cmrcnet.storage.cache import TokenCache
    from cmrcnet.training.checkpoint import Checkpoints

MAIN = "cmrcnet"
"""The method whose prediction tables are kept, and that the summary is about."""

_NOT_TRAINING = ("name", "about", "head")
"""Parts of a config that do not change what a training learns."""

Model = TypeVar("Model")


@dataclass(frozen=True, eq=False)
class Location:
    """All that a method may know of a held-out section: the slide, the spots, and features of what they show."""

    section: str
    slide: Slide
    spots: Spots
    features: PooledFeatures = field(repr=False)

    def pooled(self) -> np.ndarray:
        """Return the frozen encoder's mean token of each spot, shape (spots, dim), float32."""
        return self.features.of(self.slide, self.spots)


@dataclass(frozen=True, eq=False)
class DiagnosticLocation(Location):
    """A location with the sequencing depth of each spot, which no slide shows.

    Only a method with the attribute ``diagnostic = True`` gets one. It is for nulls that measure how far depth alone
    explains a score; such a method cannot be used on a slide without counts.
    """

    log_depth: np.ndarray = field(repr=False)  # (spots,) float64: log(1 + all counts); no count of a single gene


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predicted expression at the spots of one location."""

    genes: tuple[str, ...]
    mean: np.ndarray  # (spots, genes) float32: expression at the scaling of the panel
    table: AnnData | None = None  # the prediction table, from methods that make one

    def __post_init__(self) -> None:
        if self.mean.ndim != 2 or self.mean.shape[1] != len(self.genes):
            raise ShapeMismatch("A prediction", want=("spots", len(self.genes)), got=self.mean.shape)

    def take(self, genes: tuple[str, ...]) -> np.ndarray:
        """Return the columns of these genes, in this order."""
        column = {gene: i for i, gene in enumerate(self.genes)}
        missing = [gene for gene in genes if gene not in column]
        if missing:
            hint = "A method predicts every gene of `training.genes`."
            raise UnknownName("predicted gene", missing[0], self.genes, hint)
        return self.mean[:, [column[gene] for gene in genes]]


@dataclass(frozen=True, eq=False)
class FoldData:
    """All that a method may learn from in one fold."""

    cohort: Cohort  # the training sections, and no other
    fold: Fold  # names only
    config: Config  # of the experiment, with the seed of this task
    panel: GenePanel  # genes of the gene encoder
    sets: Mapping[str, Sequence[str]]  # HEG, HVG, all: chosen on the training sections
    features: PooledFeatures  # frozen features of any location
    cache: TokenCache | None = None
    checkpoints: Callable[[str], Checkpoints] | None = None  # where a training, by name, keeps its state
    models: dict[str, Any] = field(default_factory=dict, repr=False)  # trained in this task, by name; see `trained`
    training_head: HeadConfig | None = None  # that a training uses, where trials of a sweep share one

    def trained(self, cohort: Cohort, train: Callable[[Config, Checkpoints | None], Model]) -> Model:
        """Train, or return the model of the same training in this task: methods that differ in the head share one.

        Training reads the head of the config only to score epochs on validation data. Where trials of a sweep
        share a training, the epoch is chosen with `training_head`.

        `cohort` is `self.cohort`, or one of another name derived from it. `train` takes the config to train with and
        its checkpoints.
        """
        name = fingerprint([training_name(self.config), self.panel.to_dict(), cohort.name, list(cohort.sections)])
        if name not in self.models:
            config = self.config
            if self.training_head is not None:
                config = dataclasses.replace(config, head=self.training_head)
            self.models[name] = train(config, None if self.checkpoints is None else self.checkpoints(name))
        return self.models[name]

    @property
    def seed(self) -> int:
        """Seed of every random choice."""
        return self.config.train.seed

    @cached_property
    def genes(self) -> tuple[str, ...]:
        """Genes measured in every training section, in order of first appearance."""
        return tuple(self.sets["all"])

    @cached_property
    def expression(self) -> Sparse:
        """Expression of every training spot, sections one after another: (spots, genes), read-only."""
        everything = GenePanel(self.genes, self.panel.scaling, {"kind": "measured in all training sections"})
        found: Sparse = sparse.vstack([everything.select(section) for section in self.cohort], format="csr")
        for array in (found.data, found.indices, found.indptr):
            array.flags.writeable = False  # no method may change what the next one is given
        return found

    @cached_property
    def pooled(self) -> np.ndarray:
        """Frozen features of every training spot, rows as in `expression`: (spots, dim) float32, read-only."""
        found = np.concatenate([self.features.of(section.slide, section.spots) for section in self.cohort])
        found.flags.writeable = False
        return found

    @cached_property
    def section_of(self) -> np.ndarray:
        """Section name of every row of `expression`, read-only."""
        found = np.concatenate([np.repeat(section.name, len(section.spots)) for section in self.cohort])
        found.flags.writeable = False
        return found

    @cached_property
    def group_of(self) -> np.ndarray:
        """Group of every row that validation must keep together: its patient, or its section.

        Sections where folds hold out sections, and where there is a single training patient.
        """
        if self.config.evaluation.group_by == "section" or len(self.cohort.patients) < 2:
            return self.section_of
        patient = {name: self.cohort.patient_of(name) for name in self.cohort.sections}
        found = np.array([patient[name] for name in self.section_of])
        found.flags.writeable = False
        return found


class FittedMethod(Protocol):
    """A fitted method."""

    record: dict[str, Any]  # what it chose and how training went, JSON-able; written to `run.json` and the report

    def predict(self, location: Location) -> Prediction:
        """Predict expression at the spots of a location."""
        ...


@runtime_checkable
class Method(Protocol):
    """One row of the table.

    Optional attributes: ``diagnostic = True`` for a null that may know the test section's sequencing depth (see
    `DiagnosticLocation`); ``training``, the name of the training that it is a head on, so that methods of one training
    stay in one task.
    """

    name: str  # short, unique, usable as a file name
    about: str  # one sentence for the report: what it is, and its source

    def fit(self, training: FoldData) -> FittedMethod:
        """Learn from the training sections."""
        ...


def training_name(config: Config) -> str:
    """Fingerprint of everything in a config that changes what a training learns: all but name, about and head."""
    return fingerprint({key: value for key, value in config.to_dict().items() if key not in _NOT_TRAINING})


def location_of(section: Section, features: PooledFeatures, method: Method | None = None) -> Location:
    """Return the part of a held-out section that a method may see: one with ``diagnostic = True`` also the depth."""
    if getattr(method, "diagnostic", False) is True:
        return DiagnosticLocation(section.name, section.slide, section.spots, features, log_depth_of(section))
    return Location(section.name, section.slide, section.spots, features)


def log_depth_of(section: Section) -> np.ndarray:
    """Return ``log(1 + all counts)`` of each spot, shape (spots,), float64; 0 for a table that is none of counts."""
    if section.table_kind != "counts":
        return np.zeros(len(section.spots))
    return np.log1p(np.asarray(section.counts.sum(axis=1), np.float64).ravel())
