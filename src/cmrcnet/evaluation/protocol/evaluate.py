"""Evaluate a cohort: for each fold, everything is learnt from its training sections; then its test sections are scored.

``strict`` fixes the scored genes on the training sections. ``paper`` scores as published studies do, so that their
numbers can be compared with ours: one section is held out at a time, HEG and HVG are those of the test truth, and the
gene panel is chosen on all sections; every table says so.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from cmrcnet.config import Config
from cmrcnet.evaluation import Frame
from cmrcnet.evaluation.methods import chosen_methods
from cmrcnet.evaluation.methods.method import Method
from cmrcnet.evaluation.metrics.intervals import genes_over_seeds, over_patients
from cmrcnet.evaluation.protocol.experiment import Experiment, Key, seeds_of
from cmrcnet.evaluation.protocol.fold_runner import remembered, section_fingerprint
from cmrcnet.evaluation.protocol.folds import Fold, GroupBy, folds, only_folds
from cmrcnet.evaluation.protocol.protocol_info import ProtocolInfo, ProtocolName, protocol_named
from cmrcnet.evaluation.protocol.run_folder import FoldResult, RunFolder
from cmrcnet.evaluation.protocol.runner import run_experiments
from cmrcnet.evaluation.report.summary import methods_to_text, summary
from cmrcnet.slides.section import Cohort
from cmrcnet.storage.cache import TokenCache
from cmrcnet.workers import WorkerOptions, Workers

if TYPE_CHECKING:
    from anndata import AnnData

_LIBRARIES = ("cmrcnet", "torch", "timm", "numpy", "scipy", "scikit-learn", "scanpy", "anndata")


@dataclass(frozen=True, eq=False)
class EvaluationRun:
    """A finished evaluation.

    Parameters
    ----------
    protocol_info : ProtocolInfo
        How it was scored.
    methods : dict of str to str
        Name and one sentence of each method, in the order of the tables.
    scores : pandas.DataFrame
        `method, fold, section, patient, gene_set, metric, value, n_genes, n_undefined, seed`.
    genes : pandas.DataFrame
        `method, section, gene, pearson, mse, mean, variance, detected, sets, ceiling`; mean, variance and the share of
        spots where the gene was detected are the truth's; the ceiling is the best Pearson that its noise allows. Means
        over seeds. Every gene of CMRCNet (of the first method, where it was not run); of the others the genes of named
        sets, so that the file stays small.
    predictions : mapping of str to AnnData
        CMRCNet's prediction table of each section.
    metadata : dict
        Content of `run.json`.
    """

    cohort: Cohort
    config: Config
    folds: tuple[Fold, ...]
    protocol_info: ProtocolInfo
    methods: dict[str, str]
    scores: Frame
    genes: Frame
    predictions: Mapping[str, AnnData]
    metadata: dict[str, Any] = field(repr=False)

    def means(self) -> Frame:
        """Return the mean over patients of each method, gene set and metric."""
        return over_patients(self.scores)

    def mean(self, method: str, gene_set: str = "HVG", metric: str = "pearson") -> float:
        """Return one mean over patients; nan when it is undefined or was not run."""
        table = self.means()
        found = table[(table.method == method) & (table.gene_set == gene_set) & (table.metric == metric)]
        return float(found["value"].iloc[0]) if len(found) else float("nan")

    def to_text(self) -> str:
        """Return the table of methods as plain text, how it was scored, and a summary."""
        return f"{methods_to_text(self)}\n{self.protocol_info.to_text()}\n{summary(self)}"

    def time_to_text(self) -> str:
        """Return each method's share of the time as plain text, the longest first."""
        time = self.metadata["time"]
        rows = sorted(time["methods"].items(), key=lambda row: -row[1]["seconds"])
        width = max(len(name) for name, _ in rows)
        lines = [f"  {name:{width}}  {row['seconds']:8.1f} s  {row['share']:4.0%}" for name, row in rows]
        head = f"Time: features {time['features_s']:.1f} s, then {time['tasks_s']:.1f} s of tasks (in parallel less):"
        return "\n".join([head, *lines])


