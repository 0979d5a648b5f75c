"""The result of a run as plain text: a summary in a few sentences, and the table of methods."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cmrcnet.evaluation.methods.method import MAIN
from cmrcnet.evaluation.methods.trained_cmrcnet import kept_reading
from cmrcnet.evaluation.protocol.protocol_info import FEWEST_PATIENTS_TO_RANK
from cmrcnet.slides.table_kinds import feature_words

if TYPE_CHECKING:
    from cmrcnet.evaluation.protocol.evaluate import EvaluationRun

_SPOKEN = {
    "cmrcnet": "CMRCNet",
    "ridge": "ridge on the same frozen features",
    "gene-mean": "the gene mean",
    "random-k": "random retrieval",
    "permuted-pairs": "the permuted-pairs null",
}

_MOST_NAMED = 5


def summary(run: EvaluationRun) -> str:
    """Compare the main method with the others on HVG, in a few sentences with their caveats."""
    names, main = list(run.methods), first_method(run)
    value = run.mean(main)
    others = [name for name in names if name != main]
    subject = _SPOKEN.get(main, main)
    held_out = "held-out patients" if run.protocol_info.patient_disjoint else f"held-out {run.protocol_info.group_by}s"
    sentences = [
        f"{subject[0].upper()}{subject[1:]} reaches a mean HVG Pearson of {number(value)} on {held_out}"
        if not math.isnan(value)
        else f"The HVG Pearson of {subject} is undefined"
    ]
    known = _beside(run, others)
    if known:
        sentences[0] += f"; {', '.join(known[:-1])}{' and ' if len(known) > 1 else ''}{known[-1]}"
    sentences[0] += "."
    readings = [
        (each["fold"], kept_reading(each["record"])) for each in run.metadata["results"] if each["method"] == main
    ]
    at_chance = list(dict.fromkeys(fold for fold, reading in readings if reading and reading["meter_at_chance"]))
    if at_chance:
        sentences.append(
            f"By the collapse meter, its training stayed at chance in {len(at_chance)} of {len(run.folds)} folds "
            f"({', '.join(at_chance)})."
        )
    if not run.protocol_info.patient_disjoint:
        sentences.append("Folds have sections of one patient on both sides, which inflates the scores of every method.")
    if run.protocol_info.panel_from_all:
        sentences.append("The gene panel was chosen on the test sections too.")
    patients = run.protocol_info.patients
    if patients < FEWEST_PATIENTS_TO_RANK:
        sentences.append(f"{patients} patient{'s' if patients != 1 else ''}: too few patients to rank methods.")
    return feature_words(" ".join(sentences), run.protocol_info.table_kind)


def first_method(run: EvaluationRun) -> str:
    """Return the method that the report is about: CMRCNet, or the first where it was not run."""
    return MAIN if MAIN in run.methods else next(iter(run.methods))


def _beside(run: EvaluationRun, others: list[str]) -> list[str]:
    """The other methods with their means; of many, the well-known ones and the best of the rest."""
    means = {name: value for name in others if not math.isnan(value := run.mean(name))}
    rest = [name for name in means if name not in _SPOKEN]
    if len(means) > _MOST_NAMED and len(rest) > 1:
        best = max(rest, key=means.__getitem__)
        named = [f"{_SPOKEN[name]} {number(means[name])}" for name in means if name in _SPOKEN]
        return [*named, f"the best of {len(rest)} further methods ({best}) {number(means[best])}"]
    return [f"{_SPOKEN.get(name, name)} {number(value)}" for name, value in means.items()]


def number(value: float | None) -> str:
    """Write three decimals, or "undefined" for nan and None."""
    return (
        "undefined" if value is None or math.isnan(value) else f"{round(value, 3) + 0.0:.3f}"
    )  # + 0.0 turns -0.000 into 0.000


def methods_to_text(run: EvaluationRun) -> str:
    """Return methods by gene sets as plain text; `scores.csv` holds every metric."""
    means = run.means()
    sets = list(dict.fromkeys(means.gene_set))
    columns = [("pearson", name) for name in sets] + [("pearson_share", "HVG"), ("mse", "HVG")]
    heads = ["method", *(f"{name} pearson" for name in sets), "HVG share of ceiling", "HVG mse", "undefined (HVG)"]
    rows = [heads]
    for method in run.methods:
        mine = means[means.method == method].set_index(["metric", "gene_set"])
        row = [method, *(number(mine.loc[column, "value"]) for column in columns)]
        pairs = mine.loc[("pearson", "HVG")]
        rows.append([*row, f"{int(pairs.n_undefined)}/{int(pairs.n_genes)}"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
