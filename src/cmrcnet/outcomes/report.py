"""The report of an outcome comparison: the answer first, then methods, risk groups, calibration, null and folds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from cmrcnet.evaluation import Frame
from cmrcnet.evaluation.report.method_section import between, signed
from cmrcnet.evaluation.report.page import GREY, MAIN_COLOUR, render, svg, table
from cmrcnet.evaluation.report.summary import number
from cmrcnet.outcomes.cohort import CLINICAL, EXPRESSION, Survival
from cmrcnet.outcomes.metrics import calibration_groups, kaplan_meier
from cmrcnet.outcomes.protocol import NOTHING, OutcomeRun
from cmrcnet.outcomes.scoring import auc_times

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMES = {"c": "Harrell's C", "uno": "Uno's C", "brier": "Brier", "auroc": "AUROC"}
_SHOWN_FEATURES = 30
_ABOUT = {
    "c": "share of comparable pairs of patients in the right order; 0.5 is chance",
    "uno": "the same, weighted so that it does not depend on when patients were censored, up to the horizon",
    "auc": "patients with the event by then against patients without it, weighted for censoring",
    "brier": "integrated Brier score, weighted for censoring: squared error of the predicted survival; lower is "
    "better, and a model is of use where it is below the method “none”",
    "calibration slope": "1 is calibrated, below 1 the risks are too extreme; with lifelines' 95 % interval",
    "log-rank p": "of the two risk groups of the first repeat, taken as given; the test is the permutation",
    "auroc": "share of pairs of one class and another in the right order; 0.5 is chance; mean over classes",
    "balanced accuracy": "mean over classes of the share that was recognised",
}


def main_question(run: OutcomeRun) -> Any:
    """Row of `differences` that the report is about."""
    return run.differences.iloc[0]


def verdict(run: OutcomeRun) -> str:
    """Answer the main question in one sentence with its interval, or say that there are too few events."""
    gap = main_question(run)
    measured = (
        f"{_NAMES[run.metric]} of {gap['method']} minus that of {gap['other']}: {signed(gap['difference'])} "
        f"({between(gap['low'], gap['high'], plus=True)})"
    )
    if run.cohort.too_few:
        return f"{run.cohort.too_few} {measured}."
    if gap["low"] > 0:
        word = f"{gap['method']} predicts the outcome better than {gap['other']}"
    elif gap["high"] < 0:
        word = f"{gap['method']} predicts the outcome worse than {gap['other']}"
    else:
        word = f"no difference between {gap['method']} and {gap['other']} is shown"
    if EXPRESSION in gap["method"] and _confounded(run):
        word += ", and expression is not shown to add to what the slide's colour alone tells"
    return f"{word[0].upper()}{word[1:]}. {measured}."


def warnings_of(run: OutcomeRun) -> list[str]:
    """What a reader must know before the numbers: few events, a confounder, a null that is not at chance."""
    found = []
    if run.cohort.too_few:
        found.append("too few events to say")
    known = [method.name for method in run.methods]
    if "colour" in known and run.score("colour").low > 0.5:
        found.append(confounder_sentence(run))
    missing = [name for name in ("imagenet", "shuffled", "colour") if name not in known]
    if missing:
        found.append(f"not compared with: {', '.join(missing)}")
    if CLINICAL not in known:
        found.append("no clinical columns were given")
    return found


def confounder_sentence(run: OutcomeRun) -> str:
    """Say that colour alone predicts the outcome, and what expression adds to it."""
    colour = run.score("colour")
    text = f"The slide's colour alone predicts the outcome ({_NAMES[run.metric]} {number(colour['value'])}, 95 % "
    text += f"{between(colour['low'], colour['high'])})"
    if _confounded(run):
        return f"{text}: scanner, stain or site may stand behind what expression shows, which is not shown to add to it"
    return f"{text}: scanner, stain or site may go with it"


def _confounded(run: OutcomeRun) -> bool:
    """Whether colour alone predicts the outcome, and expression is not shown to add anything to it."""
    if "colour" not in [method.name for method in run.methods] or not run.score("colour").low > 0.5:
        return False
    added = run.differences[(run.differences.method == "colour + expression") & (run.differences.other == "colour")]
    return not len(added) or not added["low"].iloc[0] > 0


def to_text(run: OutcomeRun) -> str:
    """The verdict, the main metric of every method, and the paired differences as plain text."""
    heads = ["method", _NAMES[run.metric], "95 %"]
    rows = [heads]
    for method in run.methods:
        found = run.score(method.name)
        rows.append([method.name, number(found["value"]), between(found["low"], found["high"])])
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for gap in run.differences.itertuples():
        gained = f"{signed(gap.difference)} ({between(gap.low, gap.high, plus=True)})"
        lines.append(f"{gap.method} minus {gap.other}: {gained}, higher in {gap.higher_in} of {gap.folds} folds")
    return "\n".join([verdict(run), *lines, *(f"Note: {text}." for text in warnings_of(run))])


def versions() -> dict[str, str]:
    """Versions of the package and of the libraries that compute."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("cmrcnet", "lifelines", "numpy", "pandas", "scikit-learn", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def report_html(run: OutcomeRun, *, maps: str = "") -> str:
    """Make the report as one HTML page that opens offline.

    Parameters
    ----------
    run : OutcomeRun
    maps : str
        Risk maps of the slides, as HTML of `risk_maps`; empty without slides.
    """
    outcome, options = run.cohort.outcome, run.options
    survival = isinstance(outcome, Survival)
    kind = f"{run.cohort.rarest} events"
    if not survival:
        kind = f"{len(outcome.names)} classes, {run.cohort.rarest} patients in the smallest"
    values = {
        "title": f"Outcomes of {run.cohort.name}",
        "name": run.cohort.name,
        "summary": verdict(run),
        "badges": [
            "survival" if survival else "classification",
            f"{len(set(run.cohort.patients))} patients",
            kind,
            f"{options.folds} folds by patient, drawn {options.repeats} time{'s' if options.repeats > 1 else ''}",
        ],
        "warnings": warnings_of(run),
        "sections": [
            ("The question", _question_section(run)),
            ("Methods", _methods_section(run)),
            ("Risk groups and calibration", _risk_section(run) if survival else ""),
            ("Null", _null_section(run)),
            ("Risk on the slide", Markup(maps)),
            ("Folds and penalties", _folds_section(run)),
            ("Provenance", _provenance_section(run)),
        ],
        "version": versions()["cmrcnet"],
    }
    return render("outcomes.html", values)


