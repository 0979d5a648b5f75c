"""Is one donor entered as two patients, or are two donors entered as one?

Gene counts carry no genotype. What they carry: the sex (Xist and genes of the Y chromosome), and genes that are on in
one person and off in another (HLA, immunoglobulin chains, deletions) or in one tumour and not in another. So the
detector counts SWITCHED genes between the summed counts of two sections: those expected 16 times or more by the other
section's share, and seen at most an eighth as often.

Measured: between two breast cancer patients 386 to 440 genes are switched, within one (serial sections) 0 to 5, and
the correlations of log pseudo-bulk are .747 to .760 against .962 to .985: one tumour against another is plain. Between
inbred mice of one strain it is 5 to 61 against 7 to 78, correlations .661 to .916 against .675 to .933: donors cannot
be told, and the detector keeps silent there, except for the sex (Xist in three mice, Y genes in one; a section of
only 38,000 counts stays unknown). Close relatives, and healthy tissue of different people, have not been measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Literal

import numpy as np

from cmrcnet.qc.finding import Finding

if TYPE_CHECKING:
    from cmrcnet.qc.section_summary import SectionSummary

FEMALE = ("XIST",)
MALE = ("RPS4Y1", "DDX3Y", "UTY", "EIF1AY", "KDM5D", "EIF2S3Y", "USP9Y", "ZFY", "TXLNGY")
"""Upper case; mouse symbols (Xist, Ddx3y, ...) are read alike."""
SEX_COUNTS, SEX_PER_MILLION = 8, 30.0
"""What the genes of one sex must reach. Stray Y counts of female sections: up to 5 per million."""
SEX_RATIO = 5.0
"""And how many times as many as those of the other sex."""

EXPECTED, SWITCHED = 16.0, 8.0
USUAL_SWITCHED = 30
"""Between different donors so many genes must be switched (median over pairs), or nothing can be told."""
FEWER = 5.0
"""One donor: so many times fewer than usual."""
FEWEST_PAIRS = 3


def sex_of(totals: Mapping[str, float]) -> Literal["female", "male", "unknown"]:
    """The sex that a section's summed counts show.

    Parameters
    ----------
    totals : mapping of gene to counts
    """
    everything = max(sum(totals.values()), 1.0)
    female = sum(count for gene, count in totals.items() if gene.upper() in FEMALE)
    male = sum(count for gene, count in totals.items() if gene.upper() in MALE)
    for name, own, other in (("female", female, male), ("male", male, female)):
        if own >= max(SEX_COUNTS, SEX_PER_MILLION * everything / 1e6) and own >= SEX_RATIO * other:
            return name
    return "unknown"


def switched_genes(left: Mapping[str, float], right: Mapping[str, float]) -> int:
    """Genes that one section counts often and the other, at its depth, hardly ever.

    Parameters
    ----------
    left, right : mapping of gene to counts
        Only genes that both name are compared.
    """
    genes = [gene for gene in left if gene in right]
    if not genes:
        return 0
    a, b = (np.array([each[gene] for gene in genes], np.float64) for each in (left, right))
    total_a, total_b = max(a.sum(), 1.0), max(b.sum(), 1.0)
    wanted_b, wanted_a = a * total_b / total_a, b * total_a / total_b
    off = (wanted_b >= EXPECTED) & (b <= wanted_b / SWITCHED) | (wanted_a >= EXPECTED) & (a <= wanted_a / SWITCHED)
    return int(off.sum())


def donor_findings(summaries: Sequence[SectionSummary]) -> list[Finding]:
    """One patient with two sexes; two patients who look like one donor.

    Parameters
    ----------
    summaries : sequence of SectionSummary
    """
    sexes = {one.name: sex_of(one.totals) for one in summaries}
    return [*_two_sexes(summaries, sexes), *_one_donor(summaries, sexes)]


def _two_sexes(summaries: Sequence[SectionSummary], sexes: Mapping[str, str]) -> list[Finding]:
    found = []
    for patient in dict.fromkeys(one.patient for one in summaries):
        own = [one.name for one in summaries if one.patient == patient]
        men, women = ([name for name in own if sexes[name] == sex] for sex in ("male", "female"))
        if men and women:
            found.append(
                Finding(
                    "sexes differ",
                    (*women, *men),
                    float(min(len(men), len(women))),
                    0.0,
                    f"Patient {patient} has sections of both sexes: {', '.join(women)} express XIST, {', '.join(men)} "
                    "genes of the Y chromosome; one of them bears the wrong patient.",
                    certain=True,
                )
            )
    return found


def _one_donor(summaries: Sequence[SectionSummary], sexes: Mapping[str, str]) -> list[Finding]:
    switched = {(a.name, b.name): switched_genes(a.totals, b.totals) for a, b in combinations(summaries, 2)}
    patient = {one.name: one.patient for one in summaries}
    between = [count for (a, b), count in switched.items() if patient[a] != patient[b]]
    within = [count for (a, b), count in switched.items() if patient[a] == patient[b]]
    if len(between) <= FEWEST_PAIRS:
        return []
    usual = float(np.median(between))
    if usual < USUAL_SWITCHED or (within and np.median(within) > usual / FEWER):
        return []  # patients of this cohort do not differ enough, or sections of one patient too much
    found = []
    for (a, b), count in switched.items():
        if patient[a] == patient[b] or count > usual / FEWER or {sexes[a], sexes[b]} == {"male", "female"}:
            continue
        found.append(
            Finding(
                "same donor",
                (a, b),
                float(count),
                usual / FEWER,
                f"{a} (patient {patient[a]}) and {b} (patient {patient[b]}) may be of one donor: {count} genes are on "
                f"in one and off in the other, where sections of different patients here differ in {usual:.0f} "
                "(median); check the patients, or a test will leak.",
            )
        )
    return found
