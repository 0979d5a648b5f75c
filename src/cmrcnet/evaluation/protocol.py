"""The protocol: for each fold, everything is learnt from its training sections; then its test sections are scored."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from cmrcnet.errors import BadOption, UnknownName
from cmrcnet.evaluation.baselines import GeneMean, RandomSpots, RidgeOnFeatures
from cmrcnet.evaluation.evaluation_run import EvaluationRun
from cmrcnet.evaluation.features import PooledFeatures
from cmrcnet.evaluation.methods import MAIN, Method, TrainingData, place_of
from cmrcnet.evaluation.retrieval import PermutedPairs, TrainedCMRCNet
from cmrcnet.evaluation.run_folder import Part, RunFolder
from cmrcnet.evaluation.scoring import Scorer
from cmrcnet.evaluation.section_memory import remembered, section_fingerprint
from cmrcnet.evaluation.splits import Fold, Unit, folds, patient_disjoint
from cmrcnet.evaluation.stamp import Stamp
from cmrcnet.expression.gene_sets import gene_sets
from cmrcnet.expression.panel import choose_panel
from cmrcnet.recipe import Recipe
from cmrcnet.tissue.section import Cohort

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from cmrcnet.encoding.token_cache import TokenCache

log = logging.getLogger("cmrcnet")

_SHIPPED = (TrainedCMRCNet, RidgeOnFeatures, GeneMean, RandomSpots, PermutedPairs)


def evaluate(
    cohort: Cohort,
    recipe: Recipe,
    *,
    methods: Sequence[str | Method] | None = None,
    unit: Unit | None = None,
    cache: TokenCache | None = None,
    folder: RunFolder | None = None,
) -> EvaluationRun:
    """Leave each unit out once; learn from the others; predict it from its slide; score it.

    Parameters
    ----------
    cohort : Cohort
    recipe : Recipe
    methods : sequence of names or methods, optional
        All that ship when left out: cmrcnet, ridge, gene-mean, random-k, permuted-pairs.
    unit : {"patient", "section"}, optional
        In place of the recipe's `evaluation.unit`.
    cache : TokenCache, optional
        The user's own by default.
    folder : RunFolder, optional
        Keeps finished parts and the results. Without one all stays in memory.

    Returns
    -------
    EvaluationRun

    Raises
    ------
    TooFew, UnknownName, CannotResume
    """
    import pandas as pd

    if unit is not None:
        recipe = recipe.override({"evaluation.unit": unit})
    chosen = _chosen(methods)
    splits = folds(cohort, recipe.evaluation.unit)
    cohort = remembered(cohort)
    if cache is None:
        from cmrcnet.encoding.token_cache import TokenCache

        cache = TokenCache.default()
    described = _describe(cohort)
    if folder is not None:
        folder.begin({"recipe": recipe.to_dict(), "cohort": described, "version": version("cmrcnet")})

    features = PooledFeatures(recipe, cache)
    scorer = Scorer(
        recipe.panel.target_sum,
        undefined=recipe.evaluation.undefined,
        set_size=recipe.evaluation.set_size,
    )
    parts: dict[tuple[str, str], Part] = {}
    gene_lists: dict[str, dict[str, tuple[str, ...]]] = {}
    tables: dict[str, AnnData] = {}
    for fold in splits:
        training, panel_cohort = cohort.only(fold.train), cohort
        if recipe.panel.sections == "training":
            panel_cohort = training
        panel = choose_panel(panel_cohort, recipe.panel)
        sets = gene_sets(training, panel.target_sum, size=recipe.evaluation.set_size)
        gene_lists[fold.name] = {name: tuple(genes) for name, genes in sets.items() if name != "all"}
        for method in chosen:
            part = folder.part(fold.name, method.name) if folder is not None else None
            if part is None:
                keeps = folder.checkpoints(fold.name, method.name) if folder is not None else None
                data = TrainingData(training, fold, recipe, panel, sets, features, cache, keeps)
                part = _run(method, data, cohort.only(fold.test), scorer)
                if folder is not None:
                    part = folder.keep(fold.name, method.name, part)
            tables |= part.tables
            parts[fold.name, method.name] = part
            _report_progress(fold, method, part)

    scores = pd.concat([part.scores for part in parts.values()], ignore_index=True)
    genes = pd.concat([part.genes for part in parts.values()], ignore_index=True)
    stamp = Stamp(
        unit=recipe.evaluation.unit,
        patients=len(cohort.patients),
        sections=len(cohort),
        folds=len(splits),
        patient_disjoint=patient_disjoint(splits),
        panel_from_all=recipe.panel.sections == "all",
        set_size=recipe.evaluation.set_size,
        undefined=recipe.evaluation.undefined,
    ).counted(genes)
    facts = _facts(cohort, recipe, splits, stamp, chosen, parts, gene_lists, described)
    if folder is not None:
        folder.write_tables(scores, genes, facts)
    return EvaluationRun(
        cohort=cohort,
        recipe=recipe,
        folds=splits,
        stamp=stamp,
        methods={method.name: method.about for method in chosen},
        scores=scores,
        genes=genes,
        predictions=folder.predictions() if folder is not None else tables,
        facts=facts,
    )


def shipped_methods() -> tuple[str, ...]:
    """Names of the methods that come with the package, in the order of the tables."""
    return tuple(method.name for method in _SHIPPED)


def _chosen(methods: Sequence[str | Method] | None) -> list[Method]:
    by_name = {method.name: method for method in _SHIPPED}
    chosen: list[Method] = []
    for method in shipped_methods() if methods is None else methods:
        if isinstance(method, str):
            if method not in by_name:
                raise UnknownName("method", method, shipped_methods())
            method = by_name[method]()
        chosen.append(method)
    names = [method.name for method in chosen]
    if not names or len(set(names)) != len(names):
        raise BadOption("methods", ", ".join(names), "at least one method, each named once")
    return chosen


def _run(method: Method, data: TrainingData, test: Cohort, scorer: Scorer) -> Part:
    """Fit one method in one fold, predict its test sections from their slides, and score them."""
    import pandas as pd

    start = time.monotonic()
    predictor = method.fit(data)
    scores = scorer.begin(data.sets)
    gene_tables: list[pd.DataFrame] = []
    tables: dict[str, AnnData] = {}
    for section in test:
        prediction = predictor.predict(place_of(section, data.features))
        # The truth is known to `scores` alone; nothing goes back to the method.
        gene_tables.append(scores.add(section, prediction))
        if method.name == MAIN and prediction.table is not None:
            tables[section.name] = prediction.table
    rows = [{"method": method.name, "fold": data.fold.name} | row for row in scores.rows()]
    genes = pd.concat(gene_tables, ignore_index=True)
    genes.insert(0, "method", method.name)
    return Part(pd.DataFrame(rows), genes, predictor.record, time.monotonic() - start, tables)


def _report_progress(fold: Fold, method: Method, part: Part) -> None:
    hvg = part.scores[(part.scores.gene_set == "HVG") & (part.scores.metric == "pearson")]["value"].mean()
    log.info("fold %s, %s: HVG Pearson %.3f (%.0f s)", fold.name, method.name, hvg, part.seconds)


def _describe(cohort: Cohort) -> list[dict[str, Any]]:
    """One row a section: what it holds, by fingerprint, and what its reader noticed."""
    return [
        {
            "section": section.name,
            "patient": section.patient,
            "spots": len(section.spots),
            "genes": len(section.genes),
            "um_per_px": section.slide.um_per_px,
            "fingerprint": section_fingerprint(section),
            "notes": list(section.notes),
            "facts": dict(section.facts),
        }
        for section in cohort
    ]


def _facts(
    cohort: Cohort,
    recipe: Recipe,
    splits: tuple[Fold, ...],
    stamp: Stamp,
    chosen: list[Method],
    parts: dict[tuple[str, str], Part],
    gene_lists: dict[str, dict[str, tuple[str, ...]]],
    described: list[dict[str, Any]],
) -> dict[str, Any]:
    """All that `run.json` says."""
    libraries = ("cmrcnet", "torch", "timm", "numpy", "scipy", "scikit-learn", "scanpy", "anndata")
    return {
        "cohort": {"name": cohort.name, "sections": described},
        "recipe": recipe.to_dict(),
        "seed": recipe.train.seed,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in libraries},
        "stamp": {**vars(stamp), "warnings": list(stamp.warnings)},
        "folds": [
            {
                "name": fold.name,
                "train": list(fold.train),
                "test": list(fold.test),
                "patient_disjoint": fold.patient_disjoint,
                "gene_sets": {name: list(genes) for name, genes in gene_lists[fold.name].items()},
            }
            for fold in splits
        ],
        "methods": [{"name": method.name, "about": method.about} for method in chosen],
        "parts": [
            {"fold": fold, "method": method, "seconds": round(part.seconds, 2), "record": part.record}
            for (fold, method), part in parts.items()
        ],
    }
