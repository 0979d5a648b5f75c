"""An evaluation whose methods know the truth and blur it: real scores, folds and tables, and nothing to train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cmrcnet.config import Config
from cmrcnet.datasets.synthetic import synthetic_cohort
from cmrcnet.evaluation.methods.method import FoldData, Location, Prediction
from cmrcnet.evaluation.metrics.scoring import truth_of
from cmrcnet.evaluation.protocol.evaluate import EvaluationRun, evaluate
from cmrcnet.genes.table import prediction_table
from cmrcnet.slides.section import Cohort

SHARES = {"cmrcnet": 0.6, "ridge": 0.5, "permuted-pairs": 0.02}
"""How much of each method's prediction is truth; the rest is noise."""


@dataclass(frozen=True, eq=False)
class Blurred:
    """Truth and noise. `predict` reaches for the counts, which no real method can."""

    name: str
    about: str
    cohort: Cohort

    def fit(self, training: FoldData) -> BlurredPredictor:
        return BlurredPredictor(self, tuple(training.genes), record_of(self.name, training.fold.name))


@dataclass(frozen=True, eq=False)
class BlurredPredictor:
    method: Blurred
    genes: tuple[str, ...]
    record: dict[str, Any]

    def predict(self, location: Location) -> Prediction:
        genes, truth = truth_of(self.method.cohort.read(location.section), self.genes)
        share = SHARES[self.method.name] * np.linspace(1, 0.2, len(genes))
        noise = np.random.default_rng(len(self.method.name)).normal(1.0, 0.6, truth.shape)
        mean = (share * truth.toarray() + (1 - share) * noise).astype(np.float32)
        if self.method.name != "cmrcnet":
            return Prediction(genes, mean)
        table = prediction_table(
            mean, np.zeros_like(mean), genes=genes, spots=location.spots, slide=location.slide, neighbours=None,
            provenance={},
        )  # fmt: skip
        return Prediction(genes, mean, table)


def record_of(method: str, fold: str) -> dict[str, Any]:
    """What a training, and the heads after it, leave behind."""
    if method == "ridge":
        return {"penalty": 100.0}
    guessing = method == "permuted-pairs"
    rows = [
        {
            "phase": "search", "epoch": epoch, "loss_over_ln_batch": 1.0 if guessing else 1 - 0.1 * epoch,
            "validation_pearson": 0.0 if guessing else 0.1 * epoch,
            "meter_recall_at_k": 0.1 if guessing else 0.1 + 0.1 * epoch,
            "meter_chance": 0.1, "meter_k": 5, "meter_loss_over_ln_batch": 0.9, "meter_effective_rank": 7.0,
            "meter_at_chance": guessing, "meter_where": "validation spots",
        }
        for epoch in (1, 2, 3)
    ]  # fmt: skip
    record = {"chosen_epoch": 3, "validation": "validation spots", "history": rows}
    if not guessing:
        record["head"] = {
            "validation_pearson": {"retrieval": 0.301, "ridge": 0.302, "kernel": 0.303, "ensemble": 0.304},
            "weights": {"retrieval": 0.41, "ridge": 0.25, "kernel": 0.34},
            "ridge_penalty": 316.0, "kernel_width": 2.0, "kernel_penalty": 0.1, "epoch": 3,
        }  # fmt: skip
    return record


def made_cohort(patients: int = 3, spots: int = 60, genes: int = 60) -> Cohort:
    return synthetic_cohort(patients=patients, spots=spots, genes=genes, seed=3)


def made_run(cohort: Cohort, names: tuple[str, ...] = tuple(SHARES)) -> EvaluationRun:
    """Evaluate the blurred methods, patient by patient."""
    config = Config.load("tiny").override(
        {"panel.n_hvg": 15, "evaluation.set_size": 12, "model.train_encoder": True}  # so no features are computed
    )
    methods = [Blurred(name, f"{SHARES[name]:.0%} of the truth", cohort) for name in names]
    return evaluate(cohort, config, methods=methods)
