"""Predictors: what a model with its bank, or a distilled student, predicts from the features of locations.

A `Predictor` holds everything that does not depend on the slide: genes, head, calibration. It is made, and every option
checked, before any slide is read; `inference.predict` runs it over a slide. The file is one thing: everything between
features of locations and their predicted expression.
"""

from __future__ import annotations

import dataclasses
import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from cmrcnet.config import HeadConfig
from cmrcnet.errors import BadOption, TooFew, UnknownName
from cmrcnet.features.spec import READ
from cmrcnet.genes.naming import explain_no_shared_genes
from cmrcnet.genes.scaling import Scaling
from cmrcnet.genes.table import CONTENTS, STUDENT
from cmrcnet.heads.head import PARTS, RETRIEVAL
from cmrcnet.inference.confidence import confidence_of, write_gene_reliability
from cmrcnet.inference.location_features import LocationEncoder, split_features
from cmrcnet.models.artefact import join_licences
from cmrcnet.models.student import Student
from cmrcnet.models.trained_model import TrainedModel
from cmrcnet.readers.patch_files import FeatureSlide
from cmrcnet.retrieval.bank import ReferenceBank
from cmrcnet.search.aggregate import average, neighbour_weights
from cmrcnet.search.exact import Neighbours

if TYPE_CHECKING:
    from anndata import AnnData

    from cmrcnet.slides.section import Spots
    from cmrcnet.slides.slide import Slide
    from cmrcnet.slides.tissue import TissueMask
    from cmrcnet.uncertainty.calibration import Calibration
    from cmrcnet.uncertainty.ood import OODDetector

BANK_OPTIONS = ("k", "weighting", "head", "intervals", "abstain", "window_um")
"""Options that a student does not have."""


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What to predict, where and how. Parameters as `predict`.

    Examples
    --------
    >>> from cmrcnet.inference.predictor import PredictOptions
    >>> PredictOptions(grid_um=50, k=20).genes is None
    True
    """

    spots: Spots | None = None
    mask: TissueMask | None = None
    genes: Sequence[str] | None = None
    k: int | None = None
    weighting: Literal["mean", "similarity"] | None = None
    head: Literal["retrieval", "ridge", "kernel", "ensemble"] | None = None
    grid_um: float = 100.0
    window_um: float | None = None
    intervals: bool = False
    abstain: float | None = None
    content: Literal["all", "expression", "components"] = "all"
    half: bool = False


@dataclass(frozen=True, eq=False)
class PredictionChunk:
    """Predictions of consecutive locations; layers, obs and obsm go into the table under their names."""

    mean: np.ndarray | None
    """(locations, genes) float32; NaN where there is no prediction: no neighbour's section measured the gene. None
    where components stand for it, in obsm."""
    layers: dict[str, np.ndarray] = field(default_factory=dict)
    obs: dict[str, np.ndarray] = field(default_factory=dict)
    obsm: dict[str, np.ndarray] = field(default_factory=dict)


class Predictor(ABC):
    """Predicts genes from features of locations; see `make_predictor`."""

    options: PredictOptions
    genes: list[str]
    """The genes to predict, in the requested order."""
    columns: np.ndarray
    """(genes,) int: their columns among all genes that the bank or the student has."""
    encoder: LocationEncoder
    """Makes the features of locations."""
    calibration: Calibration | None
    """What the model knows of its limits."""
    scaling: Scaling
    """Of the predicted values."""
    bytes_per_location: int
    """Approximate size of a location in the table."""
    decoder: tuple[np.ndarray, np.ndarray] | None = None
    """Level (genes,) and directions (rank, genes), where components stand for expression."""

    @property
    def columns_kept(self) -> int:
        """Numbers of a location in the largest array of the table."""
        return len(self.genes) if self.decoder is None else len(self.decoder[1])

    @property
    def ood_detector(self) -> OODDetector | None:
        """The out-of-distribution detector of the model, where it has one."""
        return None if self.calibration is None else self.calibration.ood_detector

    def locations(self, slide: Slide) -> Spots | None:
        """The locations asked for; else the patches whose features come with the slide; else None, for a grid.

        Raises
        ------
        BadOption
            The slide comes with features, and this model encodes slides itself.
        """
        if isinstance(slide, FeatureSlide):
            if self.encoder.spec.engine != READ:
                want = f"nothing with this model, which encodes slides itself with {self.encoder.encoder.config.name}"
                raise BadOption("features", str(slide.patches.path), want)
            if self.options.spots is None:
                return slide.patches.spots(slide)
        return self.options.spots

    @abstractmethod
    def predict_chunk(self, features: np.ndarray) -> PredictionChunk:
        """Predict some locations from the features (locations, width) that this predictor's `encoder` makes."""

    @abstractmethod
    def annotate(self, table: AnnData, neighbour_rows: np.ndarray) -> None:
        """Add what describes the whole table: gene reliability, and where the neighbours come from.

        X and layers of the table are not used; `neighbour_rows` are the rows of the bank that are a neighbour of any
        location, each once.
        """

    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """What the table stores about where its predictions come from."""

    def identity(self) -> dict[str, Any]:
        """The part of `provenance` by which a table of the same model and options is recognised."""
        keys = ("model_fingerprint", "bank_fingerprint", STUDENT, "k", "weighting", "head", "with_intervals", "abstain")
        keys = (*keys, "window_um", "content", "values")
        return {key: value for key, value in self.provenance().items() if key in keys}


