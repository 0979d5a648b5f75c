"""CMRCNet and its heads as methods of an evaluation, without reconstruction, and as a null on permuted pairs."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from cmrcnet.errors import CmrcnetWarning
from cmrcnet.evaluation.methods.method import MAIN, FoldData, Location, Prediction
from cmrcnet.evaluation.protocol.folds import Fold, refuse_seen
from cmrcnet.slides.section import Cohort, CohortEntry, Section
from cmrcnet.storage.hashing import fingerprint

if TYPE_CHECKING:
    from cmrcnet.models.trained_model import TrainedModel
    from cmrcnet.retrieval.bank import ReferenceBank
    from cmrcnet.storage.cache import TokenCache

log = logging.getLogger("cmrcnet")

HeadName = Literal["retrieval", "ridge", "kernel"]


@dataclass(frozen=True)
class TrainedCMRCNet:
    """CMRCNet trained on the fold's training sections, with one head of the ensemble or with what the config says.

    All of them share one training in a task. A config without expression components has retrieval only.
    """

    head: HeadName | None = None
    name: str = MAIN
    about: str = "CMRCNet trained on the fold's training sections, with the head that the config says"
    training: ClassVar[str] = MAIN

    def fit(self, training: FoldData) -> FittedCMRCNet:
        """Train, and build the bank of the training sections."""
        found, head = _fit(training, training.cohort), self.head
        if head is None:
            return found
        if found.model.head is None:
            head = "retrieval"
        return replace(found, head=head, record=found.record | {"head": head})


RETRIEVAL = TrainedCMRCNet(
    "retrieval", "cmrcnet-retrieval", "the same CMRCNet, averaged over its nearest training spots"
)
RIDGE = TrainedCMRCNet("ridge", "cmrcnet-ridge", "the same config's ridge head: components on the frozen features")
KERNEL = TrainedCMRCNet("kernel", "cmrcnet-kernel", "the same config's kernel ridge head, Laplacian kernel")


class ContrastiveOnly:
    """The run's config with ``model.reconstruct: none``: contrastive training and retrieval, everything else the same.

    After BLEEP's objective and retrieval (Xie et al., NeurIPS 2023, arXiv 2306.01859), with the config's own projection
    heads, geometry, temperature, targets and head; `bleep` is closer to the original. The difference between `cmrcnet`
    and this row is the effect of the reconstruction.
    """

    name = training = "contrastive-only"
    about = "CMRCNet without reconstruction, all else as in the config (BLEEP's kind of objective and retrieval)"

    def fit(self, training: FoldData) -> FittedCMRCNet:
        """Train as `cmrcnet` does, without the reconstruction."""
        config = training.config.override({"model.reconstruct": "none"})
        return _fit(replace(training, config=config), training.cohort)


class PermutedPairs:
    """Null: the same training on pairs that are shuffled within each training section."""

    name = training = "permuted-pairs"
    about = "null: CMRCNet trained alike, the spots' expression shuffled within each training section"

    def fit(self, training: FoldData) -> FittedCMRCNet:
        """Shuffle the pairs within each section, then train and build the bank."""
        log.info("%s, fold %s: this training is expected to stay at chance", self.name, training.fold.name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CmrcnetWarning)
            return _fit(training, permuted(training.cohort, training.seed))


@dataclass(frozen=True, eq=False)
class FittedCMRCNet:
    """A trained model and its bank, both from the training sections of the fold."""

    model: TrainedModel
    bank: ReferenceBank
    cache: TokenCache | None
    record: dict[str, Any]  # fingerprints, the chosen epoch, the heads and the history of the training
    head: HeadName | None = None  # to predict with; by default the config's

    def predict(self, location: Location) -> Prediction:
        """Predict every gene of the bank from the slide and the spot positions alone."""
        from cmrcnet.inference.predict import predict

        table = predict(
            self.model, location.slide, bank=self.bank, spots=location.spots, head=self.head, cache=self.cache
        )
        return Prediction(tuple(map(str, table.var_names)), np.asarray(table.X, np.float32), table)


def permuted(cohort: Cohort, seed: int) -> Cohort:
    """Return the cohort with the rows of counts shuffled within each section."""

    def shuffled(original: CohortEntry) -> Section:
        section = original.load()
        rng = np.random.default_rng([seed, int(fingerprint(section.name)[:8], 16)])
        return replace(section, counts=section.counts[rng.permutation(len(section.spots))])

    entries = tuple(replace(original, load=partial(shuffled, original)) for original in cohort.entries)
    return Cohort(f"{cohort.name}, pairs permuted", entries)


def kept_reading(record: dict[str, Any]) -> dict[str, Any] | None:
    """Return the last history row of the search, up to the kept epoch, with a reading of the collapse meter."""
    last = record.get("chosen_epoch")
    rows = [
        row
        for row in record.get("history", ())
        if row["phase"] == "search" and "meter_at_chance" in row and (last is None or row["epoch"] <= last)
    ]
    return rows[-1] if rows else None


def _fit(training: FoldData, cohort: Cohort) -> FittedCMRCNet:
    """Train on `cohort` and build its bank, once in a task; check the provenance of both against the fold."""
    from cmrcnet.retrieval.bank import build_bank
    from cmrcnet.training.fit import fit

    def train(config, checkpoints) -> tuple[TrainedModel, ReferenceBank]:
        model = fit(
            cohort,
            config,
            panel=training.panel,
            cache=training.cache,
            checkpoints=checkpoints,
            resume=checkpoints is not None,
            calibrate=cohort is training.cohort,  # a null needs no calibration
        )
        return model, build_bank(model, cohort, cache=training.cache)

    model, bank = training.trained(cohort, train)
    config = replace(training.config, features=model.config.features)  # which state how features were extracted
    model = replace(model, config=config)
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
    return FittedCMRCNet(model, bank, training.cache, record)


def _refuse_contaminated(model: TrainedModel, bank: ReferenceBank, fold: Fold) -> None:
    """Check the provenance of both artefacts against the fold, independently of how its data were selected."""
    for artefact, seen_sections, seen_patients in (
        ("The model", model.provenance.sections, model.provenance.patients),
        ("The bank", bank.sections, (*bank.patients, *bank.patients_within)),
    ):
        refuse_seen(
            f"{artefact} of fold {fold.name}",
            seen_sections=seen_sections,
            seen_patients=seen_patients,
            sections=fold.test,
            patients=fold.test_patients if fold.patient_disjoint else (),
        )
