"""Scores of methods and of their paired differences, from out-of-fold predictions.

The paired difference of two methods is the mean over all test folds of the difference in a fold. Its interval is
Student's t over folds with the larger of two standard errors: that of Nadeau and Bengio (Machine Learning, 2003), whose
variance is multiplied by ``1 / folds + test / train`` in place of ``1 / folds`` because training sets overlap, and that
of a bootstrap of patients. The bootstrap alone takes the fitted models as given and leaves out that another training
set gives another model. Simulated coverage at the nominal 95 %: `docs/how-to/outcomes.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np

from cmrcnet.evaluation import Frame
from cmrcnet.outcomes.cohort import Classes, OutcomeCohort, Survival
from cmrcnet.outcomes.folds import Folds
from cmrcnet.outcomes.metrics import (
    Pairs,
    auc_pairs,
    auroc_pairs,
    balanced_accuracy,
    brier_terms,
    calibration_slope,
    draws_of_patients,
    harrell_pairs,
    integrated,
    log_rank,
    percentile_interval,
    uno_pairs,
)

_QUANTILES = (0.25, 0.5, 0.75)
"""Of the event times: when the time-dependent AUC is read."""


@dataclass(frozen=True, eq=False)
class Predicted:
    """Out-of-fold predictions of one method, of every repeat.

    `risk` (repeats, cases) is the log hazard (NaN with classes); `high` (repeats, cases) whether it is above the
    median of the training cases; `curves` (repeats, cases, times) the survival, or the probability of each class.
    """

    risk: np.ndarray
    high: np.ndarray
    curves: np.ndarray


def main_metric(outcome: Survival | Classes) -> str:
    """Harrell's C, or AUROC."""
    return "c" if isinstance(outcome, Survival) else "auroc"


def main_pairs(outcome: Survival | Classes, predicted: Predicted, repeat: int, within: np.ndarray) -> list[Pairs]:
    """Pairs of the main metric in one repeat: one element, or one of each class against the rest."""
    if isinstance(outcome, Survival):
        return [harrell_pairs(outcome, predicted.risk[repeat], within)]
    chance = predicted.curves[repeat]
    shown = [1] if len(outcome.names) == 2 else range(len(outcome.names))
    return [auroc_pairs(outcome.codes == code, chance[:, code], within) for code in shown]


def score_methods(
    cohort: OutcomeCohort, folds: Folds, predicted: Mapping[str, Predicted], bootstrap: int, seed: int
) -> Frame:
    """Each metric of each method over all repeats, with its interval from `bootstrap` samples of patients."""
    import pandas as pd

    outcome, repeats = cohort.outcome, range(len(folds.of))
    draws = draws_of_patients(cohort.patient_codes, bootstrap, seed)
    rows: list[dict[str, object]] = []

    def note(method: str, metric: str, value: float, low: float = np.nan, high: float = np.nan) -> None:
        rows.append({"method": method, "metric": metric, "value": value, "low": low, "high": high})

    def add_pairs(method: str, metric: str, parts: Sequence[Sequence[Pairs]]) -> None:
        """`parts` by class and repeat: repeats are summed, classes averaged."""
        summed = [reduce(add, each) for each in parts]
        value = np.mean([float(each.value()[0]) for each in summed])
        sampled = np.mean([each.value(draws) for each in summed], axis=0) if bootstrap else []
        note(method, metric, float(value), *percentile_interval(sampled))

    for name, found in predicted.items():
        by_repeat = [main_pairs(outcome, found, repeat, folds.of[repeat]) for repeat in repeats]
        add_pairs(name, main_metric(outcome), list(zip(*by_repeat, strict=True)))
        if isinstance(outcome, Classes):
            guessed = found.curves.argmax(axis=2)
            sampled = np.mean([balanced_accuracy(outcome.codes, guessed[r], draws) for r in repeats], axis=0)
            value = float(np.mean([balanced_accuracy(outcome.codes, guessed[r])[0] for r in repeats]))
            note(name, "balanced accuracy", value, *percentile_interval(sampled))
            continue
        uno = [uno_pairs(outcome, found.risk[r], folds.observed[r], folds.horizon, folds.of[r]) for r in repeats]
        add_pairs(name, "uno", [uno])
        for share, at in zip(_QUANTILES, auc_times(outcome, folds), strict=True):
            parts = [auc_pairs(outcome, found.risk[r], folds.observed[r], at, folds.of[r]) for r in repeats]
            add_pairs(name, f"auc {share:g}", [parts])
        terms = [
            integrated(
                brier_terms(outcome, found.curves[r], folds.times, folds.observed[r], folds.observed_at[r]), folds.times
            )
            for r in repeats
        ]
        brier = np.mean(terms, axis=0)
        sampled = draws @ brier / np.maximum(draws.sum(axis=1), 1)
        note(name, "brier", float(brier.mean()), *percentile_interval(sampled))
        slopes = [calibration_slope(outcome, found.risk[r], folds.of[r]) for r in repeats]
        note(name, "calibration slope", *(float(each) for each in np.mean(slopes, axis=0)))
        note(name, "log-rank p", log_rank(outcome, found.high[0]))
    return pd.DataFrame(rows)


