"""Metrics of outcomes: by hand on tiny examples, and equal to independent libraries."""

from __future__ import annotations

import numpy as np
import pytest

from cmrcnet.outcomes.cohort import Survival
from cmrcnet.outcomes.metrics import (
    auc_pairs,
    auroc_pairs,
    balanced_accuracy,
    brier_terms,
    calibration_groups,
    draws_of_patients,
    harrell_pairs,
    integrated,
    log_rank,
    partial_log_likelihood,
    percentile_interval,
    still_observed,
    uno_pairs,
)

HAND = Survival(np.array([1.0, 2.0, 2.0, 3.0, 4.0]), np.array([True, True, False, True, False]))
RISK = np.array([0.9, 0.2, 0.3, 0.3, 0.1])


def made() -> tuple[Survival, Survival, np.ndarray]:
    """Sixty training and thirty test patients with ties in time and risk."""
    rng = np.random.default_rng(20261130)
    risk = np.round(rng.normal(size=90), 1)
    life = rng.exponential(np.exp(-risk) * 20)
    left = rng.exponential(30, size=90)
    whole = Survival(np.ceil(np.minimum(life, left) * 2) / 2, life <= left)
    return whole.take(np.arange(60)), whole.take(np.arange(60, 90)), risk[60:]


# scikit-survival 0.28.0 (GPL, so not a dependency) on `made()`:
#   harrell = concordance_index_censored(event, time, risk)[0]
#   uno     = concordance_index_ipcw(training, test, risk, tau=14.0)[0]
#   auc     = cumulative_dynamic_auc(training, test, risk, TIMES)[0]
#   brier   = brier_score(training, test, CURVES, TIMES)[1];  integrated = integrated_brier_score(...)
TIMES = np.array([2.5, 5.0, 9.0, 14.0])
GOLDEN = {
    "harrell": 0.794921875,
    "uno": 0.7963440575219902,
    "auc": [0.7897727272727273, 0.9236293130898999, 0.8422771032823593, 0.8172048799066223],
    "brier": [0.08904999508140499, 0.10734069724017527, 0.15749504446821325, 0.18673084296113587],
    "integrated": 0.14223691890366305,
}


def test_harrell_by_hand():
    # Comparable: (0: 1 2 3 4), (1: the patient censored at the same time, 3, 4), (3: 4). Right: 4 + 1 + 1.
    assert float(harrell_pairs(HAND, RISK).value()[0]) == pytest.approx(6 / 8)
    tied = np.array([0.9, 0.3, 0.3, 0.3, 0.1])
    assert float(harrell_pairs(HAND, tied).value()[0]) == pytest.approx((4 + 0.5 + 0.5 + 1 + 1) / 8)


def test_pairs_of_two_folds_are_not_compared():
    within = np.array([0, 0, 0, 1, 1])
    assert float(harrell_pairs(HAND, RISK, within).value()[0]) == pytest.approx((2 + 0 + 1) / 4)


def test_a_patient_drawn_twice_counts_as_two():
    twice = np.array([0, 0, 1, 2, 3, 4])
    want = harrell_pairs(HAND.take(twice), RISK[twice]).value()
    assert harrell_pairs(HAND, RISK).value(np.array([[2.0, 1, 1, 1, 1]])) == pytest.approx(want)


def test_metrics_equal_lifelines():
    from lifelines.utils import concordance_index

    training, test, risk = made()
    assert float(harrell_pairs(test, risk).value()[0]) == pytest.approx(concordance_index(test.time, -risk, test.event))
    # Cox's partial likelihood at the coefficient that lifelines finds, Breslow's ties (no ties here: events apart).
    import pandas as pd
    from lifelines import CoxPHFitter

    apart = Survival(training.time + np.arange(60) * 1e-6, training.event)
    frame = pd.DataFrame({"x": np.linspace(-1, 1, 60), "t": apart.time, "e": apart.event})
    fitted = CoxPHFitter().fit(frame, "t", "e")
    ours = partial_log_likelihood(apart, frame["x"].to_numpy() * fitted.params_["x"])
    assert ours * apart.event.sum() == pytest.approx(fitted.log_likelihood_, rel=1e-6)