class BankPredictor(Predictor):
    """Predicts from a model and its reference bank.

    Each location's embedding is searched in the bank; the measured expression of its neighbours is averaged and, by a
    model that works on expression components, combined with its ridge and kernel heads.

    Raises
    ------
    Incompatible
        Another model made the bank, or intervals or abstention are requested and the model has nothing to calibrate
        them on.
    UnknownName, TooFew
        A gene that the bank does not have; an empty list of genes.
    BadOption
        k is above the number of spots; a head that the model does not have; an unknown weighting; a window that the
        model was not trained for.
    """

    def __init__(self, model: TrainedModel, bank: ReferenceBank, options: PredictOptions) -> None:
        self.encoder, self.calibration = LocationEncoder.of_model(model), model.calibration
        self.scaling = bank.scaling
        config, why_not = head_config(model, options), ""
        if options.window_um is not None:
            spec = self.encoder.spec
            if spec.sub_windows_in(options.window_um) < spec.sub_windows:
                why_not = f"they are calibrated for whole spots, and windows of {options.window_um:g} um were asked for"
                config = config if options.head is not None else dataclasses.replace(config, kind="ridge")
        bank.require_model(model)
        self._index = bank.searcher()  # opened now, so that later edits of the bank's folder do not matter
        if options.k is not None and not 1 <= options.k <= len(bank):
            raise BadOption("k", options.k, want=f"1 to {len(bank)}, the number of spots in {bank.name}")
        self.model, self.bank, self.options = model, bank, options
        self.columns = gene_columns(options.genes, bank.genes)
        self.genes = [bank.genes[column] for column in self.columns]
        how = {"intervals": options.intervals, "abstain": options.abstain, "why_not": why_not}
        self.confidence = confidence_of(model, bank, config, self.genes, **how)
        self.config = config.within(len(bank))
        self.parts = PARTS if config.kind == "ensemble" or self.confidence.reliability is not None else (config.kind,)
        self.searches = options.content == "all" or RETRIEVAL in self.parts
        if not self.searches:
            self.encoder = LocationEncoder.of_model(model, searches=False)
        if options.content == "components":
            if model.head is None or bank.gene_decoder is None:
                want = "all or expression: this model averages measured genes, and has no components"
                raise BadOption("content", options.content, want)
            if options.intervals:
                want = (
                    "all or expression, with intervals; with components, interval_scale in obs times interval_low and "
                )
                raise BadOption("content", options.content, want + "interval_high in var are the interval")
            how = {"covariance": model.head.ensemble.covariance, "variance_rescaling": config.variance_rescaling}
            self.decoder = bank.gene_decoder.level[self.columns], bank.gene_decoder.directions(self.columns, **how)
        layers = {"all": 2, "expression": 1, "components": 0}[options.content] + 2 * self.confidence.intervals
        self.bytes_per_location = (2 if options.half else 4) * layers * len(self.columns)
        self.bytes_per_location += 16 * self.config.k if options.content == "all" else 4 * self.columns_kept

    def predict_chunk(self, features: np.ndarray) -> PredictionChunk:
        """Search the bank for some locations, and average or combine; what the table does not hold is not computed."""
        bank, config, head, options = self.bank, self.config, self.model.head, self.options
        neighbours, reduced = None, features
        if self.searches:
            queries, reduced = split_features(features, self.model)
            neighbours = self._index.nearest(queries, config.k)
        mean = neighbour_std = None
        obs: dict[str, np.ndarray] = {}
        obsm: dict[str, np.ndarray] = {}
        if neighbours is not None and (options.content == "all" or head is None):
            spread = options.content == "all"
            mean, neighbour_std = average_expression(neighbours, bank, config, self.columns, with_std=spread)
        if head is not None and reduced is not None and bank.scores is not None and bank.gene_decoder is not None:
            scores, varied, parts = component_scores(self.model, bank, config, neighbours, reduced, self.parts)
            if neighbours is not None and varied is not None:
                obs = self.confidence.of_locations(neighbours.similarity, varied, parts, scores)
            if options.content == "components":
                obsm["components"] = scores
            else:
                unmeasured = np.isnan(mean) if mean is not None else self._unmeasured(neighbours)
                how = {"covariance": head.ensemble.covariance, "variance_rescaling": config.variance_rescaling}
                how |= {"limits": bank.scaling.limits}
                mean = bank.gene_decoder.expression(scores, self.columns, **how)
                if unmeasured is not None:
                    mean[unmeasured] = np.nan
        layers = {} if mean is None else self.confidence.bounds(mean, obs)
        if neighbours is not None:
            obs["similarity"] = neighbours.similarity.mean(axis=1)
        if neighbours is not None and neighbour_std is not None:
            layers = {"neighbour_std": neighbour_std} | layers
            weights, patient_weights = attribution_weights(neighbours, bank, config)
            obsm |= {
                "neighbour_ids": neighbours.ids.astype(np.int64, copy=False),
                "neighbour_similarity": neighbours.similarity,
                "neighbour_weight": weights,
                "patient_weights": patient_weights,
            }
        return PredictionChunk(mean, layers, obs, obsm)

    def _unmeasured(self, neighbours: Neighbours | None) -> np.ndarray | None:
        """Which genes no neighbour's section measured, (locations, genes) bool; None if unknown or none at all."""
        measured = self.bank.measured[:, self.columns]
        if neighbours is None or measured.all():
            return None
        sections = np.zeros((len(neighbours.ids), len(measured)), np.float32)
        np.put_along_axis(sections, self.bank.section_of_spot[neighbours.ids], 1.0, axis=1)
        return sections @ measured == 0

    def annotate(self, table: AnnData, neighbour_rows: np.ndarray) -> None:
        """Add the origin of the neighbours and the gene reliability."""
        if self.options.content != "all":
            self.confidence.annotate(table)
            return
        origin = self.bank.spots.iloc[neighbour_rows].astype({"section": object, "patient": object, "barcode": object})
        origin.index = neighbour_rows.astype(str).astype(object)  # AnnData stores text indices only
        table.uns["cmrcnet"]["neighbour_spots"] = origin
        self.confidence.annotate(table)

    def provenance(self) -> dict[str, Any]:
        """Fingerprints of model and bank, the bank's sections and patients, and how the prediction was made."""
        model, bank, config = self.model, self.bank, self.config
        shares = {config.kind: 1.0}
        if config.kind == "ensemble" and model.head is not None:
            shares = {name: round(float(share), 4) for name, share in model.head.ensemble.weights.items()}
        return {
            "model_fingerprint": model.fingerprint,
            "bank_fingerprint": bank.fingerprint,
            "bank_sections": list(bank.sections),
            "bank_patients": list(bank.patients),
            "sections_seen": list(model.provenance.sections),
            "patients_seen": list(dict.fromkeys((*model.provenance.patients, *bank.patients_within))),
            "config": model.config.name,
            "scaling": bank.scaling.to_dict(),
            "patch_px": model.config.patch.size_px,
            "patch_mpp": model.config.patch.mpp,
            "window_um": self.encoder.spec.side_um if self.options.window_um is None else self.options.window_um,
            "k": config.k,
            "weighting": config.weighting,
            "temperature": config.temperature,
            "head": config.kind,
            "head_weights": shares,
            "features_made_by": self.encoder.spec.made_by,
            "model_features_made_by": model.provenance.facts.get("features_made_by", "not known"),
            "licences": {
                **model.provenance.facts.get("licences", {}),
                "slides of the bank": join_licences(entry.licence for entry in bank.entries),
            },
            "content": self.options.content,
            "values": "float16" if self.options.half else "float32",
            "with_intervals": int(self.confidence.intervals),
            "abstain": self.confidence.abstain or 0.0,
        }