def _question_section(run: OutcomeRun) -> Markup:
    gaps = run.differences
    rows = [
        [
            f"{gap.method} minus {gap.other}",
            signed(gap.difference),
            between(gap.low, gap.high, plus=True),
            f"{gap.higher_in}/{gap.folds}",
        ]
        for gap in gaps.itertuples()
    ]
    heads = ["paired difference", _NAMES[run.metric], "interval", "higher in folds"]
    labels = [f"{gap.method} − {gap.other}" for gap in gaps.itertuples()]
    picture = forest(labels, gaps, "difference", 0.0, f"difference in {_NAMES[run.metric]}")
    note = (
        "Mean over all test folds of the difference in a fold. The interval is Student's t over folds with the larger "
        "of two standard errors: Nadeau and Bengio's (2003), since training sets overlap, and that of a bootstrap of "
        "patients, which takes the fitted models as given. At the nominal 95 % it covered the true difference in 93 to "
        "98 % of simulated cohorts; the bootstrap alone did in 82 to 92 %."
    )
    return render("outcome_question.html", {"forest": picture, "table": table(heads, rows, main_row=0), "note": note})


def _methods_section(run: OutcomeRun) -> Markup:
    scores, outcome = run.scores, run.cohort.outcome
    metrics = [str(metric) for metric in dict.fromkeys(scores.metric)]
    heads = ["method"]
    times = auc_times(outcome, run.folds) if isinstance(outcome, Survival) else []
    auc = iter(times)
    for metric in metrics:
        if metric.startswith("auc "):
            heads.append(f"AUC at {next(auc):.3g}")
        else:
            heads.append(_NAMES.get(metric, metric))
        if metric in (run.metric, "calibration slope"):
            heads.append("95 %")
    rows = []
    for method in run.methods:
        row: list[object] = [method.name]
        for metric in metrics:
            found = run.score(method.name, metric)
            row.append(_p(found["value"]) if metric == "log-rank p" else number(found["value"]))
            if metric in (run.metric, "calibration slope"):
                row.append(between(found["low"], found["high"]))
        rows.append(row)
    main = main_question(run)["method"]
    names = [method.name for method in run.methods]
    shown = scores[(scores.metric == run.metric)].reset_index(drop=True)
    horizon = (
        f" Horizon {run.folds.horizon:.3g} {outcome.unit}: nine patients in ten have a shorter follow-up, and every "
        "training set is still observed. AUC at the quartiles of the event times."
        if isinstance(outcome, Survival)
        else ""
    )
    kinds = list(dict.fromkeys("auc" if metric.startswith("auc ") else metric for metric in metrics))
    values = {
        "forest": forest(list(shown["method"]), shown, "value", 0.5, _NAMES[run.metric]),
        "table": table(heads, rows, main_row=names.index(main)),
        "note": "Out of fold. Pairs are compared within a test fold. Intervals: 95 %, percentiles of "
        f"{run.options.bootstrap:,} bootstrap samples of patients, the fitted models taken as given.{horizon}",
        "methods": [(method.name, method.about) for method in run.methods],
        "metrics": [(_NAMES.get(kind, kind), _ABOUT[kind]) for kind in kinds],
    }
    return render("outcome_methods.html", values)


