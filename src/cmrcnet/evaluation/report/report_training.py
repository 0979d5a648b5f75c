"""Training curves of the report, with the collapse meter: did the network learn, or only guess?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cmrcnet.evaluation.methods.method import MAIN
from cmrcnet.evaluation.methods.trained_cmrcnet import kept_reading
from cmrcnet.evaluation.protocol.summary import number
from cmrcnet.evaluation.report.page import figure, stamp_line, table, text
from cmrcnet.evaluation.report.report_figures import curve_svg

if TYPE_CHECKING:
    from cmrcnet.evaluation.protocol.evaluation_run import EvaluationRun

_ABOUT = (
    "<p>One line a fold{null}. The contrastive loss is divided by ln(batch): 1 means that "
    "every candidate is thought alike. Recall is how often a patch's own spot is among its {k} nearest candidates, "
    "over chance. The epoch is chosen on validation training spots; test sections take no part.</p>\n"
)
_CHOICES = ("ridge_penalty", "kernel_width", "kernel_penalty", "epoch")


def training_curves(run: EvaluationRun) -> str:
    """Curves of every fold, and the collapse meter at the epoch that was kept."""
    trainings = [part for part in run.facts["parts"] if part["record"].get("history")]
    if not trainings:
        return "<p>Nothing was trained epoch by epoch in this run.</p>\n"
    main = [part for part in trainings if part["method"] == MAIN]
    k = next((row["meter_k"] for part in trainings for row in part["record"]["history"] if "meter_k" in row), "k")
    curves = [
        _curve(trainings, "Contrastive loss / ln(batch), training", _column("loss_over_ln_batch"), (1.0, "all alike")),
        _curve(trainings, "Pearson on validation spots", _column("validation_pearson"), (0.0, "")),
        _curve(trainings, f"Recall@{k} over chance", _recall_over_chance, (1.0, "chance")),
    ]
    return (
        _ABOUT.format(k=text(k), null="; grey: the permuted-pairs null" if len(main) < len(trainings) else "")
        + f'<div class="curves">\n{"".join(curves)}</div>\n'
        + _readings(run, main or trainings)
    )


def heads_table(run: EvaluationRun) -> str:
    """What the heads of each fold chose on validation units; empty for a config without them."""
    parts = [part for part in run.facts["parts"] if part["method"] == MAIN and part["record"].get("head")]
    if not parts:
        return ""
    kinds = list(dict.fromkeys(kind for part in parts for kind in part["record"]["head"].get("weights", {})))
    rows = []
    for part in parts:
        chosen = part["record"]["head"]
        weights, validation = chosen.get("weights", {}), chosen.get("validation_pearson", {})
        rows.append(
            [
                _fold_of(run, part),
                *(f"{weights[kind]:.2f}" if kind in weights else "" for kind in kinds),
                *(number(_or_nan(validation.get(kind))) for kind in (*kinds, "ensemble")),
                *(f"{chosen[name]:g}" if name in chosen else "" for name in _CHOICES),
            ]
        )
    heads = [
        "left out",
        *(f"weight {kind}" for kind in kinds),
        *(f"validation {kind}" for kind in (*kinds, "ensemble")),
    ]
    heads += [name.replace("_", " ") for name in _CHOICES]
    said = (
        "Weights of the ensemble, HVG Pearson on validation training units, and the settings chosen "
        "by it; no test score."
    )
    return f"<h3>What the heads chose</h3>\n{table(heads, rows)}{stamp_line(run, said)}"


def _curve(trainings: list[dict[str, Any]], title: str, value_of, limit: tuple[float, str]) -> str:
    lines = []
    for part in trainings:
        rows = [row for row in part["record"]["history"] if row["phase"] == "search"]
        points = [(row["epoch"], value) for row in rows if (value := value_of(row)) is not None]
        if points:
            lines.append(("main" if part["method"] == MAIN else "null", *zip(*points, strict=True)))
    if not lines:
        return ""
    return figure(curve_svg(lines, title=title, limit=limit), "svg+xml", title, "")


def _column(name: str):
    return lambda row: row.get(name)


def _recall_over_chance(row: dict[str, Any]) -> float | None:
    return row["meter_recall_at_k"] / row["meter_chance"] if "meter_recall_at_k" in row else None


def _readings(run: EvaluationRun, trainings: list[dict[str, Any]]) -> str:
    rows = []
    for part in trainings:
        record = part["record"]
        reading = kept_reading(record)
        if reading is None:
            continue
        rows.append(
            [
                _fold_of(run, part),
                record.get("validation", ""),
                record.get("chosen_epoch", ""),
                number(_or_nan(reading.get("validation_pearson"))),
                f"{reading['meter_recall_at_k']:.1%}",
                f"{reading['meter_chance']:.1%}",
                f"{reading['meter_loss_over_ln_batch']:.2f}",
                f"{reading['meter_effective_rank']:.1f}",
                "ONLY GUESSES" if reading["meter_at_chance"] else "knows more than chance",
            ]
        )
    heads = ["left out", "held in", "epoch", "validation Pearson", "recall", "chance", "loss / ln(batch)"]
    heads += ["effective rank", "collapse meter"]
    return table(heads, rows) + stamp_line(run, "Readings of training, not test scores.") if rows else ""


def _fold_of(run: EvaluationRun, part: dict[str, Any]) -> str:
    return part["fold"] if len(run.facts["seeds"]) < 2 else f"{part['fold']}, seed {part['seed']}"


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
