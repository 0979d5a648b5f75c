"""How well risks and probabilities tell outcomes, each metric with weights of the cases, so that it can be resampled.

=====================  ==============================================================================================
Harrell's C            share of comparable pairs in the right order; ties in risk count half (Harrell et al., 1982)
Uno's C                the same with weights ``1 / G(time)^2`` up to a horizon, where G is the probability to be still
                       under observation: it does not depend on when patients were censored (Uno et al., 2011)
AUC at a time          cases that had the event by then against patients without it (Uno et al., 2007)
Brier score            squared error of the predicted survival, weighted for censoring (Graf et al., 1999); integrated
                       over time
AUROC                  as `scikit-learn`; of more than two classes the mean of each against the rest
=====================  ==============================================================================================

Concordances compare patients of one test fold only, since the risks of two folds come from two models. Curves and the
log-rank test are lifelines'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cmrcnet.outcomes.cohort import Survival

_TIED = 1e-8
"""Risks closer than this are tied."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """A share of weighted pairs: `credit` and `weight` (cases, cases), row i the case that should rank higher."""

    credit: np.ndarray
    weight: np.ndarray

    def __add__(self, other: Pairs) -> Pairs:
        return Pairs(self.credit + other.credit, self.weight + other.weight)

    def value(self, counts: np.ndarray | None = None) -> np.ndarray:
        """Share of the pairs that are right.

        `counts` (samples, cases) says how often each case was drawn; without it every case counts once. NaN where no
        pair is left.
        """
        if counts is None:
            counts = np.ones((1, len(self.weight)))
        right, all_pairs = (np.einsum("bi,bi->b", counts @ each, counts) for each in (self.credit, self.weight))
        return np.divide(right, all_pairs, out=np.full(len(right), np.nan), where=all_pairs > 0)


def _pairs(risk: np.ndarray, weight: np.ndarray, within: np.ndarray | None) -> Pairs:
    """Pairs with these weights, of one test fold (`within`) only."""
    weight = weight.astype(np.float64)  # truth values would not add up over repeats
    if within is not None:
        weight = weight * (within[:, None] == within[None, :])
    gap = risk[:, None] - risk[None, :]
    return Pairs(weight * np.where(np.abs(gap) <= _TIED, 0.5, gap > 0), weight)


def harrell_pairs(outcome: Survival, risk: np.ndarray, within: np.ndarray | None = None) -> Pairs:
    """Harrell's C of risks (cases,); of two patients, the one with the earlier event should have the higher risk.

    A pair is comparable when the earlier time is an event; of equal times, when one is an event and one is censored.
    `within` (cases,) names each case's test fold; pairs of one fold are compared.

    Examples
    --------
    >>> outcome = Survival(np.array([1.0, 2.0, 3.0]), np.array([True, False, True]))
    >>> float(harrell_pairs(outcome, np.array([0.9, 0.1, 0.95])).value()[0])
    0.5
    """
    return _pairs(risk, _comparable(outcome), within)


def uno_pairs(
    outcome: Survival, risk: np.ndarray, observed: np.ndarray, horizon: float, within: np.ndarray | None = None
) -> Pairs:
    """Uno's C up to a horizon (exclusive).

    `observed` (cases,) is G at each case's own time, from `still_observed` of the training patients.
    """
    weight = np.where(outcome.event & (outcome.time < horizon), 1 / np.maximum(observed, 1e-12) ** 2, 0.0)
    return _pairs(risk, _comparable(outcome) * weight[:, None], within)


def auc_pairs(
    outcome: Survival, risk: np.ndarray, observed: np.ndarray, at: float, within: np.ndarray | None = None
) -> Pairs:
    """AUC at a time: those with the event by then (weight 1 / G) against those whose time is later."""
    case = np.where(outcome.event & (outcome.time <= at), 1 / np.maximum(observed, 1e-12), 0.0)
    return _pairs(risk, case[:, None] * (outcome.time > at)[None, :], within)


def auroc_pairs(positive: np.ndarray, score: np.ndarray, within: np.ndarray | None = None) -> Pairs:
    """AUROC of scores (cases,), `positive` (cases,) bool."""
    return _pairs(score, positive[:, None] & ~positive[None, :], within)


def _comparable(outcome: Survival) -> np.ndarray:
    """Whether case i had its event before case j's time, or at it where j is censored: (cases, cases)."""
    time, event = outcome.time, outcome.event
    later = (time[:, None] < time[None, :]) | ((time[:, None] == time[None, :]) & ~event[None, :])
    return (event[:, None] & later).astype(np.float64)


def still_observed(training: Survival, times: np.ndarray) -> np.ndarray:
    """Kaplan-Meier estimate of the censoring times: probability to be still under observation at times (n,).

    At equal times events come before censorings. A step function, constant beyond the last training time.

    Examples
    --------
    >>> training = Survival(np.array([1.0, 2.0, 2.0, 4.0]), np.array([True, False, True, True]))
    >>> still_observed(training, np.array([1.0, 2.0, 3.0])).tolist()
    [1.0, 0.5, 0.5]
    """
    steps = np.unique(training.time)
    at_risk = (training.time[None, :] >= steps[:, None]).sum(axis=1)
    dead = ((training.time[None, :] == steps[:, None]) & training.event).sum(axis=1)
    left = ((training.time[None, :] == steps[:, None]) & ~training.event).sum(axis=1)
    curve = np.concatenate([[1.0], np.cumprod(1 - left / np.maximum(at_risk - dead, 1))])
    return curve[np.searchsorted(steps, times, side="right")]