def evaluate(
    cohort: Cohort,
    config: Config,
    *,
    methods: Sequence[str | Method] | None = None,
    protocol: ProtocolName = "strict",
    group_by: GroupBy | None = None,
    seeds: int = 1,
    only: Sequence[str] | None = None,
    workers: Workers | WorkerOptions = 1,
    cache: TokenCache | None = None,
    folder: RunFolder | None = None,
) -> EvaluationRun:
    """Hold out each group once; learn from the others; predict it from its slide; score it.

    Parameters
    ----------
    cohort : Cohort
    config : Config
    methods : sequence of names or methods, optional
        Names of shipped methods, ``module:object`` for one of your own, or methods themselves. All that ship when
        left out (see `methods.shipped_methods`).
    protocol : {"strict", "paper"}
    group_by : {"patient", "section"}, optional
        What each fold holds out, in place of the config's `evaluation.group_by`.
    seeds : int
        Everything is run with the config's seed and the ones that follow it; scores are means over seeds first.
    only : sequence of str, optional
        Names of the folds to run; all when left out.
    workers : int, "auto" or WorkerOptions
        Number of processes of this machine, or a Ray cluster; 1 runs everything in this process. In a script, more
        than one needs the usual
        ``if __name__ == "__main__":``. The scores do not depend on it.
    cache : TokenCache, optional
        The user's own by default.
    folder : RunFolder, optional
        Keeps finished results. Without one everything stays in memory.

    Returns
    -------
    EvaluationRun

    Raises
    ------
    TooFew, UnknownName, BadOption, Incompatible, WorkerDied

    Examples
    --------
    >>> import tempfile
    >>> from cmrcnet import Config, TokenCache, evaluate, synthetic_cohort
    >>> cohort = synthetic_cohort(patients=2, spots=20, genes=40)
    >>> config = Config.load("tiny").override({"panel.n_hvg": 10, "evaluation.set_size": 5})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = evaluate(cohort, config, methods=["gene-mean"], cache=TokenCache(folder))
    >>> run.mean("gene-mean", "HVG", "mse") > 0
    True
    """
    config = protocol_named(protocol).apply(config, group_by)
    cohort = remembered(cohort)
    every = folds(cohort, config.evaluation.group_by)
    experiment = Experiment(
        config,
        tuple(chosen_methods(methods)),
        only_folds(every, only),
        seeds_of(config, seeds),
        protocol,
        folder,
        all_folds=len(every),
    )
    described = describe(cohort)
    begin(experiment, described)
    ((_, results, features_s),) = run_experiments([experiment], cohort, cache or TokenCache.default(), workers)
    return collect(cohort, experiment, results, described, features_s)


def describe(cohort: Cohort) -> list[dict[str, Any]]:
    """Describe each section: content fingerprint, sizes, scale, and notes of its reader."""
    return [
        {
            "section": section.name,
            "patient": section.patient,
            "spots": len(section.spots),
            "genes": len(section.genes),
            "table_kind": section.table_kind,
            "mpp": section.slide.mpp,
            "fingerprint": section_fingerprint(section),
            "notes": list(section.notes),
            "metadata": dict(section.metadata),
        }
        for section in cohort
    ]


def begin(experiment: Experiment, described: list[dict[str, Any]]) -> None:
    """Open the experiment's folder; an interrupted run is only continued when it was the same (see `describe`)."""
    if experiment.folder is None:
        return
    identity = {
        "config": experiment.config.to_dict(),
        "protocol": experiment.protocol,
        "cohort": described,
        "version": version("cmrcnet"),
    }
    if experiment.scored is not None:
        identity["gene sets"] = {name: list(genes) for name, genes in experiment.scored.items()}
    experiment.folder.begin(identity)


