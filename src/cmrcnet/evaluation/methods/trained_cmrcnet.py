"""CMRCNet as a method of the evaluation, and its null."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cmrcnet.errors import CmrcnetWarning
from cmrcnet.evaluation.methods.method import MAIN, Location, Prediction, TrainingData
from cmrcnet.evaluation.protocol.contamination import refuse_seen
from cmrcnet.evaluation.protocol.folds import Fold
from cmrcnet.slides.section import Cohort, CohortEntry, Section
from cmrcnet.storage.hashing import fingerprint

if TYPE_CHECKING:
    from cmrcnet.models.trained_model import TrainedModel
    from cmrcnet.retrieval.bank import ReferenceBank
    from cmrcnet.storage.cache import TokenCache

log = logging.getLogger("cmrcnet")


class TrainedCMRCNet:
    """CMRCNet, trained inside the fold and read out as the config says."""

    name = MAIN
    about = "CMRCNet trained on the fold's training sections, read out as the config says"

    def fit(self, training: TrainingData) -> Retrieval:
        """Train, and build the bank of the training sections."""
        return _fit_once(training)


class OneHead:
    """The same trained CMRCNet, read out in one way: what each part of a ensemble reaches by itself.

    Parameters
    ----------
    kind : {"retrieval", "ridge", "kernel"}
    """

    def __init__(self, kind: str, name: str, about: str) -> None:
        self.kind, self.name, self.about = kind, name, about

    def fit(self, training: TrainingData) -> Retrieval:
        """Train, unless `cmrcnet` has just been trained on the same sections, and read out otherwise.

        A config without expression components has retrieval only, whatever is asked for.
        """
        found = _fit_once(training)
        kind = self.kind if found.model.head is not None else "retrieval"
        return replace(found, kind=kind, record=found.record | {"head": kind})


def cmrcnet_retrieval() -> OneHead:
    """CMRCNet's own way: the average over the nearest measured spots."""
    return OneHead("retrieval", "cmrcnet-retrieval", "the same CMRCNet, averaged over its nearest training spots")


def cmrcnet_ridge() -> OneHead:
    """Ridge regression of the expression components on the config's features."""
    return OneHead("ridge", "cmrcnet-ridge", "the same config's ridge head: components on the frozen features")


def cmrcnet_kernel() -> OneHead:
    """Kernel ridge regression of the expression components on the config's features."""
    return OneHead("kernel", "cmrcnet-kernel", "the same config's kernel ridge head, Laplacian kernel")


class PermutedPairs:
    """The same training, with the pairs of each training section shuffled: what is left is no knowledge of tissue."""

    name = "permuted-pairs"
    about = "null: CMRCNet trained alike, the spots' expression shuffled within each training section"

    def fit(self, training: TrainingData) -> Retrieval:
        """Shuffle the pairs within each section, then train and build the bank as ever."""
        log.info("%s, fold %s: this training is meant to guess only", self.name, training.fold.name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CmrcnetWarning)
            return _fit(training, permuted(training.cohort, training.seed))


@dataclass(frozen=True, eq=False)
class Retrieval:
    """A trained model and its bank."""

    model: TrainedModel
    bank: ReferenceBank
    cache: TokenCache | None
    record: dict[str, Any]
    kind: str | None = None

    def predict(self, place: Location) -> Prediction:
        """Every gene of the bank, from the slide and the locations alone."""
        from cmrcnet.inference.predict import predict

        table = predict(self.model, place.slide, bank=self.bank, spots=place.spots, head=self.kind, cache=self.cache)
        return Prediction(tuple(map(str, table.var_names)), np.asarray(table.X, np.float32), table)


def permuted(cohort: Cohort, seed: int) -> Cohort:
    """The cohort with the rows of counts shuffled within each section: every spot gets another spot's expression."""

    def entry(original: CohortEntry) -> CohortEntry:
        return CohortEntry(
            original.section, original.patient, lambda: _shuffled(original.load(), seed), dict(original.metadata)
        )

    return Cohort(f"{cohort.name}, pairs permuted", tuple(entry(original) for original in cohort.entries))


def _shuffled(section: Section, seed: int) -> Section:
    rng = np.random.default_rng([seed, int(fingerprint(section.name)[:8], 16)])
    rows = rng.permutation(len(section.spots))
    return Section(
        section.name,
        section.patient,
        section.slide,
        section.spots,
        section.counts[rows],
        section.genes,
        section.absent_genes,
        section.notes,
        section.metadata,
    )


def kept_reading(record: dict[str, Any]) -> dict[str, Any] | None:
    """The last row of the search, up to the epoch that was kept, on which the collapse meter was read."""
    last = record.get("chosen_epoch")
    rows = [
        row
        for row in record.get("history", ())
        if row["phase"] == "search" and "meter_at_chance" in row and (last is None or row["epoch"] <= last)
    ]
    return rows[-1] if rows else None


_last: list[tuple[Cohort, str, Retrieval]] = []
"""The last training of this process: rows that differ in the head alone do not train again."""


def _fit_once(training: TrainingData) -> Retrieval:
    plain = training.config.override({"head.kind": "retrieval"}).to_dict()
    name = fingerprint([plain, training.panel.to_dict()])
    if _last and _last[0][0] is training.cohort and _last[0][1] == name and training.shelf is None:
        return replace(_last[0][2], kind=training.config.head.kind if _last[0][2].model.head else None)
    found = _fit(training, training.cohort)
    _last[:] = [(training.cohort, name, found)]
    return found


def _fit(training: TrainingData, cohort: Cohort) -> Retrieval:
    from cmrcnet.retrieval.bank import build_bank
    from cmrcnet.training.fit import fit

    model = training.trained(
        training.config,
        cohort,
        lambda: fit(
            cohort,
            training.config,
            panel=training.panel,
            cache=training.cache,
            checkpoints=training.checkpoints,
            resume=training.checkpoints is not None,
            calibrate=cohort is training.cohort,  # a null needs no account of its limits
        ),
    )
    bank = build_bank(model, cohort, cache=training.cache)
    _refuse_contaminated(model, bank, training.fold)
    learnt = model.provenance.to_dict()
    record = {
        "model": model.fingerprint,
        "bank": bank.fingerprint,
        "panel": fingerprint(model.panel.to_dict()),
        "bank_spots": len(bank),
        "chosen_epoch": learnt["chosen_epoch"],
        "validation": learnt["facts"].get("validation", ""),
        "head": learnt["facts"].get("head", {}),
        "notes": learnt["notes"],
        "history": learnt["history"],
    }
    return Retrieval(model, bank, training.cache, record)


def _refuse_contaminated(model: TrainedModel, bank: ReferenceBank, fold: Fold) -> None:
    """Hold the artefacts' own provenance against the fold: a second lock on the same door."""
    patients = fold.test_patients if fold.patient_disjoint else ()
    for artefact, seen_sections, seen_patients in (
        ("The model", model.provenance.sections, model.provenance.patients),
        ("The bank", bank.sections, bank.patients),
    ):
        refuse_seen(
            f"{artefact} of fold {fold.name}",
            seen_sections=seen_sections,
            seen_patients=seen_patients,
            sections=fold.test,
            patients=patients,
        )
