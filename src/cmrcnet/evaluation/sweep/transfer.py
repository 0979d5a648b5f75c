"""Train on one cohort and test on another, with the scores inside each cohort beside it, and the drop.

Everything is scored on genes that both cohorts measured. HEG and HVG are chosen on the training cohort, for the
transfer and for the test cohort's own score alike, so that the drop compares the same genes of the same sections.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from cmrcnet.config import Config
from cmrcnet.errors import GenesError, Leakage, TooFew
from cmrcnet.evaluation import Frame
from cmrcnet.evaluation.methods import chosen_methods
from cmrcnet.evaluation.methods.method import MAIN, Method
from cmrcnet.evaluation.metrics.intervals import by_patient, mean_interval
from cmrcnet.evaluation.protocol.evaluate import begin, collect, describe
from cmrcnet.evaluation.protocol.experiment import Experiment, seeds_of
from cmrcnet.evaluation.protocol.fold_runner import remembered
from cmrcnet.evaluation.protocol.folds import Fold, GroupBy, folds
from cmrcnet.evaluation.protocol.protocol_info import Sets
from cmrcnet.evaluation.protocol.runner import Workers, run_experiments
from cmrcnet.evaluation.report.summary import number
from cmrcnet.evaluation.sweep.run_sweep import SweepFolder
from cmrcnet.genes.gene_sets import MeasuredGenes, gene_sets
from cmrcnet.genes.naming import are_disjoint, explain_no_shared_genes
from cmrcnet.slides.section import Cohort, CohortEntry, Section
from cmrcnet.storage.hashing import fingerprint

if TYPE_CHECKING:
    from cmrcnet.storage.cache import TokenCache

_EVERY = 10**9


@dataclass(frozen=True, eq=False)
class TransferRun:
    """A finished transfer.

    Parameters
    ----------
    table : pandas.DataFrame
        One row a test cohort, method, gene set and metric: the `transfer` score with its interval over patients, the
        score inside the test cohort (`inside_test`), inside the training cohort (`inside_train`), and the paired
        `drop` from inside the test cohort to the transfer. `n_genes` counts gene-section pairs.
    metadata : dict
        Content of `transfer.json`.
    """

    table: Frame
    metadata: dict[str, Any]

    def to_text(self) -> str:
        """HVG and HEG Pearson, as plain text."""
        lines = []
        t = self.table
        for row in t[(t.metric == "pearson") & t.gene_set.isin(["HVG", "HEG"])].itertuples():
            lines.append(
                f"{self.metadata['train']} to {row.test}  {row.method}  {row.gene_set}: {number(row.transfer)}; inside "
                f"{row.test} {number(row.inside_test)} (drop {number(row.drop)}), inside {self.metadata['train']} "
                f"{number(row.inside_train)}"
            )
        return "\n".join([*lines, *self.metadata["notes"]])


def transfer(
    train: Cohort,
    tests: Sequence[Cohort],
    config: Config,
    folder: SweepFolder,
    cache: TokenCache,
    *,
    methods: Sequence[str | Method] = (),
    group_by: GroupBy | None = None,
    seeds: int = 1,
    workers: Workers = 1,
) -> TransferRun:
    """Train on all of one cohort and test on others.

    Parameters
    ----------
    config : Config
        Its gene panel is chosen on training sections, whatever it says.
    methods : sequence of names or methods
        Besides CMRCNet.
    group_by, seeds, workers
        As of `evaluate`; a cohort of one patient is scored section by section.

    Returns
    -------
    TransferRun

    Raises
    ------
    GenesError
        With the reason: Ensembl ids against symbols, another species.
    Leakage
        A test section is a training section under whatever name.
    TooFew, CannotResume, WorkerDied
    """
    import pandas as pd

    if not tests:
        raise TooFew("test cohorts", 0, 1, "name a cohort.csv to test on behind the one to train on")
    config = config.override(
        {"panel.sections": "training"} | ({} if group_by is None else {"evaluation.group_by": group_by})
    )
    chosen = tuple(chosen_methods([MAIN, *(each for each in methods if each != MAIN)]))
    cohort, members = joined(train, tests)
    cohort = remembered(cohort)
    sides = {name: cohort.only(sections) for name, sections in members.items()}
    first, *rest = sides
    _refuse_twins(sides[first], [sides[name] for name in rest])
    scored = {name: shared_sets(sides[first], sides[name], config) for name in rest}
    described = describe(cohort)
    identity = {"config": config.to_dict(), "cohorts": described, "members": members, "version": version("cmrcnet")}
    folder.begin(identity | {"settings": [[method.name for method in chosen], seeds]})

    def experiment(fold_list: tuple[Fold, ...], group: GroupBy, sets: Sets | None, name: str) -> Experiment:
        here = config.override({"evaluation.group_by": group})
        return Experiment(here, chosen, fold_list, seeds_of(here, seeds), "strict", None, sets, tables=False)

    wanted: dict[str, Experiment] = {}
    for name, side in sides.items():
        own = _grouping(side, config.evaluation.group_by)
        if len(side.sections if own == "section" else side.patients) > 1:
            wanted[f"inside {name}"] = experiment(folds(side, own), own, scored.get(name), name)
    for name in rest:
        test = sides[name]
        fold = Fold(name, sides[first].sections, test.sections, test.patients, patient_disjoint=True)
        wanted[f"to {name}"] = experiment((fold,), config.evaluation.group_by, scored[name], name)

    found: dict[str, Frame] = {}
    waiting: list[str] = []
    for name, each in wanted.items():
        known = folder.finished_trial(each.config, name)
        if known is not None:
            found[name] = known[0]
            continue
        waiting.append(name)
        wanted[name] = dataclasses.replace(each, folder=folder.trial(each.config, name))
        begin(wanted[name], described)
    experiments = [wanted[name] for name in waiting]
    for place, parts, features_s in run_experiments(experiments, cohort, cache, workers) if experiments else ():
        run = collect(cohort, experiments[place], parts, described, features_s, len(experiments[place].folds))
        run_folder = experiments[place].folder
        assert run_folder is not None
        run_folder.finish()
        found[waiting[place]] = run.scores
    rows = [row for name in rest for row in _rows(name, first, found)]
    notes = [f"{name}: {len(sets['all']):,} genes are measured in {first} as well." for name, sets in scored.items()]
    notes.append(
        f"HEG and HVG: {config.evaluation.set_size} genes each, chosen on {first} among the shared genes (inside "
        f"{first}: on the training sections of each fold)."
    )
    metadata = {
        "train": first,
        "tests": rest,
        "config": config.to_dict(),
        "members": {name: list(sections) for name, sections in members.items()},
        "gene_sets": {name: {k: list(v) for k, v in sets.items() if k != "all"} for name, sets in scored.items()},
        "notes": notes,
        "rows": rows,
    }
    return TransferRun(pd.DataFrame(rows), metadata)


def joined(train: Cohort, tests: Sequence[Cohort]) -> tuple[Cohort, dict[str, tuple[str, ...]]]:
    """One cohort of all sections, and whose they are. A name that comes twice gets its cohort's name before it.

    Patients of different cohorts are taken to be different people, also where they are named alike.
    """
    entries: list[CohortEntry] = []
    members: dict[str, tuple[str, ...]] = {}
    for cohort in (train, *tests):
        name = cohort.name
        while name in members:
            name += "'"
        sections, patients = {e.section for e in entries}, {e.patient for e in entries}
        mine = []
        for entry in cohort.entries:
            section = f"{name}: {entry.section}" if entry.section in sections else entry.section
            patient = f"{name}: {entry.patient}" if entry.patient in patients else entry.patient
            if (section, patient) == (entry.section, entry.patient):
                mine.append(entry)
            else:
                mine.append(CohortEntry(section, patient, _Renamed(entry, section, patient), entry.metadata))
        entries += mine
        members[name] = tuple(entry.section for entry in mine)
    return Cohort(train.name, tuple(entries)), members


def shared_sets(train: Cohort, test: Cohort, config: Config) -> dict[str, tuple[str, ...]]:
    """HEG, HVG and all, of the genes that both cohorts measured, ranked by the training cohort.

    Raises
    ------
    GenesError
    """
    ours, theirs = _measured(train), set(_measured(test))
    if theirs.isdisjoint(ours) or are_disjoint(ours, sorted(theirs)):
        hint = explain_no_shared_genes(ours, sorted(theirs))
        raise GenesError.none_shared(train.name, "the test cohort", hint, shared=len(theirs.intersection(ours)))
    ranked = gene_sets(train, config.panel.target_sum, size=_EVERY)
    kept = {name: tuple(gene for gene in genes if gene in theirs) for name, genes in ranked.items()}
    return {name: genes if name == "all" else genes[: config.evaluation.set_size] for name, genes in kept.items()}


class _Renamed:
    """Read a section under another name."""

    def __init__(self, entry: CohortEntry, section: str, patient: str) -> None:
        self._entry, self._section, self._patient = entry, section, patient

    def __call__(self) -> Section:
        return dataclasses.replace(self._entry.load(), name=self._section, patient=self._patient)


def _measured(cohort: Cohort) -> tuple[str, ...]:
    measured = MeasuredGenes()
    for section in cohort:
        measured.add(section)
    return tuple(measured.shared())


def _refuse_twins(train: Cohort, tests: Sequence[Cohort]) -> None:
    """No section may stand on both sides, under whatever name: its picture and counts are compared."""
    seen = {_content(section): section.name for section in train}
    for test in tests:
        twins = [f"section {section.name}" for section in test if _content(section) in seen]
        if twins:
            raise Leakage(f"The cohort {train.name}", twins)


def _content(section: Section) -> str:
    return fingerprint(section.slide.fingerprint(), section.spots.centre_px, section.counts.data)


def _grouping(cohort: Cohort, asked: GroupBy) -> GroupBy:
    return "section" if len(cohort.patients) < 2 else asked


def _rows(test: str, train: str, found: dict[str, Frame]) -> list[dict[str, Any]]:
    keys = ["method", "gene_set", "metric"]
    nothing = float("nan")
    moved = by_patient(found[f"to {test}"])
    own = {name: found.get(f"inside {name}") for name in (test, train)}
    inside = {name: None if scores is None else by_patient(scores) for name, scores in own.items()}
    rows = []
    for key, mine in moved.groupby(keys, sort=False):
        value, low, high = mean_interval(mine["value"].to_numpy())
        scores = {}
        for name, frame in inside.items():
            theirs = None if frame is None else frame[(frame[keys] == list(key)).all(axis=1)]
            scores[name] = nothing if theirs is None else float(theirs["value"].mean())
        drop = (nothing, nothing, nothing)
        frame = inside[test]
        if frame is not None and not math.isnan(scores[test]):
            both = mine.merge(frame, on=[*keys, "patient"], suffixes=("", "_inside"))
            drop = mean_interval((both["value_inside"] - both["value"]).to_numpy())
        rows.append(
            {
                "train": train,
                "test": test,
                **dict(zip(keys, key, strict=True)),
                "transfer": value,
                "low": low,
                "high": high,
                "inside_test": scores[test],
                "drop": drop[0],
                "drop_low": drop[1],
                "drop_high": drop[2],
                "inside_train": scores[train],
                "patients": int(mine["value"].notna().sum()),
                "n_genes": int(mine["n_genes"].sum()),
                "n_undefined": int(mine["n_undefined"].sum()),
            }
        )
    return rows