def test_metrics_equal_scikit_survival():
    training, test, risk = made()
    observed = still_observed(training, test.time)
    assert float(harrell_pairs(test, risk).value()[0]) == pytest.approx(GOLDEN["harrell"], abs=1e-12)
    assert float(uno_pairs(test, risk, observed, 14.0).value()[0]) == pytest.approx(GOLDEN["uno"], abs=1e-12)
    auc = [float(auc_pairs(test, risk, observed, at).value()[0]) for at in TIMES]
    assert auc == pytest.approx(GOLDEN["auc"], abs=1e-12)
    curves = np.exp(-np.outer(np.exp(risk), TIMES / 20))
    terms = brier_terms(test, curves, TIMES, observed, still_observed(training, TIMES))
    assert terms.mean(axis=0) == pytest.approx(GOLDEN["brier"], abs=1e-12)
    assert integrated(terms, TIMES).mean() == pytest.approx(GOLDEN["integrated"], abs=1e-12)


def test_brier_by_hand_without_censoring():
    outcome = Survival(np.array([1.0, 3.0]), np.array([True, True]))
    curves = np.array([[0.8, 0.2], [0.9, 0.5]])
    terms = brier_terms(outcome, curves, np.array([0.5, 2.0]), np.ones(2), np.ones(2))
    assert terms == pytest.approx(np.array([[0.2**2, 0.2**2], [0.1**2, 0.5**2]]))
    assert integrated(terms, np.array([0.5, 2.0])) == pytest.approx(terms.mean(axis=1))


def test_uno_by_hand():
    observed = np.array([1.0, 0.5, 0.5, 0.5, 0.5])
    # Weight 1 for the four pairs of the first, 4 for the three of the second; the third is beyond the horizon.
    assert float(uno_pairs(HAND, RISK, observed, 3.0).value()[0]) == pytest.approx((4 + 4 * 1) / (4 + 4 * 3))


def test_auc_by_hand():
    # By time 2 the first two had the event; the last two are later. Right: both pairs of the first, one of the second.
    assert float(auc_pairs(HAND, RISK, np.ones(5), 2.0).value()[0]) == pytest.approx(3 / 4)


def test_classification_equals_scikit_learn():
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    rng = np.random.default_rng(3)
    truth = rng.integers(0, 2, 60)
    score = np.round(rng.normal(size=60) + truth, 1)
    assert float(auroc_pairs(truth == 1, score).value()[0]) == pytest.approx(roc_auc_score(truth, score))
    guessed = (score > 0.5).astype(int)
    assert float(balanced_accuracy(truth, guessed)[0]) == pytest.approx(balanced_accuracy_score(truth, guessed))


def test_pairs_of_two_repeats_add_up():
    truth, score = np.array([True, False, True]), np.array([0.9, 0.1, 0.0])
    auroc = auroc_pairs(truth, score)
    assert float((auroc + auroc).value()[0]) == float(auroc.value()[0]) == 0.5


def test_log_rank_by_hand():
    # Two against two, deaths at 1 2 | 3 4: observed 2, expected 1/2 + 1/3 (+ nothing), variance 1/4 + 2/9.
    from scipy.stats import chi2

    outcome = Survival(np.array([1.0, 2.0, 3.0, 4.0]), np.ones(4, bool))
    statistic = (2 - 5 / 6) ** 2 / (1 / 4 + 2 / 9)
    assert log_rank(outcome, np.array([True, True, False, False])) == pytest.approx(float(chi2.sf(statistic, 1)))
    assert np.isnan(log_rank(outcome, np.ones(4, bool)))


def test_calibration_groups_by_hand():
    outcome = Survival(np.array([1.0, 5.0, 5.0, 5.0]), np.array([True, False, False, False]))
    groups = calibration_groups(outcome, np.array([0.2, 0.4, 0.9, 0.8]), 2.0, groups=2)
    assert [group[:2] for group in groups] == [pytest.approx((0.3, 0.5)), pytest.approx((0.85, 1.0))]


def test_cases_of_a_patient_are_drawn_together():
    draws = draws_of_patients(np.array([0, 0, 1, 2]), 200, seed=0)
    assert (draws[:, 0] == draws[:, 1]).all()
    assert (draws[:, [1, 2, 3]].sum(axis=1) == 3).all()
    low, high = percentile_interval(draws[:, 0])
    assert low == 0.0 and high >= 2.0


@pytest.mark.parametrize("name", ["cohort", "metrics", "protocol", "scoring"])
def test_examples_run(name):
    import doctest
    import importlib

    failed, tried = doctest.testmod(importlib.import_module(f"cmrcnet.outcomes.{name}"))
    assert failed == 0 and tried > 0
