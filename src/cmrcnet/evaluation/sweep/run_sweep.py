"""Evaluate configs that differ in a few options, on the same folds, with shared features, plans and trainings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cmrcnet.config import HeadConfig
from cmrcnet.evaluation import Frame
from cmrcnet.evaluation.methods import chosen_methods
from cmrcnet.evaluation.methods.method import MAIN, Method, training_name
from cmrcnet.evaluation.metrics.intervals import by_patient
from cmrcnet.evaluation.protocol.evaluate import begin, collect, describe
from cmrcnet.evaluation.protocol.experiment import Experiment, seeds_of
from cmrcnet.evaluation.protocol.fold_runner import remembered
from cmrcnet.evaluation.protocol.folds import GroupBy, folds, only_folds
from cmrcnet.evaluation.protocol.protocol_info import ProtocolInfo, ProtocolName, protocol_named
from cmrcnet.evaluation.protocol.run_folder import RunFolder, WorkFolder
from cmrcnet.evaluation.protocol.runner import run_experiments
from cmrcnet.evaluation.sweep.sweep_plan import BASE, SweepPlan, Trial, shown, value_of
from cmrcnet.genes.mean_interval import mean_interval
from cmrcnet.slides.section import Cohort
from cmrcnet.storage.atomic import atomic_file
from cmrcnet.storage.hashing import fingerprint
from cmrcnet.workers import WorkerOptions, Workers

if TYPE_CHECKING:
    from cmrcnet.storage.cache import TokenCache

log = logging.getLogger("cmrcnet")

FORMAT = 3
Finished = tuple[Frame, dict[str, Any]]
"""Scores and metadata of a finished trial."""


class SweepFolder(WorkFolder):
    """The folder of one sweep: a small run folder for each trial, and the tables at the end; see `WorkFolder`."""

    last, format = "sweep.json", FORMAT

    def trial_path(self, name: str) -> Path:
        """Path of a trial's run folder."""
        return self.working / "trials" / fingerprint(name)[:16]

    def write(self, name: str, content: str | bytes) -> None:
        """Write one file atomically."""
        with atomic_file(self.working / name) as tmp:
            tmp.write_bytes(content.encode() if isinstance(content, str) else content)


@dataclass(frozen=True, eq=False)
class SweepRun:
    """A finished sweep.

    Parameters
    ----------
    table : pandas.DataFrame
        One row a trial, method, gene set and metric: `trial`, a column for each option, `method, gene_set, metric,
        value, low, high, over, n, n_genes, n_undefined`, and the paired difference from the base trial:
        `difference, difference_low, difference_high`. Intervals are Student t intervals over `n` patients (or sections,
        where there is one patient).
    """

    plan: SweepPlan
    cohort: str
    table: Frame
    protocols: dict[str, str]  # how each trial was scored
    seconds: dict[str, float]  # of each trial's tasks
    metadata: dict[str, Any]  # content of `sweep.json`

    def value(self, trial: str, gene_set: str = "HVG", metric: str = "pearson", method: str = MAIN) -> float:
        """Return one mean."""
        t = self.table
        mine = (t.trial == trial) & (t.gene_set == gene_set) & (t.metric == metric) & (t.method == method)
        return float(t[mine]["value"].iloc[0])

    def to_text(self) -> str:
        """Return HVG and HEG Pearson of every trial as plain text."""
        lines = []
        width = max(len(trial.name) for trial in self.plan.trials)
        rows = self.table[(self.table.metric == "pearson") & self.table.gene_set.isin(["HVG", "HEG"])]
        for (trial, method), mine in rows.groupby(["trial", "method"], sort=False):
            means = "  ".join(
                f"{row.gene_set} {row.value:.3f}" + ("" if trial == BASE else f" ({row.difference:+.3f})")
                for row in mine.itertuples()
            )
            lines.append(f"{trial:{width}}  {method}  {means}  ({self.seconds[trial]:.0f} s)")
        return "\n".join([*lines, f"In brackets: difference from the base trial. {self.protocols[BASE]}"])


