"""Train on one cohort and test on another, with the scores inside each cohort beside it, and the drop.

Everything is scored on genes that both cohorts measured. HEG and HVG are chosen on the training cohort, for the
transfer and for the test cohort's own score alike, so that the drop compares the same genes of the same sections.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from cmrcnet.config import Config
from cmrcnet.errors import Leakage, SectionError, TooFew
from cmrcnet.evaluation import Frame
from cmrcnet.evaluation.methods import chosen_methods
from cmrcnet.evaluation.methods.method import MAIN, Method
from cmrcnet.evaluation.metrics.intervals import by_patient
from cmrcnet.evaluation.protocol.evaluate import describe
from cmrcnet.evaluation.protocol.experiment import Experiment, seeds_of
from cmrcnet.evaluation.protocol.fold_runner import remembered
from cmrcnet.evaluation.protocol.folds import Fold, GroupBy, folds
from cmrcnet.evaluation.protocol.protocol_info import Sets
from cmrcnet.evaluation.report.summary import number
from cmrcnet.evaluation.sweep.run_sweep import SweepFolder, run_trials
from cmrcnet.genes.gene_sets import MeasuredGenes, gene_sets
from cmrcnet.genes.mean_interval import mean_interval
from cmrcnet.genes.naming import are_disjoint, explain_no_shared_genes
from cmrcnet.genes.scaling import fit_scaling
from cmrcnet.slides.section import Cohort, CohortEntry, Section
from cmrcnet.storage.hashing import fingerprint
from cmrcnet.workers import WorkerOptions, Workers

if TYPE_CHECKING:
    from cmrcnet.storage.cache import TokenCache

_EVERY = 10**9


class TransferFolder(SweepFolder):
    """The folder of one transfer; see `SweepFolder`."""

    last = "transfer.json"


@dataclass(frozen=True, eq=False)
class TransferRun:
    """A finished transfer.

    Parameters
    ----------
    table : pandas.DataFrame
        One row a test cohort, method, gene set and metric: the `transfer` score with its interval over patients, the
        score inside the test cohort (`inside_test`), inside the training cohort (`inside_train`), and the paired
        `drop` from inside the test cohort to the transfer. `n_genes` counts gene-section pairs.
    """

    table: Frame
    metadata: dict[str, Any]  # content of `transfer.json`

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
    workers: Workers | WorkerOptions = 1,
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

    Raises
    ------
    SectionError
        With the reason: Ensembl ids against symbols, another species.
    Leakage
        A test section is a training section under whatever name.
    TooFew, Incompatible, WorkerDied
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

    def experiment(fold_list: tuple[Fold, ...], group: GroupBy, sets: Sets | None) -> Experiment:
        here = config.override({"evaluation.group_by": group})
        return Experiment(here, chosen, fold_list, seeds_of(here, seeds), "strict", None, sets, tables=False)

    group = config.evaluation.group_by
    wanted: dict[str, Experiment] = {}
    for name, side in sides.items():
        own = "section" if len(side.patients) < 2 else group
        if len(side.sections if own == "section" else side.patients) > 1:
            wanted[f"inside {name}"] = experiment(folds(side, own), own, scored.get(name))
    for name in rest:
        test = sides[name]
        fold = Fold(name, sides[first].sections, test.sections, test.patients, patient_disjoint=True)
        wanted[f"to {name}"] = experiment((fold,), group, scored[name])
    found = {name: run[0] for name, run in run_trials(wanted, cohort, described, folder, cache, workers).items()}
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
                mine.append(CohortEntry(section, patient, partial(_read_as, entry, section, patient), entry.metadata))
        entries += mine
        members[name] = tuple(entry.section for entry in mine)
    return Cohort(train.name, tuple(entries)), members


def shared_sets(train: Cohort, test: Cohort, config: Config) -> dict[str, tuple[str, ...]]:
    """HEG, HVG and all, of the genes that both cohorts measured, ranked by the training cohort."""
    shared = []
    for cohort in (train, test):
        measured = MeasuredGenes()
        for section in cohort:
            measured.add(section)
        shared.append(measured.shared())
    ours, theirs = shared[0], set(shared[1])
    if theirs.isdisjoint(ours) or are_disjoint(ours, sorted(theirs)):
        hint = explain_no_shared_genes(ours, sorted(theirs))
        raise SectionError.none_shared(train.name, "the test cohort", hint, shared=len(theirs.intersection(ours)))
    ranked = gene_sets(train, fit_scaling(train, config.panel), size=_EVERY)
    kept = {name: tuple(gene for gene in genes if gene in theirs) for name, genes in ranked.items()}
    return {name: genes if name == "all" else genes[: config.evaluation.set_size] for name, genes in kept.items()}


def _read_as(entry: CohortEntry, section: str, patient: str) -> Section:
    """Read a section under another name."""
    return dataclasses.replace(entry.load(), name=section, patient=patient)


def _refuse_twins(train: Cohort, tests: Sequence[Cohort]) -> None:
    """No section may stand on both sides, under whatever name: its picture and counts are compared."""
    trained_on: set[str] = set()
    for cohort in (train, *tests):
        content = {
            section.name: fingerprint(section.slide.fingerprint(), section.spots.centre_px, section.counts.data)
            for section in cohort
        }
        if twins := [f"section {name}" for name, found in content.items() if found in trained_on]:
            raise Leakage(f"The cohort {train.name}", twins)
        if cohort is train:
            trained_on.update(content.values())


def _rows(test: str, train: str, found: dict[str, Frame]) -> list[dict[str, Any]]:
    keys = ["method", "gene_set", "metric"]
    nothing = float("nan")
    moved = by_patient(found[f"to {test}"])
    inside = {name: by_patient(found[f"inside {name}"]) for name in (test, train) if f"inside {name}" in found}
    rows = []
    for key, mine in moved.groupby(keys, sort=False):
        scores = dict.fromkeys((test, train), nothing)
        for name, frame in inside.items():
            scores[name] = float(frame[(frame[keys] == list(key)).all(axis=1)]["value"].mean())
        drop = (nothing, nothing, nothing)
        if not math.isnan(scores[test]):
            both = mine.merge(inside[test], on=[*keys, "patient"], suffixes=("", "_inside"))
            drop = mean_interval((both["value_inside"] - both["value"]).to_numpy())
        rows.append(
            {
                "train": train,
                "test": test,
                **dict(zip(keys, key, strict=True)),
                **dict(zip(("transfer", "low", "high"), mean_interval(mine["value"].to_numpy()), strict=True)),
                "inside_test": scores[test],
                **dict(zip(("drop", "drop_low", "drop_high"), drop, strict=True)),
                "inside_train": scores[train],
                "patients": int(mine["value"].notna().sum()),
                "n_genes": int(mine["n_genes"].sum()),
                "n_undefined": int(mine["n_undefined"].sum()),
            }
        )
    return rows