def collect(
    cohort: Cohort,
    experiment: Experiment,
    results: dict[Key, FoldResult],
    described: list[dict[str, Any]],
    features_s: float,
) -> EvaluationRun:
    """Combine the results of an experiment (see `run_experiments`) whose folds are planned, and write its tables."""
    import pandas as pd

    config, folder = experiment.config, experiment.folder
    scores = pd.concat([result.scores for result in results.values()], ignore_index=True)
    kept = [
        result.genes if experiment.every_gene(method) else result.genes[result.genes["sets"] != ""]
        for (_, method, _), result in results.items()
    ]  # a resumed run may have kept more genes than this one asks for
    genes = genes_over_seeds(pd.concat(kept, ignore_index=True), len(experiment.seeds))
    tested = [section for fold in experiment.folds for section in fold.test]
    scaling = next(iter(experiment.plans.values())).panel.scaling
    info = ProtocolInfo(
        group_by=config.evaluation.group_by,
        patients=len(cohort.only(tested).patients),
        sections=len(tested),
        folds=len(experiment.folds),
        patient_disjoint=all(fold.patient_disjoint for fold in experiment.folds),
        panel_from_all=config.panel.sections == "all",
        set_size=config.evaluation.set_size,
        undefined=config.evaluation.undefined,
        protocol=experiment.protocol,
        seeds=len(experiment.seeds),
        all_folds=experiment.all_folds if experiment.all_folds != len(experiment.folds) else None,
        sets_from=protocol_named(experiment.protocol).sets_from,
        table_kind=scaling.kind,
        units="" if scaling.logs else scaling.units,
    ).counted(genes)
    metadata = _metadata(cohort, experiment, info, results, described, features_s)
    tables = {section: table for result in results.values() for section, table in result.tables.items()}
    if folder is not None:
        labels = [
            {"fold": fold.name, "section": section, "patient": cohort.patient_of(section), "label": label}
            for fold in experiment.folds
            for label, sections in (("train", fold.train), ("test", fold.test))
            for section in sections
        ]
        folder.write_tables(scores, genes, metadata, pd.DataFrame(labels))
    return EvaluationRun(
        cohort=cohort,
        config=config,
        folds=experiment.folds,
        protocol_info=info,
        methods={method.name: method.about for method in experiment.methods},
        scores=scores,
        genes=genes,
        predictions=tables if folder is None else folder.predictions(),
        metadata=metadata,
    )


def _metadata(
    cohort: Cohort,
    experiment: Experiment,
    info: ProtocolInfo,
    results: dict[Key, FoldResult],
    described: list[dict[str, Any]],
    features_s: float,
) -> dict[str, Any]:
    """Content of `run.json`.

    Seconds of a method are those of fitting, predicting and scoring, added up over folds and seeds; in parallel they
    take less of the clock. Training counts for the method that needs it first.
    """
    seconds: dict[str, float] = {}
    for (_, method, _), result in results.items():
        seconds[method] = seconds.get(method, 0.0) + result.seconds
    total = sum(seconds.values())
    return {
        "cohort": {"name": cohort.name, "sections": described},
        "config": experiment.config.to_dict(),
        "protocol": experiment.protocol,
        "seed": experiment.seeds[0],
        "seeds": list(experiment.seeds),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES},
        "protocol_info": {**vars(info), "warnings": list(info.warnings)},
        "folds": [
            {
                "name": fold.name,
                "train": list(fold.train),
                "test": list(fold.test),
                "patient_disjoint": fold.patient_disjoint,
                "gene_sets": {
                    name: list(genes) for name, genes in experiment.plans[fold.name].scored.items() if name != "all"
                },
            }
            for fold in experiment.folds
        ],
        "methods": [{"name": method.name, "about": method.about} for method in experiment.methods],
        "results": [
            {"fold": fold, "method": method, "seed": seed, "seconds": round(result.seconds, 2), "record": result.record}
            for (fold, method, seed), result in results.items()
        ],
        "time": {
            "features_s": round(features_s, 2),
            "tasks_s": round(total, 2),
            "methods": {
                name: {"seconds": round(s, 2), "share": round(s / (total or 1.0), 4)} for name, s in seconds.items()
            },
        },
    }
