"""How far a prediction is to be believed: what a model learnt of its limits, applied some locations at a time.

Nothing here needs all locations and genes at once: a location has one factor, a gene two quantiles, and an interval is
their product around the prediction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.config import HeadConfig
from cmrcnet.errors import BadOption, NotAvailable
from cmrcnet.retrieval.bank import ReferenceBank
from cmrcnet.uncertainty.calibration import Reliability
from cmrcnet.uncertainty.conformal import bounds
from cmrcnet.uncertainty.gene_reliability import NOT_MEASURED, VALIDATION, GeneCards
from cmrcnet.uncertainty.nonconformity import difficulty_traits

if TYPE_CHECKING:
    from anndata import AnnData

    from cmrcnet.models.trained_model import TrainedModel


@dataclass(frozen=True, eq=False)
class Confidence:
    """Certainty of locations, and intervals, for one way of predicting; see `confidence_of`.

    Parameters
    ----------
    reliability : Reliability or None
        None where there is nothing to say.
    model : TrainedModel
    low, high : numpy.ndarray, shape (genes,), float32
        Of the genes that are predicted.
    genes : tuple of str
    notes : tuple of str
        Sentences on what the intervals rest on.
    intervals : bool
        Bounds are asked for as layers.
    abstain : float or None
    """

    reliability: Reliability | None
    model: TrainedModel
    low: np.ndarray
    high: np.ndarray
    genes: tuple[str, ...]
    notes: tuple[str, ...]
    intervals: bool
    abstain: float | None

    def of_locations(
        self, similarity: np.ndarray, spread: np.ndarray, parts: Mapping[str, np.ndarray], scores: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Columns of `obs` for some locations, by name; empty where there is nothing to say.

        Parameters
        ----------
        similarity : array, shape (locations, k)
            Cosine to each neighbour.
        spread : array, shape (locations, rank)
            Deviation of the neighbours' scores.
        parts : mapping of str to array, shape (locations, rank)
            From `Head.parts`.
        scores : array, shape (locations, rank)
            From `Head.combine`.
        """
        if self.reliability is None:
            return {}
        ensemble = self.model.head.ensemble
        traits = difficulty_traits(
            similarity.mean(axis=1),
            spread * ensemble.component_weights,
            ensemble.scaled(parts),
            scores,
            self.reliability.power,
        )
        factor = self.reliability.difficulty.factor(traits)
        confidence = self.reliability.calibration.confidence(factor)
        found = {"confidence": confidence, "interval_scale": factor.astype(np.float32)}
        if self.abstain is not None:
            found["abstained"] = (confidence < self.abstain).astype(np.int64)
        return found

    def layers(self, mean: np.ndarray, obs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Layers ``lower`` and ``upper`` of some locations, where they were asked for.

        Parameters
        ----------
        mean : array, shape (locations, genes)
        obs : mapping
            What `of_locations` gave for these locations.
        """
        if not self.intervals or "interval_scale" not in obs:
            return {}
        lower, upper = bounds(mean, obs["interval_scale"], self.low, self.high)
        return {"lower": lower, "upper": upper}

    def annotate(self, table: AnnData) -> None:
        """Write the gene cards and what they rest on into a prediction table of these genes."""
        trust = self.model.trust
        if trust is None:
            return
        told = table.uns["cmrcnet"]
        told["intervals"] = " ".join(self.notes)
        if trust.reliability is None:
            return
        write_cards(table, trust.reliability.cards, VALIDATION)
        table.var["interval_low"], table.var["interval_high"] = self.low, self.high


def write_cards(table: AnnData, cards: GeneCards, kind: str) -> None:
    """Write gene cards, and what they rest on, into a prediction table.

    Parameters
    ----------
    table : AnnData
    cards : GeneCards
    kind : str
        What ``var["reliability_is"]`` says of the genes that have one.
    """
    known = cards.table(list(table.var_names))
    for name in known:
        table.var[name] = known[name].to_numpy()
    table.var["reliability_is"] = np.where(np.isfinite(table.var["reliability"]), kind, NOT_MEASURED)
    table.uns["cmrcnet"]["gene_reliability"] = cards.sentence


def confidence_of(
    model: TrainedModel,
    bank: ReferenceBank,
    config: HeadConfig,
    genes: Sequence[str],
    *,
    intervals: bool = False,
    abstain: float | None = None,
) -> Confidence:
    """What the model can say of predictions that are read from this bank in this way.

    Parameters
    ----------
    model : TrainedModel
    bank : ReferenceBank
    config : HeadConfig
        How the prediction is read out; intervals were calibrated for the config's own way only.
    genes : sequence of str
        That are predicted.
    intervals : bool
        Layers with the bounds are wanted.
    abstain : float, optional
        Mark locations that are less certain than this share of validation spots.

    Raises
    ------
    NotAvailable
        Intervals or translate_os_errors are asked for and there is nothing that they could rest on.
    BadOption
    """
    if abstain is not None and not 0 < abstain < 1:
        raise BadOption("abstain", abstain, want="a share between 0 and 1, such as 0.3")
    nothing = np.full(len(genes), np.nan, np.float32)
    why = _why_not(model, config)
    if why:
        if intervals or abstain is not None:
            raise NotAvailable("calibrated intervals" if intervals else "abstention", why)
        return Confidence(None, model, nothing, nothing, tuple(genes), (f"No intervals: {why}.",), False, None)
    reliability = model.trust.reliability
    calibration = reliability.calibration
    place = {gene: number for number, gene in enumerate(reliability.cards.genes)}
    at = np.array([place.get(gene, -1) for gene in genes], np.int64)
    low, high = (np.append(values, np.float32(np.nan))[at] for values in (calibration.low, calibration.high))
    notes = [calibration.sentence]
    if set(bank.sections) != set(model.provenance.sections):
        notes.append("The bank does not hold the sections of training, for which they were calibrated.")
    return Confidence(reliability, model, low, high, tuple(genes), tuple(notes), intervals, abstain)


def _why_not(model: TrainedModel, config: HeadConfig) -> str:
    """Why nothing can be said of predictions that are read out so; "" where it can."""
    if model.trust is None:
        return "the model was made without them; train it again"
    if model.trust.reliability is None:
        return model.trust.why_not
    facts = model.trust.reliability.calibration.facts
    asked = {"head": config.kind, "k": config.k, "weighting": config.weighting}
    other = [f"{name} {value}" for name, value in asked.items() if facts[name] != value]
    if other:
        made = ", ".join(f"{name} {facts[name]}" for name in asked)
        return f"they were calibrated for {made}, and {', '.join(other)} was asked for"
    return ""
