"""Folds of an outcome comparison: by patient, balanced by event or class, drawn several times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cmrcnet.errors import TooFew
from cmrcnet.outcomes.cohort import OutcomeCohort, Survival
from cmrcnet.outcomes.metrics import still_observed

GRID = 50
"""Times at which survival is predicted."""


def splits(cohort: OutcomeCohort, rows: np.ndarray, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Divide cases into folds by patient, balanced by event or class: (train, test) of each, as numbers of cases.

    Fewer folds where the rarest class of `rows` has fewer patients; none where it has one.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    strata, groups = cohort.outcome.strata[rows], cohort.patient_codes[rows]
    smallest = min(len(np.unique(groups[strata == each])) for each in np.unique(strata))
    folds = min(folds, smallest)
    if folds < 2:
        return []
    maker = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return [(rows[train], rows[test]) for train, test in maker.split(rows, strata, groups)]


@dataclass(frozen=True, eq=False)
class Folds:
    """The outer folds: `of` (repeats, cases) numbers the test fold of each case over all repeats.

    With survival: `observed` (repeats, cases) and `observed_at` (repeats, cases, times) are G of the training cases,
    `times` (times,) where survival is predicted, `horizon` the last of them.
    """

    of: np.ndarray
    splits: tuple[tuple[np.ndarray, np.ndarray], ...]
    times: np.ndarray
    observed: np.ndarray
    observed_at: np.ndarray

    @property
    def horizon(self) -> float:
        """Last time that is scored."""
        return float(self.times[-1])


def outer_folds(cohort: OutcomeCohort, number: int, repeats: int, seed: int) -> Folds:
    """Draw `number` outer folds for each repeat.

    Raises
    ------
    TooFew
        Fewer patients with an event (or of a class) than folds, or events only where hardly anyone is observed.
    """
    every, outcome = np.arange(len(cohort)), cohort.outcome
    found, of = [], np.zeros((repeats, len(cohort)), np.int64)
    for repeat in range(repeats):
        drawn = splits(cohort, every, number, seed + repeat)
        if len(drawn) < number:
            what = "patients with an event" if isinstance(outcome, Survival) else "patients of the smallest class"
            hint = f"give --folds {max(2, len(drawn))}" if drawn else "the outcome needs two patients of each kind"
            strata = [cohort.patient_codes[outcome.strata == each] for each in np.unique(outcome.strata)]
            raise TooFew(f"{what} for {number} folds", min(len(set(s)) for s in strata), number, hint)
        for train, test in drawn:
            of[repeat, test] = len(found)
            found.append((train, test))
    shape = of.shape
    if not isinstance(outcome, Survival):
        return Folds(of, tuple(found), np.empty(0), np.ones(shape), np.ones((*shape, 0)))
    start, end = np.quantile(outcome.time[outcome.event], 0.1), np.quantile(outcome.time, 0.9)
    for train, _ in found:  # where nobody of a training set is observed any more, nothing is weighted by that
        reached = np.unique(outcome.time[train])
        end = min(end, reached[still_observed(outcome.take(train), reached) > 0].max())
    if start >= end:
        early, hint = int((outcome.event & (outcome.time < end)).sum()), "follow the patients longer, or give --label"
        raise TooFew(f"events before {end:.3g}, which nine patients in ten do not reach", early, 2, hint)
    times = np.linspace(start, end, GRID)
    observed, observed_at = np.empty(shape), np.empty((*shape, GRID))
    for fold, (train, test) in enumerate(found):
        repeat, training = fold // number, outcome.take(train)
        observed[repeat, test] = still_observed(training, outcome.time[test])
        observed_at[repeat, test] = still_observed(training, times)
    return Folds(of, tuple(found), times, observed, observed_at)
