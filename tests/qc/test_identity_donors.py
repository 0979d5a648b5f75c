"""Who is who, as far as counts can tell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cmrcnet.qc.identity import donor_findings, sex_of, switched_genes

GENES = [f"G{i}" for i in range(400)]


def profile(donor: int, noise: int, depth: float = 1.0) -> dict[str, float]:
    """Counts of a donor in whom every fourth gene is off, another fourth in another donor."""
    level = np.random.default_rng(99).uniform(50, 400, len(GENES))
    level[np.random.default_rng(donor).permutation(len(GENES))[:100]] *= 0.01
    counts = np.random.default_rng(1000 + noise).poisson(level * depth)
    return dict(zip(GENES, counts.astype(float), strict=True))


def cohort(summaries, donors, patients, extra=None):
    return [
        replace(summaries[0], name=f"S{i}", patient=patient, totals=profile(donor, i) | (extra or {}).get(i, {}))
        for i, (donor, patient) in enumerate(zip(donors, patients, strict=True))
    ]


@pytest.mark.parametrize(
    ("totals", "sex"),
    [
        ({"XIST": 40, "ACTB": 1e5}, "female"),
        ({"Xist": 40, "Actb": 1e5}, "female"),
        ({"DDX3Y": 5, "UTY": 4, "ACTB": 1e5}, "male"),
        ({"Ddx3y": 22, "Eif2s3y": 8, "Xist": 1, "Actb": 1e5}, "male"),
        ({"XIST": 7, "ACTB": 1e4}, "unknown"),  # too few
        ({"UTY": 20, "ACTB": 2e6}, "unknown"),  # stray counts of a deep section
        ({"XIST": 40, "UTY": 20, "ACTB": 1e5}, "unknown"),  # both
        ({}, "unknown"),
    ],
)
def test_sex(totals, sex):
    assert sex_of(totals) == sex


def test_switched_genes_by_hand():
    left = {"A": 1000.0, "B": 100.0, "C": 100.0, "only left": 5.0}
    right = {"A": 500.0, "B": 0.0, "C": 50.0}
    assert switched_genes(left, right) == switched_genes(right, left) == 1
    assert switched_genes(left, {"A": 10.0, "B": 0.0, "C": 1.0}) == 0  # too shallow to expect 16
    assert switched_genes({"X": 1.0}, {"Y": 1.0}) == 0


def test_one_donor_under_two_names_is_suspected(summaries):
    found = donor_findings(cohort(summaries, donors=[1, 2, 3, 4, 1], patients="ABCDE"))
    assert [(finding.kind, finding.sections, finding.certain) for finding in found] == [
        ("same donor", ("S0", "S4"), False)
    ]
    assert found[0].value < found[0].threshold and "patient A" in found[0].sentence


def test_sound_patients_are_not(summaries):
    assert donor_findings(cohort(summaries, donors=[1, 1, 2, 3, 4], patients="AABCD")) == []


def test_silence_where_patients_do_not_differ(summaries):
    assert donor_findings(cohort(summaries, donors=[1] * 5, patients="ABCDE")) == []


def test_silence_where_sections_of_one_patient_differ_as_much(summaries):
    assert donor_findings(cohort(summaries, donors=[1, 2, 3, 4, 1], patients="AABBC")) == []


def test_two_sexes_clear_a_pair_and_mark_a_patient(summaries):
    extra = {0: {"XIST": 100.0, "UTY": 0.0}, 4: {"UTY": 100.0, "XIST": 0.0}}
    assert donor_findings(cohort(summaries, [1, 2, 3, 4, 1], "ABCDE", extra)) == []
    (finding,) = donor_findings(cohort(summaries, [1, 2, 3, 4, 1], "ABCDA", extra))
    assert finding.kind == "sexes differ" and finding.certain
    assert finding.sections == ("S0", "S4") and "Patient A" in finding.sentence