class StudentPredictor(Predictor):
    """Predicts by a distilled student: no bank, no neighbours, no intervals.

    Raises
    ------
    UnknownName, TooFew
        A gene that the student does not have; an empty list of genes.
    BadOption
        An option of a bank.
    """

    def __init__(self, student: Student, options: PredictOptions) -> None:
        for name in BANK_OPTIONS:
            value = getattr(options, name)
            if value not in (None, False):
                raise BadOption(name, value, want="nothing with a student, which has no bank")
        self.student, self.options = student, options
        self.columns = gene_columns(options.genes, student.genes)
        self.genes = [student.genes[column] for column in self.columns]
        self.encoder = LocationEncoder.of_student(student.encoder, student.config)
        self.calibration, self.scaling = student.calibration, student.scaling
        if options.content == "components":
            self.decoder = student.basis.level[self.columns], student.basis.directions[:, self.columns]
        self.bytes_per_location = (2 if options.half else 4) * self.columns_kept

    def predict_chunk(self, features: np.ndarray) -> PredictionChunk:
        """Apply the student's head to some locations."""
        if self.decoder is not None:
            return PredictionChunk(None, obsm={"components": self.student.scores(features)})
        return PredictionChunk(self.student.predict(features, self.columns))

    def annotate(self, table: AnnData, neighbour_rows: np.ndarray) -> None:
        """Add the teacher's gene reliability; there are no neighbours."""
        table.uns["cmrcnet"]["intervals"] = "No intervals: they were calibrated for the teacher, not for its student."
        if self.calibration is not None and self.calibration.reliability is not None:
            known = self.calibration.reliability.gene_reliability
            write_gene_reliability(table, known, "validation Pearson of the teacher")

    def provenance(self) -> dict[str, Any]:
        """Fingerprints of the student and its teacher, and every section and patient that either has seen."""
        student, taught = self.student, self.student.lineage
        return {
            STUDENT: student.fingerprint,
            "model_fingerprint": taught.model_fingerprint,
            "bank_fingerprint": taught.bank_fingerprint,
            "bank_sections": list(taught.bank_sections),
            "bank_patients": list(taught.bank_patients),
            "sections_seen": list(taught.sections),
            "patients_seen": list(taught.patients),
            "config": student.config.name,
            "scaling": student.scaling.to_dict(),
            "licences": dict(taught.facts.get("licences", {})),
            "content": self.options.content,
            "values": "float16" if self.options.half else "float32",
            "features_made_by": self.encoder.spec.made_by,
            "patch_px": student.config.patch.size_px,
            "patch_mpp": student.config.patch.mpp,
            "window_um": self.encoder.spec.side_um,
        }


