"""The protocol: for each fold, everything is learnt from its training sections; then its test sections are scored."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from cmrcnet.errors import NoSharedGenes
from cmrcnet.evaluation.evaluation_run import EvaluationRun
from cmrcnet.evaluation.features import PooledFeatures
from cmrcnet.evaluation.method_registry import chosen_methods, shipped_methods
from cmrcnet.evaluation.methods import MAIN, Method, TrainingData, place_of
from cmrcnet.evaluation.metrics import score_genes, score_sets
from cmrcnet.evaluation.run_folder import Part, RunFolder
from cmrcnet.evaluation.section_memory import remembered, section_fingerprint
from cmrcnet.evaluation.splits import Fold, Unit, folds, patient_disjoint
from cmrcnet.evaluation.stamp import Stamp
from cmrcnet.expression.gene_sets import gene_sets
from cmrcnet.expression.panel import GenePanel, choose_panel
from cmrcnet.recipe import Recipe
from cmrcnet.tissue.section import Cohort, Section

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from cmrcnet.encoding.token_cache import TokenCache

log = logging.getLogger("cmrcnet")

__all__ = ["evaluate", "shipped_methods", "truth_of"]


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
        Names of shipped methods, ``module:object`` for one of your own, or methods themselves. All that ship when
        left out (see `method_registry.shipped_methods`).
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
    TooFew, UnknownName, NotAMethod, CannotResume
    """
    import pandas as pd

    if unit is not None:
        recipe = recipe.override({"evaluation.unit": unit})
    chosen = chosen_methods(methods)
    splits = folds(cohort, recipe.evaluation.unit)
    cohort = remembered(cohort)
    if cache is None:
        from cmrcnet.encoding.token_cache import TokenCache

        cache = TokenCache.default()
    described = _describe(cohort)
    if folder is not None:
        folder.begin({"recipe": recipe.to_dict(), "cohort": described, "version": version("cmrcnet")})

    features = PooledFeatures(recipe, cache)
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
                part = _run(method, data, cohort.only(fold.test))
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
    )
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


def truth_of(section: Section, genes: Sequence[str], target_sum: float | str):
    """Measured log-normalised expression of those of `genes` that the section measured.

    Returns
    -------
    genes : tuple of str
    expression : scipy.sparse.csr_matrix, shape (spots, genes)
        Library sizes are over all genes of the section.
    """
    known = set(section.genes)
    measured = tuple(gene for gene in genes if section.absent_genes == "zero" or gene in known)
    if not measured or known.isdisjoint(measured):
        raise NoSharedGenes(f"Section {section.name}", "the training sections")
    return measured, GenePanel(measured, target_sum, {"kind": "evaluation"}).select(section)


def _run(method: Method, data: TrainingData, test: Cohort) -> Part:
    """Fit one method in one fold, predict its test sections from their slides, and score them."""
    import pandas as pd

    start = time.monotonic()
    predictor = method.fit(data)
    score_rows: list[dict[str, object]] = []
    gene_tables: list[pd.DataFrame] = []
    tables: dict[str, AnnData] = {}
    of_gene: dict[str, str] = {}
    for name, members in data.sets.items():
        for gene in members if name != "all" else ():
            of_gene[gene] = f"{of_gene[gene]} {name}" if gene in of_gene else name
    for section in test:
        prediction = predictor.predict(place_of(section, data.features, method))
        # From here on the truth is known; nothing goes back to the method.
        genes, truth = truth_of(section, data.genes, data.recipe.panel.target_sum)
        table = score_genes(truth, prediction.take(genes), genes)
        head = {"method": method.name, "fold": data.fold.name, "section": section.name, "patient": section.patient}
        score_rows += [head | row for row in score_sets(table, data.sets, data.recipe.evaluation.undefined)]
        table.insert(0, "section", section.name)
        table.insert(0, "method", method.name)
        table["sets"] = [of_gene.get(gene, "") for gene in genes]
        gene_tables.append(table)
        if method.name == MAIN and prediction.table is not None:
            tables[section.name] = prediction.table
    genes_frame = pd.concat(gene_tables, ignore_index=True)
    return Part(pd.DataFrame(score_rows), genes_frame, predictor.record, time.monotonic() - start, tables)


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
