"""The protocol: for each fold, everything is learnt from its training sections; then its test sections are scored.

``strict`` fixes the scored genes on the training sections. ``paper`` does what published studies do, so that their
numbers can be set beside ours: one section is left out at a time, HEG and HVG are those of the test truth, and the gene
panel is chosen on all sections; every table is stamped with it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from cmrcnet.config import Config
from cmrcnet.errors import BadOption
from cmrcnet.evaluation.methods.method import Method
from cmrcnet.evaluation.methods.method_registry import chosen_methods
from cmrcnet.evaluation.metrics.seeds import genes_over_seeds
from cmrcnet.evaluation.protocol.evaluation_run import EvaluationRun
from cmrcnet.evaluation.protocol.experiment import Key, Study, only_folds, seeds_of
from cmrcnet.evaluation.protocol.folds import Unit, folds, patient_disjoint
from cmrcnet.evaluation.protocol.protocol_info import Stamp
from cmrcnet.evaluation.protocol.run_folder import Part, RunFolder
from cmrcnet.evaluation.protocol.run_metadata import describe, run_facts, shares_of_time
from cmrcnet.evaluation.protocol.runner import run_studies
from cmrcnet.evaluation.protocol.scoring_protocol import ProtocolName, protocol_named
from cmrcnet.evaluation.protocol.section_memory import remembered
from cmrcnet.evaluation.protocol.threads import Workers
from cmrcnet.slides.section import Cohort

if TYPE_CHECKING:
    import pandas as pd

    from cmrcnet.storage.cache import TokenCache

log = logging.getLogger("cmrcnet")


def evaluate(
    cohort: Cohort,
    config: Config,
    *,
    methods: Sequence[str | Method] | None = None,
    protocol: ProtocolName = "strict",
    unit: Unit | None = None,
    seeds: int = 1,
    only: Sequence[str] | None = None,
    workers: Workers = 1,
    cache: TokenCache | None = None,
    folder: RunFolder | None = None,
) -> EvaluationRun:
    """Leave each unit out once; learn from the others; predict it from its slide; score it.

    Parameters
    ----------
    cohort : Cohort
    config : Config
    methods : sequence of names or methods, optional
        Names of shipped methods, ``module:object`` for one of your own, or methods themselves. All that ship when
        left out (see `method_registry.shipped_methods`).
    protocol : {"strict", "paper"}
    unit : {"patient", "section"}, optional
        In place of the config's `evaluation.group_by`.
    seeds : int
        Everything is run with the config's seed and the ones that follow it; scores are means over seeds first.
    only : sequence of str, optional
        Names of the folds to run; all when left out.
    workers : int or "auto"
        Processes side by side; one runs everything here. In a script, more than one needs the usual
        ``if __name__ == "__main__":``. The scores do not depend on it (see `threads`).
    cache : TokenCache, optional
        The user's own by default.
    folder : RunFolder, optional
        Keeps finished parts and the results. Without one all stays in memory.

    Returns
    -------
    EvaluationRun

    Raises
    ------
    TooFew, UnknownName, BadOption, CannotResume, WorkerDied
    """
    config = under_protocol(config, protocol, unit)
    cohort = remembered(cohort)
    every = folds(cohort, config.evaluation.group_by)
    run_folds, run_seeds = only_folds(every, only), seeds_of(config, seeds)
    shelf = None if folder is None else folder.shelf()
    study = Study(config, tuple(chosen_methods(methods)), run_folds, run_seeds, protocol, folder, shelf=shelf)
    described = describe(cohort)
    begin(study, described)
    ((_, parts, features_s),) = run_studies([study], cohort, cache or _default_cache(), workers)
    return collect(cohort, study, parts, described, features_s, len(every))


def under_protocol(config: Config, protocol: ProtocolName, unit: Unit | None = None) -> Config:
    """The config as a protocol runs it.

    Parameters
    ----------
    config : Config
    protocol : {"strict", "paper"}
        paper: a section is left out, and the panel is chosen on all sections.
    unit : {"patient", "section"}, optional

    Raises
    ------
    UnknownName
    BadOption
        Patients left out under `paper`.
    """
    rules = protocol_named(protocol)
    if "evaluation.group_by" in rules.settings and unit == "patient":
        raise BadOption("unit", unit, f"section, or nothing, with the protocol {protocol}")
    return rules.apply(config if unit is None else config.override({"evaluation.group_by": unit}))


def begin(study: Study, described: list[dict[str, Any]]) -> None:
    """Open the study's folder; an interrupted run is gone on with only when it was the same."""
    if study.folder is None:
        return
    identity = {
        "config": study.config.to_dict(),
        "protocol": study.protocol,
        "cohort": described,
        "version": version("cmrcnet"),
    }
    if study.scored is not None:
        identity["gene sets"] = {name: list(genes) for name, genes in study.scored.items()}
    study.folder.begin(identity)


def collect(
    cohort: Cohort,
    study: Study,
    parts: dict[Key, Part],
    described: list[dict[str, Any]],
    features_s: float,
    all_folds: int,
) -> EvaluationRun:
    """Put the parts of a study together, and write its tables.

    Parameters
    ----------
    cohort : Cohort
    study : Study
    parts : dict
    described : list
        From `facts.describe`.
    features_s : float
        Seconds spent on features.
    all_folds : int
        Folds that there are.
    """
    import pandas as pd

    config = study.config
    scores = pd.concat([part.scores for part in parts.values()], ignore_index=True)
    genes = pd.concat([_genes(study, key, part) for key, part in parts.items()], ignore_index=True)
    genes = genes_over_seeds(genes, len(study.seeds))
    tested = [section for fold in study.folds for section in fold.test]
    stamp = Stamp(
        unit=config.evaluation.group_by,
        patients=len(cohort.only(tested).patients),
        sections=len(tested),
        folds=len(study.folds),
        patient_disjoint=patient_disjoint(study.folds),
        panel_from_all=config.panel.sections == "all",
        set_size=config.evaluation.set_size,
        undefined=config.evaluation.undefined,
        protocol=study.protocol,
        seeds=len(study.seeds),
        all_folds=all_folds if all_folds != len(study.folds) else None,
        sets_from=protocol_named(study.protocol).sets_from,
    ).counted(genes)
    facts = run_facts(cohort, study, stamp, parts, described, shares_of_time(parts, features_s))
    tables = {section: table for part in parts.values() for section, table in part.tables.items()}
    if study.folder is not None:
        study.folder.write_tables(scores, genes, facts)
    return EvaluationRun(
        cohort=cohort,
        config=config,
        folds=study.folds,
        stamp=stamp,
        methods={method.name: method.about for method in study.methods},
        scores=scores,
        genes=genes,
        predictions=study.folder.predictions() if study.folder is not None else tables,
        facts=facts,
    )


def _genes(study: Study, key: Key, part: Part) -> pd.DataFrame:
    """A part's genes; only those of named sets where the part kept more than this run asks for."""
    whole = study.tables and key[1] == study.lead
    return part.genes if whole else part.genes[part.genes["sets"] != ""]


def _default_cache() -> TokenCache:
    from cmrcnet.storage.cache import TokenCache

    return TokenCache.default()
