"""How well are tables other than gene counts predicted: planted ones, and ones derived from real counts?

    python benchmarks/any_table.py als/cohort.csv:patient her2st/cohort.csv:section --planted 6 --out any_table.json

Planted tables (`datasets.synthetic_tables`) have a known answer: beside each score stands the oracle, the correlation
of the noiseless truth with the same measurement. Derived tables are computed spot by spot from the counts of a real
section, from nothing else: cell-type proportions by non-negative least squares (scipy) on marker profiles of the
package, and activities of its signatures by `scanpy.tl.score_genes`. Each is held out by patient or section, as said
behind the cohort, with ridge on the same features, the gene mean and the permuted null beside. Tables that OUT holds
already are left as they are.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import sparse
from scipy.optimize import nnls

import cmrcnet
from cmrcnet.config import Config
from cmrcnet.datasets.synthetic_tables import plant_table, planted_slides
from cmrcnet.evaluation.methods.attention_pooling import ATTENTION_POOLING
from cmrcnet.evaluation.methods.baseline_training import BaselineInputs
from cmrcnet.evaluation.methods.retrieval_baselines import TowerMethod, Towers
from cmrcnet.evaluation.metrics.intervals import intervals, paired_differences
from cmrcnet.evaluation.protocol.evaluate import EvaluationRun
from cmrcnet.genes.markers import MarkerList, markers, organ_of_cohort
from cmrcnet.genes.scaling import normalize
from cmrcnet.genes.spatial_stats import pearson_per_gene
from cmrcnet.slides.section import Cohort, Section

MEAN_POOLING = replace(
    ATTENTION_POOLING, name="mean-pooling", about="the same towers on means", build=Towers, inputs=BaselineInputs
)
METHODS = ["cmrcnet", "ridge", "gene-mean", "permuted-pairs"]
CELL_TYPES = {
    "spinal cord": ("motor_neurons", "dorsal_horn", "oligodendrocytes", "astrocytes", "microglia"),
    "breast": (
        "epithelium",
        "adipose",
        "t_cells",
        "b_cells",
        "macrophages",
        "plasma_cells",
        "fibroblasts",
        "endothelium",
    ),
}


def proportions(section: Section, chosen: MarkerList) -> Section:
    """Cell-type proportions: markers per 10,000 counts, each by its section mean, as a non-negative sum of profiles.

    A profile is 1 at the markers of its type and 0 elsewhere. Spots in which no marker was counted are left out.
    """
    types = {name: chosen.measured(section.genes).get(name, ()) for name in CELL_TYPES[chosen.organ]}
    genes = list(dict.fromkeys(gene for of_type in types.values() for gene in of_type))
    column = {gene: number for number, gene in enumerate(section.genes)}
    per_10k = np.expm1(normalize(section.counts)[:, [column[gene] for gene in genes]].toarray().astype(np.float64))
    usual = per_10k.mean(axis=0)
    level = per_10k / np.where(usual > 0, usual, 1)
    profiles = np.array([[gene in of_type for of_type in types.values()] for gene in genes], float)
    found = np.array([nnls(profiles, spot)[0] for spot in level])
    kept = np.flatnonzero(found.sum(axis=1) > 0)
    shares = found[kept] / found[kept].sum(axis=1, keepdims=True)
    return as_table(section.take(kept), shares, tuple(types), "proportions")


def activities(section: Section, chosen: MarkerList) -> Section:
    """Activity of each signature: mean log-expression of its genes less that of control genes (Tirosh et al. 2016)."""
    import anndata
    import pandas as pd
    import scanpy

    table = anndata.AnnData(normalize(section.counts), var=pd.DataFrame(index=list(section.genes)))
    signatures = {name: list(genes) for name, genes in chosen.measured(section.genes).items() if len(genes) > 1}
    for name, genes in signatures.items():
        scanpy.tl.score_genes(table, genes, score_name=name, random_state=0)
    return as_table(section, table.obs[list(signatures)].to_numpy(), tuple(signatures), "continuous")


def as_table(section: Section, values: np.ndarray, names: tuple[str, ...], kind: str) -> Section:
    """A section with a table in place of its counts."""
    counts = sparse.csr_matrix(values.astype(np.float32))
    return replace(section, counts=counts, genes=names, absent_genes="unmeasured", table_kind=kind)


def scored(cohort: Cohort, config: Config, more: tuple[TowerMethod, ...] = ()) -> tuple[dict, EvaluationRun]:
    """Mean Pearson of every method over all features, and the differences from the first."""
    start = time.monotonic()
    names = [*METHODS, *(method.name for method in more)]
    run = cmrcnet.evaluate(cohort, config, methods=[*METHODS, *more])
    means = intervals(run.scores, "all").set_index("method")
    gaps = paired_differences(run.scores, "cmrcnet", "all").set_index("other")
    found = {
        "features": len(run.cohort.read(run.cohort.sections[0]).genes),
        "sections": len(cohort),
        "patients": len(cohort.patients),
        "spots": sum(len(section.spots) for section in cohort),
        "units": run.protocol_info.units,
        "pearson": {name: round3(means.loc[name, ["value", "low", "high"]]) for name in names},
        "cmrcnet minus": {name: round3(gaps.loc[name, ["difference", "low", "high"]]) for name in names[1:]},
        "seconds": round(time.monotonic() - start),
    }
    mine = run.genes[run.genes.method == "cmrcnet"].groupby("gene", sort=False).pearson.mean()
    return found | {"by feature": {name: round(float(value), 3) for name, value in mine.items()}}, run


def planted(patients: int, spots: int, kind: str, config: Config) -> dict:
    """Scores of a planted table, of linked and silent features, and the oracle's."""
    made = [plant_table(section, kind) for section in cmrcnet.synthetic_cohort(patients=patients, spots=spots, seed=5)]
    found, run = scored(Cohort.of([each.section for each in made], f"planted {kind}"), config)
    linked = dict(zip(made[0].section.genes, made[0].linked.tolist(), strict=True))
    scaling = cmrcnet.choose_panel(run.cohort, config.panel).scaling
    oracle = [
        np.nanmean(pearson_per_gene(scaling.expression(each.section).toarray(), each.truth)[each.linked])
        for each in made
    ]
    rows = run.genes.assign(linked=run.genes.gene.map(linked))
    of = rows.groupby(["method", "linked"]).pearson.mean()
    found["linked"] = dict(zip(METHODS, round3(of.get((name, True), np.nan) for name in METHODS), strict=True))
    found["silent"] = dict(zip(METHODS, round3(of.get((name, False), np.nan) for name in METHODS), strict=True))
    return found | {"oracle of linked": round(float(np.mean(oracle)), 3)}


