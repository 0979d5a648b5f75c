"""A study: one config on one cohort, and the tasks that it comes down to, one a fold, method and seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

# Before a panel is chosen: scanpy's compiled loops load the system's OpenMP library, and torch, if it comes later,
# takes that for its own. Attention on a CPU was seen to become 12 times slower.
import torch  # noqa: F401

from cmrcnet.config import Config
from cmrcnet.errors import BadOption, UnknownName
from cmrcnet.evaluation.methods.method import MAIN, Method
from cmrcnet.evaluation.protocol.folds import Fold
from cmrcnet.evaluation.protocol.model_shelf import ModelShelf
from cmrcnet.evaluation.protocol.run_folder import Part, RunFolder
from cmrcnet.evaluation.protocol.scoring_protocol import ProtocolName, Sets
from cmrcnet.genes.gene_sets import EVERYTHING, GenePanel, choose_panel, gene_sets
from cmrcnet.slides.section import Cohort
from cmrcnet.storage.hashing import fingerprint

Key = tuple[str, str, int]
"""Fold, method and seed of a task."""


@dataclass(frozen=True, eq=False)
class FoldPlan:
    """What is fixed on the training sections of a fold before any method runs.

    Parameters
    ----------
    fold : Fold
    panel : GenePanel
    sets : mapping of str to sequence of str
        What methods may choose by.
    scored : mapping of str to sequence of str
        What predictions are scored on; the same, unless a study says otherwise.
    """

    fold: Fold
    panel: GenePanel
    sets: Sets
    scored: Sets


class FoldPlanner:
    """Plans folds, once for all studies that ask alike.

    Parameters
    ----------
    cohort : Cohort
    """

    def __init__(self, cohort: Cohort) -> None:
        self._cohort = cohort
        self._known: dict[str, FoldPlan] = {}

    def plan(self, config: Config, fold: Fold, scored: Sets | None = None) -> FoldPlan:
        """Panel and gene sets of a fold, from its training sections (the panel from all, where the config says so).

        Of sets that are given to score by, genes that the fold's training sections do not measure fall out.
        """
        plain = config.to_dict()
        key = fingerprint([fold.name, list(fold.train), plain["panel"], config.evaluation.set_size])
        if key not in self._known:
            training = self._cohort.only(fold.train)
            panel = choose_panel(training if config.panel.sections == "training" else self._cohort, config.panel)
            sets = gene_sets(training, panel.target_sum, size=config.evaluation.set_size)
            self._known[key] = FoldPlan(fold, panel, sets, sets)
        known = self._known[key]
        if scored is None:
            return known
        learnt = frozenset(known.sets[EVERYTHING])  # a gene that no training section lists, nobody can predict
        kept = {name: tuple(gene for gene in genes if gene in learnt) for name, genes in scored.items()}
        return FoldPlan(known.fold, known.panel, known.sets, kept)


@dataclass(frozen=True, eq=False)
class Task:
    """One method, in one fold, with one seed.

    Parameters
    ----------
    study : int
        Its study's place among those that run together.
    config : Config
        With the study's first seed.
    plan : FoldPlan
    method : Method
    seed : int
    protocol : {"strict", "paper"}
    first : bool
        Of the seeds: its prediction tables are kept.
    every_gene : bool
        Keep every gene's scores, not only those of genes in a named set.
    folder : RunFolder or None
        Where the part is kept; without one it is handed back.
    shelf : ModelShelf or None
        Trained models that studies share.
    """

    study: int
    config: Config
    plan: FoldPlan
    method: Method
    seed: int
    protocol: ProtocolName
    first: bool
    every_gene: bool
    folder: RunFolder | None
    shelf: ModelShelf | None = None

    @property
    def key(self) -> Key:
        """Where the part belongs."""
        return self.plan.fold.name, self.method.name, self.seed

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.method.name} in fold {self.plan.fold.name}, seed {self.seed}"

    @property
    def alone(self) -> str | None:
        """Tasks with the same word must not run at the same time: the second finds the first one's model."""
        if self.shelf is None:
            return None
        fold, method, seed = self.key
        kind = MAIN if method.startswith(MAIN) else method  # rows that read one and the same model out
        return fingerprint([self.shelf.training_of(self.config), fold, kind, str(seed)])


@dataclass(frozen=True, eq=False)
class Study:
    """One config to be evaluated.

    Parameters
    ----------
    config : Config
    methods : tuple of Method
    folds : tuple of Fold
        Those that are run.
    seeds : tuple of int
    protocol : {"strict", "paper"}
    folder : RunFolder or None
    scored : mapping, optional
        Gene sets to score on in every fold, in place of each fold's own.
    tables : bool
        Keep prediction tables, and every gene's scores of the first method.
    shelf : ModelShelf, optional
    """

    config: Config
    methods: tuple[Method, ...]
    folds: tuple[Fold, ...]
    seeds: tuple[int, ...]
    protocol: ProtocolName = "strict"
    folder: RunFolder | None = None
    scored: Sets | None = None
    tables: bool = True
    shelf: ModelShelf | None = None
    plans: dict[str, FoldPlan] = field(default_factory=dict)

    @property
    def lead(self) -> str:
        """The method whose tables and genes are kept whole: CMRCNet, or the first where it is not run."""
        names = [method.name for method in self.methods]
        return MAIN if MAIN in names else names[0]

    @property
    def keys(self) -> list[Key]:
        """Every part, in the order of the tables."""
        return [(fold.name, method.name, seed) for fold in self.folds for method in self.methods for seed in self.seeds]

    def finished(self) -> dict[Key, Part]:
        """Parts that an interrupted run has left."""
        if self.folder is None:
            return {}
        found = {key: self.folder.part(*key, every_gene=self._every_gene(key[1])) for key in self.keys}
        return {key: part for key, part in found.items() if part is not None}

    def tasks(self, number: int, planner: FoldPlanner, done: Sequence[Key] = ()) -> Iterator[Task]:
        """Tasks that are still to be done, fold by fold; each fold is planned when it is reached."""
        for fold in self.folds:
            plan = self.plans[fold.name] = planner.plan(self.config, fold, self.scored)
            for method in self.methods:
                for seed in self.seeds:
                    if (fold.name, method.name, seed) not in done:
                        yield Task(
                            number,
                            self.config,
                            plan,
                            method,
                            seed,
                            self.protocol,
                            self.tables and seed == self.seeds[0],
                            self._every_gene(method.name),
                            self.folder,
                            self.shelf,
                        )

    def _every_gene(self, method: str) -> bool:
        return self.tables and method == self.lead


def only_folds(folds: tuple[Fold, ...], names: Sequence[str] | None) -> tuple[Fold, ...]:
    """The folds of these names, in the order of the cohort; all, without names.

    Raises
    ------
    UnknownName, BadOption
    """
    if names is None:
        return folds
    known = [fold.name for fold in folds]
    for name in names:
        if name not in known:
            raise UnknownName("fold", name, known, "A fold is named after the patient or section that it leaves out.")
    if not names:
        raise BadOption("folds", "", "at least one fold")
    return tuple(fold for fold in folds if fold.name in names)


def seeds_of(config: Config, count: int) -> tuple[int, ...]:
    """The config's seed and those that follow it.

    Raises
    ------
    BadOption
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise BadOption("seeds", count, "a number of seeds, 1 or more")
    return tuple(config.train.seed + i for i in range(count))
