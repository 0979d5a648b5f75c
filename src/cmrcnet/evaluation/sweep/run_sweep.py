"""Evaluate many presets that differ in a few settings, on the same folds, with shared features, plans and workers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from cmrcnet.evaluation.methods.method import MAIN, Method
from cmrcnet.evaluation.methods.method_registry import chosen_methods
from cmrcnet.evaluation.metrics.gene_metrics import by_patient
from cmrcnet.evaluation.metrics.interval import mean_interval
from cmrcnet.evaluation.protocol.evaluate import begin, collect, under_protocol
from cmrcnet.evaluation.protocol.experiment import Study, only_folds, seeds_of
from cmrcnet.evaluation.protocol.folds import Unit, folds
from cmrcnet.evaluation.protocol.protocol_info import Stamp
from cmrcnet.evaluation.protocol.run_metadata import describe
from cmrcnet.evaluation.protocol.runner import run_studies
from cmrcnet.evaluation.protocol.scoring_protocol import ProtocolName
from cmrcnet.evaluation.protocol.section_memory import remembered
from cmrcnet.evaluation.protocol.threads import Workers
from cmrcnet.evaluation.sweep.sweep_folder import SweepFolder
from cmrcnet.evaluation.sweep.sweep_plan import BASE, Cell, SweepPlan, shown, value_of
from cmrcnet.slides.section import Cohort

if TYPE_CHECKING:
    import pandas as pd

    from cmrcnet.storage.cache import TokenCache

log = logging.getLogger("cmrcnet")

Found = tuple["pd.DataFrame", dict[str, Any]]
"""Scores and facts of a finished cell."""


@dataclass(frozen=True, eq=False)
class SweepRun:
    """A finished sweep.

    Parameters
    ----------
    plan : SweepPlan
    cohort : str
    table : pandas.DataFrame
        One row a cell, method, gene set and metric: `cell`, a column for each setting, `method, gene_set, metric,
        value, low, high, over, n, n_genes, n_undefined`, and the paired difference from the base cell:
        `difference, difference_low, difference_high`. Intervals are bootstrapped over `n` patients (or sections,
        where there is one patient).
    stamps : dict of str to str
        How each cell was scored.
    seconds : dict of str to float
        Time of each cell's tasks.
    facts : dict
        What `sweep.json` holds.
    """

    plan: SweepPlan
    cohort: str
    table: pd.DataFrame
    stamps: dict[str, str]
    seconds: dict[str, float]
    facts: dict[str, Any]

    def value(self, cell: str, gene_set: str = "HVG", metric: str = "pearson", method: str = MAIN) -> float:
        """One mean."""
        t = self.table
        mine = (t.cell == cell) & (t.gene_set == gene_set) & (t.metric == metric) & (t.method == method)
        return float(t[mine]["value"].iloc[0])

    def to_text(self) -> str:
        """HVG and HEG Pearson of every cell, as plain text."""
        lines = []
        width = max(len(cell.name) for cell in self.plan.cells)
        rows = self.table[(self.table.metric == "pearson") & self.table.gene_set.isin(["HVG", "HEG"])]
        for (cell, method), mine in rows.groupby(["cell", "method"], sort=False):
            means = "  ".join(
                f"{row.gene_set} {row.value:.3f}" + ("" if cell == BASE else f" ({row.difference:+.3f})")
                for row in mine.itertuples()
            )
            lines.append(f"{cell:{width}}  {method}  {means}  ({self.seconds[cell]:.0f} s)")
        return "\n".join([*lines, f"In brackets: difference from the base cell. {self.stamps[BASE]}"])


def sweep(
    cohort_of: Callable[[str], Cohort],
    plan: SweepPlan,
    folder: SweepFolder,
    cache: TokenCache,
    *,
    methods: Sequence[str | Method] = (),
    protocol: ProtocolName = "strict",
    unit: Unit | None = None,
    seeds: int = 1,
    only: Sequence[str] | None = None,
    workers: Workers = 1,
) -> SweepRun:
    """Evaluate every cell with CMRCNet, and with `methods` besides.

    Cells that differ in `head.*` alone share one training (see `model_shelf`). Finished cells, and finished folds
    and seeds of a cell, are not run again.

    Parameters
    ----------
    cohort_of : callable
        The cohort, read with `panel.controls` "drop" or "keep".
    plan : SweepPlan
    folder : SweepFolder
    cache : TokenCache
    methods : sequence of names or methods
        Besides CMRCNet.
    protocol, unit, seeds, only, workers
        As of `evaluate`.

    Raises
    ------
    BadOption, UnknownName, TooFew, CannotResume, WorkerDied
    """
    chosen = tuple(chosen_methods([MAIN, *(each for each in methods if each != MAIN)]))
    cohorts = {kind: remembered(cohort_of(kind)) for kind in dict.fromkeys(c.config.panel.controls for c in plan.cells)}
    described = {kind: describe(cohort) for kind, cohort in cohorts.items()}
    folder.begin(
        {
            "cells": [[cell.name, cell.config.to_dict()] for cell in plan.cells],
            "settings": [[method.name for method in chosen], protocol, unit, seeds, list(only or [])],
            "cohort": described,
            "version": version("cmrcnet"),
        }
    )
    found: dict[str, Found] = {}
    for kind, cohort in cohorts.items():
        cells = [cell for cell in plan.cells if cell.config.panel.controls == kind]
        waiting = []
        for cell in cells:
            known = folder.finished_cell(cell.config)
            if known is not None:
                found[cell.name] = known
            else:
                waiting.append(cell)
        studies = [_study(cell, cohort, folder, chosen, protocol, unit, seeds, only) for cell in waiting]
        for study in studies:
            begin(study, described[kind])
        for number, parts, features_s in run_studies(studies, cohort, cache, workers) if studies else ():
            study, cell = studies[number], waiting[number]
            every = len(folds(cohort, study.config.evaluation.group_by))
            run = collect(cohort, study, parts, described[kind], features_s, every)
            assert study.folder is not None
            study.folder.finish()
            found[cell.name] = run.scores, run.facts
            log.info("cell %s: HVG Pearson %.3f", cell.name, run.mean(MAIN))
    return _gathered(plan, next(iter(cohorts.values())).name, {cell.name: found[cell.name] for cell in plan.cells})


def _study(
    cell: Cell,
    cohort: Cohort,
    folder: SweepFolder,
    methods: tuple[Method, ...],
    protocol: ProtocolName,
    unit: Unit | None,
    seeds: int,
    only: Sequence[str] | None,
) -> Study:
    config = under_protocol(cell.config, protocol, unit)
    return Study(
        config,
        methods,
        only_folds(folds(cohort, config.evaluation.group_by), only),
        seeds_of(config, seeds),
        protocol,
        folder.cell(cell.config),
        tables=False,
        shelf=folder.shelf(),
    )


def _gathered(plan: SweepPlan, cohort: str, found: dict[str, Found]) -> SweepRun:
    import pandas as pd

    base = found[BASE][0]
    rows = [row for cell in plan.cells for row in _rows(plan, cell, found[cell.name][0], base)]
    stamps = {name: Stamp(**{k: v for k, v in facts["stamp"].items() if k != "warnings"}).to_text()
              for name, (_, facts) in found.items()}  # fmt: skip
    seconds = {name: facts["time"]["tasks_s"] for name, (_, facts) in found.items()}
    facts = {
        "cohort": cohort,
        "about": plan.about,
        "base": plan.base.to_dict(),
        "keys": list(plan.keys),
        "grid": plan.grid,
        "cells": [
            {
                "name": cell.name,
                "settings": cell.settings,
                "stamp": stamps[cell.name],
                "seconds": seconds[cell.name],
                "seeds": found[cell.name][1]["seeds"],
            }
            for cell in plan.cells
        ],
        "versions": found[BASE][1]["versions"],
        "rows": rows,
    }
    return SweepRun(plan, cohort, pd.DataFrame(rows), stamps, seconds, facts)


def _rows(plan: SweepPlan, cell: Cell, scores: pd.DataFrame, base: pd.DataFrame) -> Iterator[dict[str, Any]]:
    over = "patients" if scores["patient"].nunique() > 1 else "sections"
    theirs = _units(base, over)
    settings = {key: shown(value_of(cell.config, key)) for key in plan.keys}
    for (method, gene_set, metric), mine in _units(scores, over).groupby(["method", "gene_set", "metric"], sort=False):
        value, low, high = mean_interval(mine["value"].to_numpy())
        both = mine.merge(theirs, on=["method", "gene_set", "metric", "unit"], suffixes=("", "_base"))
        difference = mean_interval((both["value"] - both["value_base"]).to_numpy())
        if cell.name == BASE:
            difference = (float("nan"),) * 3
        yield {
            "cell": cell.name,
            **settings,
            "method": method,
            "gene_set": gene_set,
            "metric": metric,
            "value": value,
            "low": low,
            "high": high,
            "over": over,
            "n": int(mine["value"].notna().sum()),
            "n_genes": int(mine["n_genes"].sum()),
            "n_undefined": int(mine["n_undefined"].sum()),
            **dict(zip(("difference", "difference_low", "difference_high"), difference, strict=True)),
        }


def _units(scores: pd.DataFrame, over: str) -> pd.DataFrame:
    """Means of patients; or of sections, where there is one patient."""
    if over == "sections":
        scores = scores.assign(patient=scores["section"])
    return by_patient(scores).rename(columns={"patient": "unit"})


def is_number(words: Sequence[str]) -> bool:
    """Whether all settings are numbers, so that a line through them means something."""
    try:
        return bool(np.isfinite([float(word) for word in words]).all())
    except ValueError:
        return False
