"""Confidence, intervals and the out-of-distribution flag of a prediction, from what the model learnt of its limits.

Everything applies to some locations at a time: a location has one scale, a gene two quantiles, and an interval is their
product around the prediction. The flag alone judges all locations of a slide together.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.config import HeadConfig
from cmrcnet.errors import BadOption, CmrcnetWarning, Incompatible
from cmrcnet.retrieval.bank import ReferenceBank
from cmrcnet.uncertainty.calibration import PredictionReliability
from cmrcnet.uncertainty.conformal import FEWEST_PATIENTS, NO_PATIENTS, bounds, nonconformity_features
from cmrcnet.uncertainty.gene_reliability import NOT_MEASURED, VALIDATION, GeneReliability

if TYPE_CHECKING:
    from anndata import AnnData

    from cmrcnet.models.trained_model import TrainedModel
    from cmrcnet.uncertainty.ood import OODDetector


@dataclass(frozen=True, eq=False)
class Confidence:
    """Confidence of locations, and intervals, for one way of predicting; see `confidence_of`."""

    reliability: PredictionReliability | None
    """None where the model has no calibration for this way of predicting."""
    model: TrainedModel
    low: np.ndarray
    """(genes,) float32: lower quantile of the genes that are predicted."""
    high: np.ndarray
    """(genes,) float32: upper quantile."""
    notes: tuple[str, ...]
    """Sentences on what the intervals are based on."""
    intervals: bool
    """Whether bounds are wanted as layers."""
    abstain: float | None
    """Confidence below which a location is marked."""

    def of_locations(
        self, similarity: np.ndarray, neighbour_std: np.ndarray, parts: Mapping[str, np.ndarray], scores: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Columns of `obs` for some locations, by name; empty without a calibration.

        Parameters
        ----------
        similarity : array, shape (locations, k)
            Cosine to each neighbour.
        neighbour_std : array, shape (locations, rank)
            Standard deviation of the neighbours' scores.
        parts, scores : mapping of arrays and array, shape (locations, rank)
            From `Head.parts` and `Head.combine`.
        """
        if self.reliability is None or self.model.head is None:
            return {}
        ensemble = self.model.head.ensemble
        features = nonconformity_features(
            similarity.mean(axis=1),
            neighbour_std * ensemble.component_weights,
            ensemble.scaled(parts),
            scores,
            self.reliability.component_power,
        )
        factor = self.reliability.nonconformity.scale(features)
        confidence = self.reliability.intervals.confidence(factor)
        found = {"confidence": confidence, "interval_scale": factor.astype(np.float32)}
        if self.abstain is not None:
            found["abstained"] = (confidence < self.abstain).astype(np.int64)
        return found

    def bounds(self, mean: np.ndarray, obs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Layers ``lower`` and ``upper`` around `mean` (locations, genes), if wanted; `obs` is from `of_locations`."""
        if not self.intervals or "interval_scale" not in obs:
            return {}
        lower, upper = bounds(mean, obs["interval_scale"], self.low, self.high, self.model.panel.scaling.limits)
        return {"lower": lower, "upper": upper}

    def annotate(self, table: AnnData) -> None:
        """Write gene reliability, and what intervals are based on, into a prediction table of these genes."""
        calibration = self.model.calibration
        if calibration is None:
            return
        table.uns["cmrcnet"]["intervals"] = " ".join(self.notes)
        if calibration.reliability is None:
            return
        write_gene_reliability(table, calibration.reliability.gene_reliability, VALIDATION)
        table.var["interval_low"], table.var["interval_high"] = self.low, self.high


def write_gene_reliability(table: AnnData, gene_reliability: GeneReliability, kind: str) -> None:
    """Write the reliability of genes into a prediction table, and `kind` where there is one (``reliability_is``)."""
    known = gene_reliability.table(list(table.var_names))
    for name in known:
        table.var[name] = known[name].to_numpy()
    table.var["reliability_is"] = np.where(np.isfinite(table.var["reliability"]), kind, NOT_MEASURED)
    table.uns["cmrcnet"]["gene_reliability"] = gene_reliability.sentence


def confidence_of(
    model: TrainedModel,
    bank: ReferenceBank,
    config: HeadConfig,
    genes: Sequence[str],
    *,
    intervals: bool = False,
    abstain: float | None = None,
    why_not: str = "",
) -> Confidence:
    """Confidence and intervals for predictions of `genes` that are made from this bank in this way.

    `why_not` says why no calibration applies to the locations, if so.

    Raises
    ------
    Incompatible
        Intervals or abstention are requested, and the model has no calibration for them: they are calibrated for the
        head, k and weighting of the model's own config only, and intervals need training sections of two patients.
    BadOption
        `abstain` is not between 0 and 1.
    """
    if abstain is not None and not 0 < abstain < 1:
        raise BadOption("abstain", abstain, want="a share between 0 and 1, such as 0.3")
    reliability, why = (None, why_not) if why_not else _calibrated_for(model, config)
    if reliability is None:
        if intervals or abstain is not None:
            raise Incompatible.lacks("calibrated intervals" if intervals else "abstention", why)
        nothing = np.full(len(genes), np.nan, np.float32)
        return Confidence(None, model, nothing, nothing, (f"No intervals: {why}.",), False, None)
    calibration = reliability.intervals
    if intervals and calibration.facts["patients"] < FEWEST_PATIENTS:
        raise Incompatible.lacks("calibrated intervals", NO_PATIENTS)
    column = {gene: number for number, gene in enumerate(reliability.gene_reliability.genes)}
    at = np.array([column.get(gene, -1) for gene in genes], np.int64)
    low, high = (np.append(values, np.float32(np.nan))[at] for values in (calibration.low, calibration.high))
    notes = [calibration.sentence]
    if set(bank.sections) != set(model.provenance.sections):
        notes.append("The bank does not hold the sections of training, for which they were calibrated.")
    return Confidence(reliability, model, low, high, tuple(notes), intervals, abstain)


def _calibrated_for(model: TrainedModel, config: HeadConfig) -> tuple[PredictionReliability | None, str]:
    """The calibration for predictions made in this way, or None and why there is none."""
    if model.calibration is None:
        return None, "the model was made without them; train it again"
    if model.calibration.reliability is None:
        return None, model.calibration.why_not
    facts = model.calibration.reliability.intervals.facts
    asked = {"head": config.kind, "k": config.k, "weighting": config.weighting}
    other = [f"{name} {value}" for name, value in asked.items() if facts[name] != value]
    if other:
        made = ", ".join(f"{name} {facts[name]}" for name in asked)
        return None, f"they were calibrated for {made}, and {', '.join(other)} was asked for"
    return model.calibration.reliability, ""


def flag_out_of_distribution(table: AnnData, detector: OODDetector, statistics: np.ndarray, slide: str) -> None:
    """Write ``obs["in_distribution"]``, ``obs["ood_distance"]`` and ``uns["cmrcnet"]["ood"]``.

    Warns of a slide that is out of distribution.

    `statistics` (locations, 9) are the image statistics of every location of the table; `slide` is its name.
    """
    inside, found = detector.flag(statistics, slide)
    table.obs["in_distribution"] = inside.astype(np.int64)
    table.obs["ood_distance"] = detector.location_distance(statistics).astype(np.float32)
    table.uns["cmrcnet"]["ood"] = {
        "raised": int(found.raised),
        "kind": found.kind,
        "sentence": found.sentence,
        "distance": found.distance,
        "limit": found.limit,
    }
    if found.raised:
        warnings.warn(found.sentence, CmrcnetWarning, stacklevel=4)