def make_predictor(model: TrainedModel | Student, bank: ReferenceBank | None, options: PredictOptions) -> Predictor:
    """Make the predictor of a model with its bank, or of a student, which has none; else `BadOption` is raised."""
    if options.content not in CONTENTS:
        raise BadOption("content", options.content, want=f"one of {', '.join(CONTENTS)}")
    if options.half and options.content == "components":
        raise BadOption("half", options.half, want="False with components, which are kept as float32")
    if isinstance(model, Student):
        if bank is not None:
            raise BadOption("bank", bank.name, want="nothing with a student, which has no bank")
        return StudentPredictor(model, options)
    if bank is None:
        raise BadOption("bank", None, want="the reference bank made with this model; only a student needs none")
    return BankPredictor(model, bank, options)


def head_config(model: TrainedModel, options: PredictOptions) -> HeadConfig:
    """The head of the model's config, with the given options in its place."""
    if options.weighting not in (None, "mean", "similarity"):
        raise BadOption("weighting", options.weighting, want="mean or similarity")
    if options.head not in (None, "retrieval") and model.head is None:
        raise BadOption("head", options.head, want="retrieval: this model does not work on expression components")
    if options.head not in (None, "retrieval", "ridge", "kernel", "ensemble"):
        raise BadOption("head", options.head, want="retrieval, ridge, kernel or ensemble")
    given = {"kind": options.head, "k": options.k, "weighting": options.weighting}
    return dataclasses.replace(model.config.head, **{name: value for name, value in given.items() if value is not None})