def auc_times(outcome: Survival, folds: Folds) -> np.ndarray:
    """Quartiles of the event times that are scored: (3,)."""
    times = outcome.time[outcome.event & (outcome.time <= folds.horizon)]
    return np.quantile(times, _QUANTILES)


def by_fold(cohort: OutcomeCohort, folds: Folds, predicted: Predicted) -> np.ndarray:
    """The main metric in every test fold of every repeat: (folds,); NaN where a fold has no pair."""
    outcome, values = cohort.outcome, []
    for number, (_, test) in enumerate(folds.splits):
        repeat = int(np.flatnonzero((folds.of[:, test] == number).all(axis=1))[0])
        only = Predicted(predicted.risk[:, test], predicted.high[:, test], predicted.curves[:, test])
        pairs = main_pairs(outcome.take(test), only, repeat, np.zeros(len(test)))
        values.append(np.mean([each.value()[0] for each in pairs]))
    return np.array(values)


def corrected_interval(
    differences: np.ndarray, test_by_train: float, least_error: float = 0.0
) -> tuple[float, float, float]:
    """Mean over folds and its interval at the nominal 95 %; NaN without two folds that differ.

    The standard error is that of Nadeau and Bengio, or `least_error` where that is larger.

    Examples
    --------
    >>> mean, low, high = corrected_interval(np.array([0.02, 0.04, 0.0, 0.06]), 0.25)
    >>> round(mean, 3), round(low, 4), round(high, 4)
    (0.03, -0.0281, 0.0881)
    """
    from scipy.special import stdtrit

    known = differences[np.isfinite(differences)]
    n = len(known)
    if n < 2:
        return (float(known[0]) if n else float("nan")), float("nan"), float("nan")
    mean = float(known.mean())
    error = max(np.sqrt((1 / n + test_by_train) * known.var(ddof=1)), least_error)
    reach = float(stdtrit(n - 1, 0.975) * error) if error > 0 else np.nan
    return mean, mean - reach, mean + reach


def score_differences(
    cohort: OutcomeCohort,
    folds: Folds,
    predicted: Mapping[str, Predicted],
    questions: Sequence[tuple[str, str]],
    bootstrap: int,
    seed: int,
) -> Frame:
    """Paired difference of each question over all test folds, with its interval."""
    import pandas as pd

    asked = dict.fromkeys(name for pair in questions for name in pair)
    values = {name: by_fold(cohort, folds, predicted[name]) for name in asked}
    draws = draws_of_patients(cohort.patient_codes, bootstrap, seed)
    sampled = {}
    for name in asked:  # the main metric over all repeats in each bootstrap sample
        by_repeat = [main_pairs(cohort.outcome, predicted[name], r, of) for r, of in enumerate(folds.of)]
        summed = [reduce(add, parts) for parts in zip(*by_repeat, strict=True)]
        sampled[name] = np.mean([each.value(draws) for each in summed], axis=0)
    ratio = float(np.mean([len(test) / len(train) for train, test in folds.splits]))
    rows = []
    for method, other in questions:
        gap = values[method] - values[other]
        drawn = sampled[method] - sampled[other]
        error = float(np.nanstd(drawn)) if np.isfinite(drawn).sum() > 1 else 0.0
        mean, low, high = corrected_interval(gap, ratio, error)
        row = {"method": method, "other": other, "metric": main_metric(cohort.outcome), "difference": mean}
        row |= {"low": low, "high": high, "higher_in": int((gap > 0).sum()), "folds": int(np.isfinite(gap).sum())}
        rows.append(row)
    return pd.DataFrame(rows)
