"""Run the methods of one fold and seed: read each section once, train once, predict and score every method."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cmrcnet.config import Config
from cmrcnet.evaluation import Frame
from cmrcnet.evaluation.methods.frozen_features import PooledFeatures
from cmrcnet.evaluation.methods.method import FoldData, location_of
from cmrcnet.evaluation.metrics.scoring import Scorer
from cmrcnet.evaluation.protocol.experiment import Experiment, MethodRun, Task
from cmrcnet.evaluation.protocol.protocol_info import protocol_named
from cmrcnet.evaluation.protocol.run_folder import FoldResult
from cmrcnet.genes.scaling import Scaling
from cmrcnet.slides.section import Cohort, CohortEntry, Section
from cmrcnet.slides.slide import given_features
from cmrcnet.storage.hashing import fingerprint

if TYPE_CHECKING:
    from anndata import AnnData

    from cmrcnet.storage.cache import TokenCache
    from cmrcnet.training.checkpoint import Checkpoints

MOST_BYTES = 1 << 30
"""Counts kept in memory; beyond it sections are read again each time, so that memory stays bounded."""

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
"""Options of a config that do not change the frozen features: configs that differ in them only share features. An
option that is not listed here counts."""


class FoldRunner:
    """Runs tasks one after another in one process; `share` processes share this machine's memory.

    The cohort has all sections, for scoring. A method gets `FoldData`, whose cohort has no entry of a held-out section.
    """

    def __init__(self, cohort: Cohort, cache: TokenCache | None, share: int = 1) -> None:
        self.cohort = remembered(cohort, MOST_BYTES // share)
        self._cache = cache
        self._features: tuple[str, PooledFeatures] | None = None
        self._scorer: tuple[tuple, Scorer] | None = None

    def features(self, config: Config) -> PooledFeatures:
        """Return the frozen features of a config; those of the last config are kept."""
        name = features_name(config)
        if self._features is None or self._features[0] != name:
            self._features = name, PooledFeatures(config, self._cache)
        return self._features[1]

    def run(self, task: Task) -> Iterator[tuple[MethodRun, FoldResult]]:
        """Run the methods of a task on shared training data, and yield each result when it is kept."""
        models: dict[str, object] = {}
        opened: list[Checkpoints] = []
        number, data = None, None
        for each in task:
            if data is None or each.number != number:
                number, data = each.number, self.fold_data(each, models, opened.append)
            yield each, self._run_method(each, data)
        models.clear()  # a bank removes its temporary folder
        for checkpoints in opened:
            checkpoints.discard()

    def fold_data(
        self,
        run: MethodRun,
        models: dict[str, object] | None = None,
        opened: Callable[[Checkpoints], None] = lambda _: None,
    ) -> FoldData:
        """Collect what methods of an experiment may learn from in the fold of a run.

        `models` has the trainings of the task so far (see `FoldData.trained`); `opened` is called with the checkpoints
        of each training that is started.
        """
        experiment, plan = run.experiment, run.plan

        def checkpoints(training: str) -> Checkpoints:
            assert experiment.folder is not None
            found = experiment.folder.checkpoints(plan.fold.name, run.seed, training)
            opened(found)
            return found

        return FoldData(
            self.cohort.only(plan.fold.train).in_order(),
            plan.fold,
            experiment.config.override({"train.seed": run.seed}),
            plan.panel,
            plan.sets,
            self.features(experiment.config),
            self._cache,
            None if experiment.folder is None else checkpoints,
            {} if models is None else models,
            experiment.training_head,
        )

    def _run_method(self, run: MethodRun, data: FoldData) -> FoldResult:
        """Fit one method, predict the test sections from their slides, score them, and keep the result."""
        import pandas as pd

        start = time.monotonic()
        fitted = run.method.fit(data)
        of_panel = run.experiment.config.evaluation.paper_sets == "panel"
        among = run.plan.panel.genes if of_panel else None
        scores = self._scorer_of(run.experiment, run.plan.panel.scaling).begin(run.plan.scored, among)
        gene_tables: list[Frame] = []
        tables: dict[str, AnnData] = {}
        fold, name, folder = run.plan.fold, run.method.name, run.experiment.folder
        every_gene = run.experiment.every_gene(name)
        for section in self.cohort.only(fold.test):
            prediction = fitted.predict(location_of(section, data.features, run.method))
            table = scores.add(section, prediction)  # only `scores` sees the truth; nothing is passed to the method
            if not every_gene:
                table = table[table["sets"] != ""].reset_index(drop=True)
            table.insert(0, "method", name)
            gene_tables.append(table)
            if every_gene and run.seed == run.experiment.seeds[0] and prediction.table is not None:
                tables[section.name] = prediction.table
        head = {"method": name, "fold": fold.name}
        result = FoldResult(
            pd.DataFrame([head | row | {"seed": run.seed} for row in scores.rows()]),
            pd.concat(gene_tables, ignore_index=True),
            fitted.record,
            time.monotonic() - start,
            tables,
            every_gene,
        )
        return result if folder is None else folder.keep(*run.key, result)

    def _scorer_of(self, experiment: Experiment, scaling: Scaling) -> Scorer:
        """Return the scorer of these settings, which keeps what is known of the truth of a fold."""
        evaluation = experiment.config.evaluation
        settings = (scaling, evaluation, experiment.protocol)
        if self._scorer is None or self._scorer[0] != settings:
            self._scorer = (
                settings,
                Scorer(
                    scaling,
                    undefined=evaluation.undefined,
                    set_size=evaluation.set_size,
                    protocol=protocol_named(experiment.protocol),
                    overdispersion=evaluation.overdispersion,
                ),
            )
        return self._scorer[1]


def features_name(config: Config) -> str:
    """Return the same name for configs whose frozen features are the same."""
    plain = {key: value for key, value in config.to_dict().items() if key not in _NOT_FEATURES[""]}
    for part in ("model", "train"):
        plain[part] = {key: value for key, value in plain[part].items() if key not in _NOT_FEATURES[part]}
    return fingerprint(plain)


def remembered(cohort: Cohort, most_bytes: int = MOST_BYTES) -> Cohort:
    """Return a cohort whose sections are kept once read, up to `most_bytes` of counts. Slides free their own pixels.

    Each entry keeps its own section and knows no other: from the training entries of a fold no held-out section
    can be reached.
    """
    budget = [most_bytes]
    entries = [
        CohortEntry(each.section, each.patient, _Kept(each.load, budget), each.metadata, each.source)
        for each in cohort.entries
    ]
    return Cohort(cohort.name, tuple(entries))


@dataclass(eq=False)
class _Kept:
    """Read one section, and keep it while there is room in the shared budget of bytes."""

    load: Callable[[], Section]
    budget: list[int]
    section: Section | None = field(default=None, init=False, repr=False)

    def __reduce__(self) -> tuple:  # another process reads for itself, under a budget of its own
        return _Kept, (self.load, [0])

    def __call__(self) -> Section:
        if self.section is not None:
            return self.section
        section = self.load()
        size = section.counts.data.nbytes + section.counts.indices.nbytes + section.counts.indptr.nbytes
        if size <= self.budget[0]:
            self.budget[0] -= size
            self.section = section
        return section


def section_fingerprint(section: Section) -> str:
    """Return a name of all that a section holds: slide, locations, counts, genes, patient."""
    counts = section.counts
    return fingerprint(
        section.name,
        section.patient,
        section.slide.fingerprint(),
        section.slide.mpp,
        given_features(section.slide),
        list(section.spots.barcodes),
        section.spots.centre_px,
        section.spots.location_px,
        section.spots.first_location,
        counts.indptr,
        counts.indices,
        counts.data,
        list(section.genes),
        section.absent_genes,
        section.table_kind,
    )