def gene_columns(wanted: Sequence[str] | None, known: Sequence[str]) -> np.ndarray:
    """Columns of the genes `wanted` among those `known`, in that order and each once; of all genes for None.

    Raises
    ------
    TooFew
        An empty list.
    UnknownName
        A gene that is not known; with the reason, where none of the genes is.
    """
    if wanted is None:
        return np.arange(len(known))
    genes = list(dict.fromkeys([wanted] if isinstance(wanted, str) else wanted))
    if not genes:
        raise TooFew("genes to predict", 0, 1, "name some, or leave them out for all that the bank measured")
    column = {gene: number for number, gene in enumerate(known)}
    unknown = [gene for gene in genes if gene not in column]
    if unknown:
        same = [gene for gene in known if gene.upper() == unknown[0].upper()]
        alike = same or difflib.get_close_matches(unknown[0], known, n=5) or list(known[:5])
        hint = explain_no_shared_genes(genes, known) if len(unknown) == len(genes) else ""
        named = unknown[0] if len(unknown) == 1 else f"{', '.join(unknown[:5])}{', ...' * (len(unknown) > 5)}"
        several = f"{len(unknown)} of the {len(genes)} genes asked for are not there. " if len(unknown) > 1 else ""
        raise UnknownName("gene in the bank", named, alike, f"{several}{hint}".strip())
    return np.array([column[gene] for gene in genes])


def component_scores(
    model: TrainedModel,
    bank: ReferenceBank,
    config: HeadConfig,
    neighbours: Neighbours | None,
    reduced: np.ndarray,
    names: Sequence[str] = PARTS,
) -> tuple[np.ndarray, np.ndarray | None, dict[str, np.ndarray]]:
    """Predict expression component scores of some locations, by a model that works on components.

    `neighbours` are rows of the bank, whose spots have scores, or None where `names`, the parts that are computed, do
    without retrieval; `reduced` (locations, components) is from `split_features`.

    Returns
    -------
    scores : numpy.ndarray, shape (locations, rank), float32
    neighbour_std : numpy.ndarray, shape (locations, rank), float32
        Standard deviation of the neighbours' scores; None without them.
    parts : dict of array, shape (locations, rank)
        Prediction of each head alone.
    """
    how = {"weighting": config.weighting, "temperature": config.temperature}
    assert model.head is not None and bank.scores is not None
    retrieved, neighbour_std = (None, None) if neighbours is None else average(neighbours, bank.scores, **how)
    parts = model.head.parts(reduced, retrieved, names)
    return model.head.combine(parts, config.kind), neighbour_std, parts


def average_expression(
    neighbours: Neighbours,
    bank: ReferenceBank,
    config: HeadConfig,
    columns: np.ndarray | None = None,
    *,
    with_std: bool = True,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Average the neighbours' measured expression, by the weighting and temperature of `config`.

    Returns mean and standard deviation (queries, columns) float32 of these columns of the bank, in this order, or of
    all; NaN where no neighbour's section measured the gene. The deviation is None without `with_std`.
    """
    return average(
        neighbours,
        bank.expression,
        columns=columns,
        weighting=config.weighting,
        temperature=config.temperature,
        section_of_spot=bank.section_of_spot,
        measured=bank.measured,
        with_std=with_std,
        row_sums=embedding_bag_sums,
    )


def embedding_bag_sums(ids: np.ndarray, weights: np.ndarray, bank: int) -> Callable[[np.ndarray], np.ndarray]:
    """Sum rows by torch's embedding bag: on a CPU the fastest of those that `benchmarks/retrieval.py` compares.

    `ids` and `weights` are (queries, k); `bank` is the number of rows of every dense block.
    """
    rows, weight = torch.from_numpy(np.ascontiguousarray(ids)), torch.from_numpy(weights)
    return lambda block: embedding_bag(rows, torch.from_numpy(block), mode="sum", per_sample_weights=weight).numpy()


def attribution_weights(
    neighbours: Neighbours, bank: ReferenceBank, config: HeadConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Neighbour weights and per-patient weight totals of some locations.

    Returns
    -------
    weights : numpy.ndarray, shape (locations, k), float32
        Of each neighbour, summing to 1: ``obsm["neighbour_weight"]``.
    patient_weights : numpy.ndarray, shape (locations, patients), float32
        Sum of the weights per patient, in the order of `bank.patients`: ``obsm["patient_weights"]``.
    """
    weights = neighbour_weights(neighbours, config.weighting, config.temperature)
    row_of = {patient: row for row, patient in enumerate(bank.patients)}
    patient = np.array([row_of[entry.patient] for entry in bank.entries])[bank.section_of_spot[neighbours.ids]]
    slot = np.arange(len(patient))[:, None] * len(row_of) + patient
    totals = np.bincount(slot.ravel(), weights.ravel(), minlength=len(patient) * len(row_of))
    return weights, totals.reshape(len(patient), len(row_of)).astype(np.float32)