def sweep(
    cohort_of: Callable[[Literal["drop", "keep"]], Cohort],
    plan: SweepPlan,
    folder: SweepFolder,
    cache: TokenCache,
    *,
    methods: Sequence[str | Method] = (),
    protocol: ProtocolName = "strict",
    group_by: GroupBy | None = None,
    seeds: int = 1,
    only: Sequence[str] | None = None,
    workers: Workers | WorkerOptions = 1,
) -> SweepRun:
    """Evaluate every trial with CMRCNet, and with `methods` besides.

    Trials that differ in `head.*` alone share one training. Its epoch is chosen with the head of the first of them in
    the plan, so that all read the same network. Finished trials, and finished folds and seeds of a trial, are not run
    again.

    Parameters
    ----------
    cohort_of : callable
        Returns the cohort, read with `panel.controls` "drop" or "keep".
    methods : sequence of names or methods
        Besides CMRCNet.
    protocol, group_by, seeds, only, workers
        As of `evaluate`.

    Raises
    ------
    BadOption, UnknownName, TooFew, Incompatible, WorkerDied
    """
    import pandas as pd

    chosen = tuple(chosen_methods([MAIN, *(each for each in methods if each != MAIN)]))
    kinds: list[Literal["drop", "keep"]] = sorted({trial.config.panel.controls for trial in plan.trials})
    cohorts = {kind: remembered(cohort_of(kind)) for kind in kinds}
    described = {kind: describe(cohort) for kind, cohort in cohorts.items()}
    folder.begin(
        {
            "trials": [[trial.name, trial.config.to_dict()] for trial in plan.trials],
            "settings": [[method.name for method in chosen], protocol, group_by, seeds, list(only or [])],
            "cohort": described,
            "version": version("cmrcnet"),
        }
    )
    training_heads: dict[str, HeadConfig] = {}
    for trial in plan.trials:
        training_heads.setdefault(training_name(trial.config), trial.config.head)
    found: dict[str, Finished] = {}
    for kind, cohort in cohorts.items():
        experiments = {}
        for trial in (trial for trial in plan.trials if trial.config.panel.controls == kind):
            config = protocol_named(protocol).apply(trial.config, group_by)
            every = folds(cohort, config.evaluation.group_by)
            experiments[trial.name] = Experiment(
                config,
                chosen,
                only_folds(every, only),
                seeds_of(config, seeds),
                protocol,
                tables=False,
                training_head=training_heads[training_name(trial.config)],
                all_folds=len(every),
            )
        found |= run_trials(experiments, cohort, described[kind], folder, cache, workers)
    rows = [row for trial in plan.trials for row in _rows(plan, trial, found[trial.name][0], found[BASE][0])]
    protocols, seconds = {}, {}
    for trial in plan.trials:
        run = found[trial.name][1]
        info = {key: value for key, value in run["protocol_info"].items() if key != "warnings"}
        protocols[trial.name], seconds[trial.name] = ProtocolInfo(**info).to_text(), run["time"]["tasks_s"]
    name = next(iter(cohorts.values())).name
    metadata = {
        "cohort": name,
        "about": plan.about,
        "base": plan.base.to_dict(),
        "keys": list(plan.keys),
        "grid": plan.grid,
        "trials": [
            {
                "name": trial.name,
                "settings": trial.settings,
                "protocol": protocols[trial.name],
                "seconds": seconds[trial.name],
                "seeds": found[trial.name][1]["seeds"],
            }
            for trial in plan.trials
        ],
        "versions": found[BASE][1]["versions"],
        "rows": rows,
    }
    return SweepRun(plan, name, pd.DataFrame(rows), protocols, seconds, metadata)


def run_trials(
    experiments: Mapping[str, Experiment],
    cohort: Cohort,
    described: list[dict[str, Any]],
    folder: SweepFolder,
    cache: TokenCache,
    workers: Workers | WorkerOptions,
) -> dict[str, Finished]:
    """Run the experiments that are not finished, each in a run folder of its own, and return the results of all."""
    found: dict[str, Finished] = {}
    waiting: dict[str, Experiment] = {}
    for name, experiment in experiments.items():
        known = RunFolder.read_finished(folder.trial_path(name))
        if known is not None:
            found[name] = known
            continue
        waiting[name] = replace(experiment, folder=RunFolder(folder.trial_path(name), resume=True))
        begin(waiting[name], described)
    names, left = list(waiting), list(waiting.values())
    for number, results, features_s in run_experiments(left, cohort, cache, workers) if left else ():
        run, done = collect(cohort, left[number], results, described, features_s), left[number].folder
        assert done is not None
        done.finish()
        found[names[number]] = run.scores, run.metadata
        log.info("trial %s: HVG Pearson %.3f", names[number], run.mean(MAIN))
    return found


def _rows(plan: SweepPlan, trial: Trial, scores: Frame, base: Frame) -> Iterator[dict[str, Any]]:
    over = "patients" if scores["patient"].nunique() > 1 else "sections"

    def groups(scores: Frame) -> Frame:
        """Means of patients; or of sections, where there is one patient."""
        if over == "sections":
            scores = scores.assign(patient=scores["section"])
        return by_patient(scores).rename(columns={"patient": "group"})

    theirs = groups(base)
    settings = {key: shown(value_of(trial.config, key)) for key in plan.keys}
    for (method, gene_set, metric), mine in groups(scores).groupby(["method", "gene_set", "metric"], sort=False):
        both = mine.merge(theirs, on=["method", "gene_set", "metric", "group"], suffixes=("", "_base"))
        difference = mean_interval((both["value"] - both["value_base"]).to_numpy())
        if trial.name == BASE:
            difference = (float("nan"),) * 3
        yield {
            "trial": trial.name,
            **settings,
            "method": method,
            "gene_set": gene_set,
            "metric": metric,
            **dict(zip(("value", "low", "high"), mean_interval(mine["value"].to_numpy()), strict=True)),
            "over": over,
            "n": int(mine["value"].notna().sum()),
            "n_genes": int(mine["n_genes"].sum()),
            "n_undefined": int(mine["n_undefined"].sum()),
            **dict(zip(("difference", "difference_low", "difference_high"), difference, strict=True)),
        }
