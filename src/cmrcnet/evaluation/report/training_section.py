"""Training in the report: curves, the collapse meter at the kept epoch, and what the heads chose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from cmrcnet.evaluation.methods.method import MAIN
from cmrcnet.evaluation.methods.trained_cmrcnet import kept_reading
from cmrcnet.evaluation.report.page import GREY, MAIN_COLOUR, render, svg
from cmrcnet.evaluation.report.summary import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cmrcnet.evaluation.protocol.evaluate import EvaluationRun

_LIMIT = "#8a4b00"
_CHOICES = ("ridge_penalty", "kernel_width", "kernel_penalty", "epoch")


def training_section(run: EvaluationRun) -> Markup:
    """Render curves of every fold, the collapse meter at the kept epoch, and what the heads chose."""
    trainings = [each for each in run.metadata["results"] if each["record"].get("history")]
    if not trainings:
        return Markup("<p>Nothing was trained epoch by epoch in this run.</p>\n")
    main = [each for each in trainings if each["method"] == MAIN]
    k = next((row["meter_k"] for each in trainings for row in each["record"]["history"] if "meter_k" in row), "k")

    wanted = [
        ("Contrastive loss / ln(batch), training", lambda row: row.get("loss_over_ln_batch"), (1.0, "all alike")),
        ("Pearson on validation spots", lambda row: row.get("validation_pearson"), (0.0, "")),
        (
            f"Recall@{k} over chance",
            lambda row: row["meter_recall_at_k"] / row["meter_chance"] if "meter_recall_at_k" in row else None,
            (1.0, "chance"),
        ),
    ]
    curves = []
    for title, value_of, limit in wanted:
        lines = []
        for each in trainings:
            rows = [row for row in each["record"]["history"] if row["phase"] == "search"]
            points = [(row["epoch"], value) for row in rows if (value := value_of(row)) is not None]
            if points:
                lines.append(("main" if each["method"] == MAIN else "null", *zip(*points, strict=True)))
        if lines:
            curves.append((title, curve_svg(lines, title=title, limit=limit)))
    values = {"run": run, "k": k, "with_null": len(main) < len(trainings), "curves": curves}
    return render("training.html", values | _readings(run, main or trainings) | _head_choices(run))


def _readings(run: EvaluationRun, trainings: list[dict[str, Any]]) -> dict[str, Any]:
    """Heads and rows of the table of the collapse meter."""
    rows = []
    for each in trainings:
        record = each["record"]
        reading = kept_reading(record)
        if reading is not None:
            rows.append(
                [
                    _fold_of(run, each),
                    record.get("validation", ""),
                    record.get("chosen_epoch", ""),
                    number(reading.get("validation_pearson")),
                    f"{reading['meter_recall_at_k']:.1%}",
                    f"{reading['meter_chance']:.1%}",
                    f"{reading['meter_loss_over_ln_batch']:.2f}",
                    f"{reading['meter_effective_rank']:.1f}",
                    "AT CHANCE" if reading["meter_at_chance"] else "above chance",
                ]
            )
    heads = ["held out", "validation", "epoch", "validation Pearson", "recall", "chance", "loss / ln(batch)"]
    return {"heads": [*heads, "effective rank", "collapse meter"], "rows": rows}


def _head_choices(run: EvaluationRun) -> dict[str, Any]:
    """Heads and rows of the table of what was chosen on validation groups; no rows for a config without heads."""
    results = [each for each in run.metadata["results"] if each["method"] == MAIN and each["record"].get("head")]
    kinds = list(dict.fromkeys(kind for each in results for kind in each["record"]["head"].get("weights", {})))
    rows = []
    for each in results:
        chosen = each["record"]["head"]
        weights, validation = chosen.get("weights", {}), chosen.get("validation_pearson", {})
        rows.append(
            [
                _fold_of(run, each),
                *(f"{weights[kind]:.2f}" if kind in weights else "" for kind in kinds),
                *(number(validation.get(kind)) for kind in (*kinds, "ensemble")),
                *(f"{chosen[name]:g}" if name in chosen else "" for name in _CHOICES),
            ]
        )
    heads = [
        "held out",
        *(f"weight {kind}" for kind in kinds),
        *(f"validation {kind}" for kind in (*kinds, "ensemble")),
        *(name.replace("_", " ") for name in _CHOICES),
    ]
    return {"head_heads": heads, "head_rows": rows}


def curve_svg(
    lines: Sequence[tuple[str, Sequence[float], Sequence[float]]], *, title: str, limit: tuple[float, str]
) -> bytes:
    """Curves over epochs: (kind, epochs, values), "main" in colour and "null" in grey behind; `limit` drawn across."""
    from matplotlib.ticker import MaxNLocator

    level, name = limit

    def draw(axes: Axes) -> None:
        for kind, epochs, values in sorted(lines, key=lambda line: line[0] == "main"):
            main = kind == "main"
            axes.plot(epochs, values, color=MAIN_COLOUR if main else GREY, lw=1.5 if main else 1.1, alpha=0.9)
        axes.axhline(level, color=_LIMIT, lw=1, ls=(0, (4, 3)))
        axes.annotate(
            name, (1, level), xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points",
            ha="right", color=_LIMIT, fontsize=9,
        )  # fmt: skip
        axes.set_title(title, fontsize=10.5, loc="left")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
        axes.margins(y=0.12)

    return svg(draw, (4.2, 2.9))


def _fold_of(run: EvaluationRun, result: dict[str, Any]) -> str:
    return result["fold"] if len(run.metadata["seeds"]) < 2 else f"{result['fold']}, seed {result['seed']}"
