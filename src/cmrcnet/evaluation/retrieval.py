"""CMRCNet as a method of the evaluation, and its null."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cmrcnet.errors import CmrcnetWarning
from cmrcnet.evaluation.contamination import refuse_seen
from cmrcnet.evaluation.methods import MAIN, Place, Prediction, TrainingData
from cmrcnet.evaluation.splits import Fold
from cmrcnet.fingerprint import fingerprint
from cmrcnet.tissue.section import Cohort, CohortEntry, Section

if TYPE_CHECKING:
    from cmrcnet.encoding.token_cache import TokenCache
    from cmrcnet.model.trained_model import TrainedModel
    from cmrcnet.prediction.bank import ReferenceBank

log = logging.getLogger("cmrcnet")


class TrainedCMRCNet:
    """CMRCNet, trained inside the fold; measured expression of its nearest training spots is averaged."""

    name = MAIN
    about = "CMRCNet trained on the fold's training sections; retrieval from their measured spots"

    def fit(self, training: TrainingData) -> Retrieval:
        """Train, and build the bank of the training sections."""
        return _fit(training, training.cohort)


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

    def predict(self, place: Place) -> Prediction:
        """Every gene of the bank, from the slide and the places alone."""
        from cmrcnet.prediction.predict import predict

        table = predict(self.model, self.bank, place.slide, spots=place.spots, cache=self.cache)
        return Prediction(tuple(map(str, table.var_names)), np.asarray(table.X, np.float32), table)


def permuted(cohort: Cohort, seed: int) -> Cohort:
    """The cohort with the rows of counts shuffled within each section: every spot gets another spot's expression."""

    def entry(original: CohortEntry) -> CohortEntry:
        return CohortEntry(
            original.section, original.patient, lambda: _shuffled(original.load(), seed), dict(original.facts)
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
        section.facts,
    )


def kept_reading(record: dict[str, Any]) -> dict[str, Any] | None:
    """The last row of the search, up to the epoch that was kept, on which the collapse meter was read."""
    last = record.get("chosen_epoch")
    rows = [
        row
        for row in record.get("history", ())
        if row["phase"] == "search" and "meter_guessing" in row and (last is None or row["epoch"] <= last)
    ]
    return rows[-1] if rows else None


def _fit(training: TrainingData, cohort: Cohort) -> Retrieval:
    from cmrcnet.prediction.bank import build_bank
    from cmrcnet.training.fit import fit

    model = training.trained(
        training.recipe,
        cohort,
        lambda: fit(
            cohort,
            training.recipe,
            panel=training.panel,
            cache=training.cache,
            checkpoints=training.checkpoints,
            resume=training.checkpoints is not None,
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
        "held_in": learnt["facts"].get("held_in", ""),
        "notes": learnt["notes"],
        "history": learnt["history"],
        "readout": learnt["facts"].get("readout", {}),
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