def forest(labels: Sequence[str], rows: Frame, column: str, at: float, title: str) -> bytes:
    """Draw a forest plot: a row a label, the value with its interval, and a line at chance or at no difference."""

    def draw(axes: Axes) -> None:
        y = np.arange(len(labels))[::-1]
        value = rows[column].to_numpy(np.float64)
        low, high = (rows[name].to_numpy(np.float64) for name in ("low", "high"))
        axes.axvline(at, color="#5a6675", lw=1, ls=(0, (4, 3)), zorder=0)
        colours = [MAIN_COLOUR if row == 0 and at == 0 else "#44505e" for row in range(len(labels))]
        for row in range(len(labels)):
            if np.isfinite(low[row]):
                axes.plot([low[row], high[row]], [y[row]] * 2, color=colours[row], lw=1.6)
        axes.scatter(value, y, marker="s", s=34, c=colours, zorder=3)
        axes.set_yticks(y, labels)
        axes.set_ylim(-0.6, len(labels) - 0.4)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(title)

    return svg(draw, (8.2, 0.9 + 0.33 * len(labels)))


def _risk_section(run: OutcomeRun) -> Markup:
    outcome = run.cohort.outcome
    assert isinstance(outcome, Survival)
    main = str(main_question(run)["method"])
    found = run.predicted[main]
    at = float(auc_times(outcome, run.folds)[1])
    step = int(np.abs(run.folds.times - at).argmin())
    at = float(run.folds.times[step])
    values = {
        "curves": _curves_svg(outcome, found.high[0], run.folds.horizon),
        "calibration": _calibration_svg(outcome, found.curves[:, :, step].mean(axis=0), at),
        "note": f"{main}. Left: the groups are above and below the median risk of each fold's training patients, first "
        f"repeat; bands are 95 %. Log-rank p {_p(run.score(main, 'log-rank p')['value'])}, which takes the groups as "
        "given. Right: patients in five groups by predicted survival (mean of the repeats), against Kaplan-Meier.",
    }
    return render("outcome_risk.html", values)