def brier_terms(
    outcome: Survival, survival: np.ndarray, times: np.ndarray, observed: np.ndarray, observed_at: np.ndarray
) -> np.ndarray:
    """Each case's part of the Brier score at each time; their mean over cases is the score: (cases, times).

    Parameters
    ----------
    survival : numpy.ndarray, shape (cases, times)
        Predicted probability to be without event.
    times : numpy.ndarray, shape (times,)
        Ascending.
    observed : numpy.ndarray, shape (cases,)
        G at each case's own time.
    observed_at : numpy.ndarray, shape (cases, times) or (times,)
        G at the times.
    """
    died = (outcome.event[:, None]) & (outcome.time[:, None] <= times)
    alive = outcome.time[:, None] > times
    lost = survival**2 / np.maximum(observed, 1e-12)[:, None]
    kept = (1 - survival) ** 2 / np.maximum(np.broadcast_to(observed_at, survival.shape), 1e-12)
    return np.where(died, lost, 0.0) + np.where(alive, kept, 0.0)


def integrated(terms: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Integral over time by the trapezoid rule, over the length of the interval: (cases, times) -> (cases,)."""
    return np.trapezoid(terms, times, axis=1) / (times[-1] - times[0])


def balanced_accuracy(codes: np.ndarray, guessed: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """Mean over classes of the share that was recognised, for each sample of `counts` (samples, cases)."""
    if counts is None:
        counts = np.ones((1, len(codes)))
    right = guessed == codes
    shares = []
    for code in np.unique(codes):
        mine = counts * (codes == code)
        total = mine.sum(axis=1)
        shares.append(np.divide((mine * right).sum(axis=1), total, out=np.full(len(mine), np.nan), where=total > 0))
    return np.mean(shares, axis=0)


def partial_log_likelihood(outcome: Survival, risk: np.ndarray) -> float:
    """Cox's log partial likelihood (Breslow's ties) of log hazards (cases,), per event; NaN without events."""
    if not outcome.event.any():
        return float("nan")
    order = np.argsort(-outcome.time, kind="stable")
    time, event, log_hazard = outcome.time[order], outcome.event[order], risk[order]
    most = log_hazard.max()
    sums = np.cumsum(np.exp(log_hazard - most))
    last = np.searchsorted(-time, -time, side="right") - 1  # ties share one risk set
    return float((log_hazard - most - np.log(sums[last]))[event].sum() / event.sum())


def log_rank(outcome: Survival, high: np.ndarray) -> float:
    """P value of lifelines' log-rank test between `high` (cases,) bool and the rest; NaN where one side is empty."""
    from lifelines.statistics import logrank_test

    if high.all() or not high.any():
        return float("nan")
    time, event = outcome.time, outcome.event
    return float(logrank_test(time[high], time[~high], event[high], event[~high]).p_value)


def kaplan_meier(outcome: Survival, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Lifelines' Kaplan-Meier curve of some cases: times, survival, and its 95 % interval (low, high)."""
    from lifelines import KaplanMeierFitter

    fitted = KaplanMeierFitter().fit(outcome.time[rows], outcome.event[rows])
    band = fitted.confidence_interval_.to_numpy()
    return fitted.timeline, fitted.survival_function_.to_numpy().ravel(), band[:, 0], band[:, 1]


def calibration_groups(
    outcome: Survival, survival: np.ndarray, at: float, groups: int = 5
) -> list[tuple[float, float, float, float, int]]:
    """Predicted against observed survival at a time, in groups of equal size by predicted survival (cases,).

    Returns, for each group, the mean prediction, the Kaplan-Meier estimate with its 95 % interval, and the number of
    cases.
    """
    order = np.argsort(survival, kind="stable")
    found = []
    for rows in np.array_split(order, groups):
        if not len(rows):
            continue
        times, curve, low, high = kaplan_meier(outcome, rows)
        step = max(int(np.searchsorted(times, at, side="right")) - 1, 0)
        found.append((float(survival[rows].mean()), float(curve[step]), float(low[step]), float(high[step]), len(rows)))
    return found


def calibration_slope(outcome: Survival, risk: np.ndarray, within: np.ndarray) -> tuple[float, float, float]:
    """Cox coefficient of out-of-fold log hazards, stratified by fold, with its 95 % interval; 1 is calibrated.

    Below 1 the risks are too extreme. NaN where the risks do not differ.
    """
    import pandas as pd
    from lifelines import CoxPHFitter
    from lifelines.exceptions import ConvergenceError

    nothing = float("nan"), float("nan"), float("nan")
    if np.ptp(risk) < _TIED:
        return nothing
    frame = pd.DataFrame({"risk": risk, "time": outcome.time, "event": outcome.event, "fold": within})
    try:
        fitted = CoxPHFitter().fit(frame, "time", "event", strata=["fold"])
    except ConvergenceError:
        return nothing
    low, high = fitted.confidence_intervals_.to_numpy()[0]
    return float(fitted.params_.iloc[0]), float(low), float(high)


def draws_of_patients(patients: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Bootstrap samples of patients, as the number of times that each case was drawn: (samples, cases).

    `patients` (cases,) numbers each case's patient; the cases of a patient are drawn together.
    """
    rng = np.random.default_rng(seed)
    number = int(patients.max()) + 1
    return rng.multinomial(number, np.full(number, 1 / number), size=samples)[:, patients].astype(np.float64)


def percentile_interval(samples: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of bootstrap values; NaN where fewer than half are defined."""
    values = np.asarray(samples, np.float64)
    known = values[np.isfinite(values)]
    if 2 * len(known) < len(values) or not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)
