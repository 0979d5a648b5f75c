"""Experiments: one config on one cohort with some methods, folds and seeds; and the tasks that they are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

# Before a panel is chosen: scanpy's compiled loops load the system's OpenMP library, and torch, if it comes later,
# takes that for its own. Attention on a CPU was seen to become 12 times slower.
import torch  # noqa: F401

from cmrcnet.config import Config, HeadConfig
from cmrcnet.errors import BadOption
from cmrcnet.evaluation.methods.method import MAIN, Method, training_name
from cmrcnet.evaluation.protocol.folds import Fold
from cmrcnet.evaluation.protocol.protocol_info import ProtocolName, Sets
from cmrcnet.evaluation.protocol.run_folder import FoldResult, RunFolder
from cmrcnet.genes.gene_sets import EVERYTHING, GenePanel, choose_panel, gene_sets
from cmrcnet.slides.section import Cohort
from cmrcnet.storage.hashing import fingerprint

Key = tuple[str, str, int]
"""Fold, method and seed of a result."""


@dataclass(frozen=True, eq=False)
class FoldPlan:
    """What is chosen on the training sections of a fold before any method runs."""

    fold: Fold
    panel: GenePanel  # of the gene encoder
    sets: Sets  # that methods may use for their choices
    scored: Sets  # that predictions are scored on; the same, unless an experiment gives others


@dataclass(frozen=True, eq=False)
class FoldPlanner:
    """Plans the folds of a cohort, once for all experiments with the same settings."""

    cohort: Cohort
    known: dict[str, FoldPlan] = field(default_factory=dict, repr=False)

    def plan(self, config: Config, fold: Fold, scored: Sets | None = None) -> FoldPlan:
        """Choose panel and gene sets of a fold on its training sections (the panel on all, where the config says so).

        From `scored`, genes that the fold's training sections do not measure are removed.
        """
        plain = config.to_dict()
        key = fingerprint([fold.name, list(fold.train), plain["panel"], config.evaluation.set_size])
        if key not in self.known:
            training = self.cohort.only(fold.train).in_order()
            panel = choose_panel(training if config.panel.sections == "training" else self.cohort, config.panel)
            sets = gene_sets(training, panel.scaling, size=config.evaluation.set_size)
            self.known[key] = FoldPlan(fold, panel, sets, sets)
        known = self.known[key]
        if scored is None:
            return known
        learnt = frozenset(known.sets[EVERYTHING])  # no method can predict a gene that no training section lists
        kept = {name: tuple(gene for gene in genes if gene in learnt) for name, genes in scored.items()}
        return FoldPlan(known.fold, known.panel, known.sets, kept)


@dataclass(frozen=True, eq=False)
class Experiment:
    """One config to be evaluated."""

    config: Config
    methods: tuple[Method, ...]  # in the order of the tables
    folds: tuple[Fold, ...]  # those that are run
    seeds: tuple[int, ...]
    protocol: ProtocolName = "strict"
    folder: RunFolder | None = None  # keeps finished results
    scored: Sets | None = None  # gene sets to score on in every fold, in place of each fold's own
    tables: bool = True  # keep prediction tables, and every gene's scores of the main method
    training_head: HeadConfig | None = None  # chooses the epoch, where experiments that differ in the head share it
    all_folds: int | None = None  # of the cohort, where `folds` are some of them
    plans: dict[str, FoldPlan] = field(default_factory=dict)  # by fold; filled while the experiment runs

    @property
    def keys(self) -> list[Key]:
        """Every result, in the order of the tables."""
        return [(fold.name, method.name, seed) for fold in self.folds for method in self.methods for seed in self.seeds]

    def every_gene(self, method: str) -> bool:
        """Whether all genes of a method are kept: those of CMRCNet, or of the first method where it is not run."""
        names = [each.name for each in self.methods]
        return self.tables and method == (MAIN if MAIN in names else names[0])

    def finished(self) -> dict[Key, FoldResult]:
        """Read the results that an interrupted run has left."""
        if self.folder is None:
            return {}
        found = {key: self.folder.result(*key, every_gene=self.every_gene(key[1])) for key in self.keys}
        return {key: result for key, result in found.items() if result is not None}

    def plan(self, planner: FoldPlanner, fold: Fold) -> FoldPlan:
        """Plan a fold, or return its plan."""
        if fold.name not in self.plans:
            self.plans[fold.name] = planner.plan(self.config, fold, self.scored)
        return self.plans[fold.name]


@dataclass(frozen=True, eq=False)
class MethodRun:
    """One method of an experiment, in one fold, with one seed."""

    number: int  # of its experiment, among those that run together
    experiment: Experiment  # without plans, so that it is small enough to be sent to a worker
    plan: FoldPlan
    method: Method
    seed: int

    @property
    def key(self) -> Key:
        """Fold, method and seed."""
        return self.plan.fold.name, self.method.name, self.seed

    @property
    def name(self) -> str:
        """For log lines and error messages."""
        return f"{self.method.name} in fold {self.plan.fold.name}, seed {self.seed}"


Task = tuple[MethodRun, ...]
"""What one worker does in one go: the methods of one fold and seed, which share sections, features and trainings."""


class TaskList:
    """The tasks that are still to be done.

    A task is one fold with one seed: its methods read each section once and share one CMRCNet. Experiments that differ
    in the head alone are in one task as well. When there are fewer tasks than workers, the methods of a task are split
    by the training that they are heads on. Results that an experiment already has (`done`) are left out.
    """

    def __init__(self, experiments: Sequence[Experiment], done: Sequence[dict[Key, FoldResult]], workers: int) -> None:
        self._experiments = experiments
        by_fold: dict[tuple, list[tuple[int, Fold, Method, int]]] = {}
        by_training: dict[tuple, list[tuple[int, Fold, Method, int]]] = {}
        for number, experiment in enumerate(experiments):
            name = training_name(experiment.config)
            for fold in experiment.folds:
                for seed in experiment.seeds:
                    for method in experiment.methods:
                        if (fold.name, method.name, seed) not in done[number]:
                            key = name, fold, seed
                            by_fold.setdefault(key, []).append((number, fold, method, seed))
                            part = *key, getattr(method, "training", "")
                            by_training.setdefault(part, []).append((number, fold, method, seed))
        self._groups = list((by_fold if len(by_fold) >= workers else by_training).values())

    def __len__(self) -> int:
        return len(self._groups)

    def planned(self, planner: FoldPlanner) -> Iterator[Task]:
        """Yield the tasks; each fold is planned when it is reached."""
        lean = [replace(each, plans={}, scored=None) for each in self._experiments]
        for group in self._groups:
            plans = [self._experiments[number].plan(planner, fold) for number, fold, *_ in group]
            yield tuple(
                MethodRun(number, lean[number], plan, method, seed)
                for (number, _, method, seed), plan in zip(group, plans, strict=True)
            )


def seeds_of(config: Config, count: int) -> tuple[int, ...]:
    """Return the config's seed and the following ones; `BadOption` for a count below 1."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise BadOption("seeds", count, "a number of seeds, 1 or more")
    return tuple(config.train.seed + i for i in range(count))