def of_slides(slides: int, spots: int, where: Literal["everywhere", "tumour"], config: Config) -> dict:
    """Scores of a planted table with one row a slide, of linked and silent features, and the oracle's."""
    cohort, truth = planted_slides(slides=slides, spots=spots, where=where)
    found, run = scored(cohort, config, (ATTENTION_POOLING, MEAN_POOLING))
    linked = np.abs(truth).sum(axis=0) > 0
    names = dict(zip(cohort.read("G1").genes, linked.tolist(), strict=True))
    of = run.genes.assign(linked=run.genes.gene.map(names)).groupby(["method", "linked"]).pearson.mean()
    for name in (True, False):
        found["linked" if name else "silent"] = dict(
            zip(run.methods, round3(of.get((method, name), np.nan) for method in run.methods), strict=True)
        )
    starts = np.cumsum([0, *(len(section.spots) for section in cohort)])
    oracle = [
        pearson_per_gene(section.counts.toarray(), truth[start : start + len(section.spots)])[linked].mean()
        for section, start in zip(cohort, starts[:-1], strict=True)
    ]
    return found | {"slides": slides, "oracle of linked": round(float(np.mean(oracle)), 3)}


def round3(values: Iterable[float]) -> list[float | None]:
    """Three decimals; None for NaN."""
    return [None if value != value else round(float(value), 3) for value in values]


def main() -> None:
    """Measure, and write JSON after every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohorts", nargs="*", help="cohort.csv:patient or cohort.csv:section")
    parser.add_argument("--planted", type=int, default=0, help="patients of the planted cohorts")
    parser.add_argument("--spots", type=int, default=150)
    parser.add_argument("--slides", type=int, default=0, help="slides of the planted table with one row a slide")
    parser.add_argument("--set", nargs="*", default=[], help="options of the config: train.epochs=15")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    config = Config.load("default").override(dict(each.split("=", 1) for each in given.set))
    results = json.loads(given.out.read_text(), parse_constant=lambda _: None) if given.out.exists() else {}

    def keep(name: str, measure: Callable[[], dict]) -> None:
        if name in results:
            return
        results[name] = found = measure()
        given.out.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
        print(name, json.dumps(found["pearson"]), found["seconds"], "s", flush=True)

    for each in given.cohorts:
        path, _, group_by = each.rpartition(":")
        cohort = cmrcnet.read_cohort(path)
        chosen = markers(organ_of_cohort(cohort))
        held_out = config.override({"evaluation.group_by": group_by})
        for name, derive in (("proportions", proportions), ("activities", activities)):
            tables = Cohort.of([derive(section, chosen) for section in cohort], f"{cohort.name}, {name}")
            keep(
                f"{cohort.name} {name}, by {group_by}", lambda cohort=tables, config=held_out: scored(cohort, config)[0]
            )
    for kind in ("continuous", "proportions", "binary") if given.planted else ():
        keep(f"planted {kind}", partial(planted, given.planted, given.spots, kind, config))
    for where in ("everywhere", "tumour") if given.slides else ():
        title = f"planted {where}, one row a slide, {given.slides} slides"
        keep(title, partial(of_slides, given.slides, 16, where, config))


if __name__ == "__main__":
    main()
