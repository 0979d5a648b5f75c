"""The bench on which tasks are worked, in this process or in a worker: cohort, features, one fold's data at a time."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

from cmrcnet.config import Config
from cmrcnet.evaluation.methods.frozen_features import PooledFeatures
from cmrcnet.evaluation.methods.method import TrainingData, location_of
from cmrcnet.evaluation.metrics.scoring import Scorer
from cmrcnet.evaluation.protocol.experiment import Task
from cmrcnet.evaluation.protocol.run_folder import Part
from cmrcnet.evaluation.protocol.scoring_protocol import protocol_named
from cmrcnet.evaluation.protocol.section_memory import MOST_BYTES, remembered
from cmrcnet.slides.section import Cohort
from cmrcnet.storage.hashing import fingerprint

if TYPE_CHECKING:
    from anndata import AnnData

    from cmrcnet.storage.cache import TokenCache

_NOT_FEATURES = {
    "": ("name", "about", "head", "evaluation", "panel"),
    "model": (
        "embedding_dim", "head_dropout", "similarity", "temperature", "targets", "second_targets", "reconstruct",
        "reconstruction_loss", "detach_target", "mask_rate", "mask_rate_is", "mask_unit", "mask_seeded_in_validation",
        "gene_tokens", "fusion_dim", "fusion_dropout", "cross_heads", "fusion_heads", "fusion_blocks",
        "share_fusion_blocks",
    ),
    "train": (
        "epochs", "batch_size", "learning_rate", "final_learning_rate", "weight_decay", "clip_norm", "augment",
        "validation", "select_by", "refit", "validate_every", "ema_decay", "ema_used",
    ),
}  # fmt: skip
"""What in a config does not change the frozen features: cells of a sweep that differ in it share them. A setting that
is not listed here counts."""

_SHARED = ("genes", "expression", "pooled", "section_of", "unit_of")
"""What `TrainingData` works out once and the seeds and methods of a fold share."""


class Bench:
    """Runs tasks one after another.

    Parameters
    ----------
    cohort : Cohort
        All of it, for scoring. A method gets `TrainingData`, whose cohort has no entry of a held-out section.
    cache : TokenCache or None
    share : int
        Benches that share this machine's memory.
    """

    def __init__(self, cohort: Cohort, cache: TokenCache | None, share: int = 1) -> None:
        self.cohort = remembered(cohort, MOST_BYTES // share)
        self._cache = cache
        self._features: tuple[str, PooledFeatures] | None = None
        self._fold: tuple[str, TrainingData] | None = None
        self._scorer: tuple[tuple, Scorer] | None = None

    def features(self, config: Config) -> PooledFeatures:
        """The frozen features of a config. Those of the last config are kept."""
        name = features_name(config)
        if self._features is None or self._features[0] != name:
            self._features = name, PooledFeatures(config, self._cache)
        return self._features[1]

    def warm(self, config: Config) -> None:
        """Compute the frozen features of every section, so that workers find them in the cache."""
        features = self.features(config)
        for section in self.cohort:
            features.of(section.slide, section.spots)

    def run(self, task: Task) -> Part:
        """Fit one method in one fold, predict its test sections from their slides, score them, and keep the part."""
        import pandas as pd

        data = self._training_data(task)  # shared by the methods of the fold, so on nobody's clock
        start = time.monotonic()
        predictor = task.method.fit(data)
        scores = self._scorer_of(task).begin(task.plan.scored)
        gene_tables: list[pd.DataFrame] = []
        tables: dict[str, AnnData] = {}
        fold, name = task.plan.fold, task.method.name
        for section in self.cohort.only(fold.test):
            prediction = predictor.predict(location_of(section, data.features, task.method))
            # The truth is known to `scores` alone; nothing goes back to the method.
            table = scores.add(section, prediction)
            if not task.every_gene:
                table = table[table["sets"] != ""].reset_index(drop=True)
            table.insert(0, "method", name)
            gene_tables.append(table)
            if task.every_gene and task.first and prediction.table is not None:
                tables[section.name] = prediction.table
        head = {"method": name, "fold": fold.name}
        part = Part(
            pd.DataFrame([head | row | {"seed": task.seed} for row in scores.rows()]),
            pd.concat(gene_tables, ignore_index=True),
            predictor.record,
            time.monotonic() - start,
            tables,
            task.every_gene,
        )
        return part if task.folder is None else task.folder.keep(*task.key, part)

    def _scorer_of(self, task: Task) -> Scorer:
        """Methods and seeds of one fold share what is known of the truth."""
        config = task.config
        settings = (config.panel.target_sum, config.evaluation.undefined, config.evaluation.set_size, task.protocol)
        if self._scorer is None or self._scorer[0] != settings:
            scorer = Scorer(
                config.panel.target_sum,
                undefined=config.evaluation.undefined,
                set_size=config.evaluation.set_size,
                protocol=protocol_named(task.protocol),
            )
            self._scorer = settings, scorer
        return self._scorer[1]

    def _training_data(self, task: Task) -> TrainingData:
        """What the method may learn from. Methods and seeds of one fold share what is worked out from the sections."""
        fold = task.plan.fold
        name = fingerprint([task.config.to_dict(), fold.name, list(fold.train)])
        if self._fold is None or self._fold[0] != name:
            plan = task.plan
            self._fold = (
                name,
                TrainingData(
                    self.cohort.only(fold.train),
                    fold,
                    task.config,
                    plan.panel,
                    plan.sets,
                    self.features(task.config),
                    self._cache,
                ),
            )
        first = self._fold[1]
        keeps = None if task.folder is None else task.folder.checkpoints(*task.key)
        config = task.config.override({"train.seed": task.seed})
        data = dataclasses.replace(first, config=config, checkpoints=keeps, shelf=task.shelf)
        for each in _SHARED:
            if each != "pooled" or not config.model.train_encoder:  # there the frozen features may never be asked for
                data.__dict__[each] = _locked(getattr(first, each))  # fills the cached properties
        return data


def features_name(config: Config) -> str:
    """The same for presets whose frozen features are the same."""
    plain = {key: value for key, value in config.to_dict().items() if key not in _NOT_FEATURES[""]}
    for part in ("model", "train"):
        plain[part] = {key: value for key, value in plain[part].items() if key not in _NOT_FEATURES[part]}
    return fingerprint(plain)


def _locked(value):
    """No method may change what the next one is given: arrays become read-only."""
    arrays = (value.data, value.indices, value.indptr) if hasattr(value, "indptr") else (value,)
    for array in arrays:
        if hasattr(array, "flags"):
            array.flags.writeable = False
    return value