def _curves_svg(outcome: Survival, high: np.ndarray, horizon: float) -> bytes:
    def draw(axes: Axes) -> None:
        for rows, colour, name in ((~high, GREY, "low risk"), (high, MAIN_COLOUR, "high risk")):
            if not rows.any():
                continue
            times, curve, low, up = kaplan_meier(outcome, np.flatnonzero(rows))
            axes.step(times, curve, where="post", color=colour, lw=2, label=f"{name} ({int(rows.sum())})")
            axes.fill_between(times, low, up, step="post", color=colour, alpha=0.18, lw=0)
        axes.set_xlim(0, 1.15 * horizon)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel(outcome.unit.replace("_", " "))
        axes.set_ylabel("without event")
        axes.legend(frameon=False, loc="upper right")
        axes.set_title("Kaplan-Meier by out-of-fold risk", fontsize=10.5, loc="left")

    return svg(draw, (5.2, 3.5))


def _calibration_svg(outcome: Survival, survival: np.ndarray, at: float) -> bytes:
    groups = calibration_groups(outcome, survival, at)

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color="#5a6675", lw=1, ls=(0, (4, 3)))
        for predicted, seen, low, high, _ in groups:
            axes.plot([predicted] * 2, [low, high], color=MAIN_COLOUR, lw=1.4)
            axes.plot(predicted, seen, "o", color=MAIN_COLOUR, ms=6)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("predicted")
        axes.set_ylabel("observed")
        axes.set_title(f"Without event at {at:.3g} {outcome.unit.replace('_', ' ')}", fontsize=10.5, loc="left")

    return svg(draw, (5.2, 3.5))


def _null_section(run: OutcomeRun) -> Markup:
    if not len(run.null):
        return Markup("")
    heads = ["method", _NAMES[run.metric], "mean of the null", "its range", "p"]
    rows = []
    for name, mine in run.null.groupby("method", sort=False):
        spread = between(mine["value"].min(), mine["value"].max())
        observed = number(mine["observed"].iloc[0])
        rows.append([name, observed, number(mine["value"].mean()), spread, _p(run.p_value(str(name)))])
    count = run.options.permutations
    note = (
        f"All but the clinical columns were given to other patients {count} times, and everything was fitted again; "
        f"first repeat. p: share of these that score as high, at least 1/{count + 1}. The null of {CLINICAL} + "
        f"{EXPRESSION} stays at the clinical model's level, for the clinical columns keep their patients."
    )
    return render("outcome_stamped.html", {"table": table(heads, rows), "note": note})


def _folds_section(run: OutcomeRun) -> Markup:
    rows = []
    per = run.options.folds
    fitted = [method.name for method in run.methods if method.name not in (NOTHING, CLINICAL)]
    chosen_by = {
        (each["method"], each["fold"]): f"{each['penalty']:g}" if "penalty" in each else f"{each['epochs']} epochs"
        for each in run.records
    }
    for fold, (train, test) in enumerate(run.folds.splits):
        outcome = run.cohort.outcome.take(test)
        share = f"{int(outcome.event.sum())} events" if isinstance(outcome, Survival) else f"{len(outcome)} cases"
        chosen = [chosen_by[name, fold] for name in fitted]
        name = f"repeat {fold // per + 1}, fold {fold % per + 1}"
        rows.append([name, len(train), f"{len(test)}, {share}", *chosen])
    heads = ["fold", "training cases", "test cases", *fitted]
    note = (
        "The penalty (of attention: the epochs) was chosen inside each fold's training cases. Scaling, principal "
        "components and missing values were fitted there too."
    )
    return render("outcome_stamped.html", {"table": table(heads, rows), "note": note})


def _provenance_section(run: OutcomeRun) -> Markup:
    import yaml

    facts = dict(run.cohort.facts)
    if len(names := facts.get("features", [])) > _SHOWN_FEATURES:
        facts["features"] = [*names[:_SHOWN_FEATURES], f"and {len(names) - _SHOWN_FEATURES} more (run.json)"]
    text = yaml.safe_dump(facts | run.options.to_dict(), sort_keys=False, allow_unicode=True)
    note = f"Seed {run.options.seed}. " + ", ".join(f"{name} {found}" for name, found in versions().items()) + "."
    return render("outcome_provenance.html", {"note": note, "options": text})


def _p(value: float) -> str:
    return "undefined" if math.isnan(value) else ("below 0.001" if value < 0.001 else f"{value:.3f}")
