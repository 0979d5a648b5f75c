"""Identity: one section entered twice (the same counts or the same picture), or a section under the wrong patient.

Equal counts: two measured spots hardly ever agree in the counts of 20 genes or more, so equal rows are copies, in
whatever order spots and genes stand and also when one table holds a part of them only. Equal pictures: the surroundings
of the spots, reduced, are compared in the eight turns and mirrorings with every shift (normalised cross-correlation by
FFT; Lewis 1995). Two sections on one slide share a picture and are no duplicates.

Donors: gene counts carry no genotype, but the sex (Xist and genes of the Y chromosome), and genes that are on in one
person and off in another (HLA, immunoglobulin chains, deletions) or in one tumour and not in another. The detector
counts SWITCHED genes between the summed counts of two sections: those expected 16 times or more by the other section's
share, and seen at most an eighth as often. Measured: between two breast cancer patients 386 to 440 genes are switched,
within one (serial sections) 0 to 5; the correlations of log pseudo-bulk are .747 to .760 against .962 to .985. Between
inbred mice of one strain it is 5 to 61 against 7 to 78, correlations .661 to .916 against .675 to .933: donors cannot
be told apart, and the detector reports nothing except the sex (Xist in three mice, Y genes in one; a section of only
38,000 counts stays unknown). Close relatives, and healthy tissue of different people, have not been measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal

import numpy as np

from cmrcnet.qc.section_summary import Finding, SectionSummary

FEWEST_SHARED_GENES = 20
FEWEST_COUNTS, FEWEST_GENES = 30, 8
"""Rows with fewer counts or genes are not compared."""
EQUAL_ROWS = 0.05
"""Share of the smaller section's rows that may be equal to rows of the other; at least three rows."""
ALIKE = 0.76
"""Correlation of two pictures' detail from which they are one. Measured on 14 real sections: different sections (also
serial ones) reach 0.68; a cropped, turned and restained copy has 0.83 and more."""
DETAIL = 2.0
"""Sigma in pixels of the Gaussian that is subtracted: sections of one organ share the outline, not the detail."""
OVERLAP = 0.5
"""Share of the smaller picture that must be covered."""


def duplicate_findings(summaries: Sequence[SectionSummary]) -> list[Finding]:
    """Pairs of sections with the same counts or the same picture."""
    found = []
    for one, other in combinations(summaries, 2):
        equal = equal_rows(one, other)
        if equal > EQUAL_ROWS:
            sentence = (
                f"{one.name} and {other.name} hold the same counts in {equal:.0%} of the spots of the smaller one; "
                "keep one of them."
            )
            pair = (one.name, other.name)
            found.append(Finding("duplicated counts", pair, equal, EQUAL_ROWS, sentence, certain=True))
        if one.slide == other.slide:
            found.append(_one_picture(one, other))
            continue
        alike = picture_likeness(one.picture, other.picture)
        if alike > ALIKE:
            sentence = (
                f"The pictures of {one.name} and {other.name} are the same tissue (correlation {alike:.2f} after "
                "turning and shifting); keep one of them, or give the right picture."
            )
            pair = (one.name, other.name)
            found.append(Finding("duplicated picture", pair, alike, ALIKE, sentence, certain=True))
    return found


def equal_rows(one: SectionSummary, other: SectionSummary) -> float:
    """Share of the smaller section's deep spots whose counts, over shared top genes, also occur in the other."""
    shared = [gene for gene in one.top if gene in other.top]
    if len(shared) < FEWEST_SHARED_GENES:
        return 0.0
    rows = []
    for each in (one, other):
        values = np.ascontiguousarray(each.rows[:, [each.top[gene] for gene in shared]])
        deep = (values.sum(axis=1) >= FEWEST_COUNTS) & ((values > 0).sum(axis=1) >= FEWEST_GENES)
        rows.append([row.tobytes() for row in values[deep]])
    few, many = sorted(rows, key=len)
    known = set(many)
    equal = sum(row in known for row in few)
    return equal / len(few) if equal >= 3 else 0.0


def picture_likeness(left: np.ndarray, right: np.ndarray) -> float:
    """Largest correlation of two pictures over the eight turns and mirrorings, and every shift with enough overlap.

    The pictures (height, width) are grey and at the same scale; 0 for pictures without contrast.
    """
    from scipy.ndimage import gaussian_filter

    left, right = (each - gaussian_filter(each, DETAIL) for each in (left, right))
    best = 0.0
    for mirrored in (right, right[:, ::-1]):
        for quarter in range(4):
            best = max(best, _best_shift(left, np.rot90(mirrored, quarter)))
    return best


def _best_shift(left: np.ndarray, right: np.ndarray) -> float:
    from scipy.signal import fftconvolve

    def correlate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return fftconvolve(a, b[::-1, ::-1])

    a, b = left.astype(np.float64) - left.mean(), right.astype(np.float64) - right.mean()
    ones_a, ones_b = np.ones_like(a), np.ones_like(b)
    count = np.maximum(correlate(ones_a, ones_b).round(), 1)
    sum_a, sum_b = correlate(a, ones_b), correlate(ones_a, b)
    variance_a = correlate(a * a, ones_b) - sum_a**2 / count
    variance_b = correlate(ones_a, b * b) - sum_b**2 / count
    shared = correlate(a, b) - sum_a * sum_b / count
    least = 0.05 * count * max(min(a.var(), b.var()), 1e-9)  # glass on glass is not compared
    enough = (count >= OVERLAP * min(a.size, b.size)) & (variance_a > least) & (variance_b > least)
    if not enough.any():
        return 0.0
    return float((shared[enough] / np.sqrt(variance_a[enough] * variance_b[enough])).max())


def _one_picture(one: SectionSummary, other: SectionSummary) -> Finding:
    """Finding for two sections on one picture: apart, or on top of each other."""
    from scipy.spatial import KDTree

    few, many = sorted((one.centre_px, other.centre_px), key=len)
    nearest = np.asarray(KDTree(many).query(many, k=min(2, len(many)))[0])
    reach = 0.5 * float(np.median(nearest.max(axis=1)))
    same = float((np.asarray(KDTree(many).query(few)[0]) < max(reach, 1.0)).mean())
    pair = (one.name, other.name)
    if same > 0.5:
        sentence = (
            f"{one.name} and {other.name} have the same picture and {same:.0%} of their spots lie at the same "
            "locations; keep one of them, or give each its own picture."
        )
        return Finding("duplicated picture", pair, same, 0.5, sentence, certain=True)
    sentence = (
        f"{one.name} and {other.name} lie at different locations of one picture; that is fine, as long as each spot "
        "file belongs to its own section."
    )
    return Finding("shared picture", pair, same, 0.5, sentence)


FEMALE = ("XIST",)
MALE = ("RPS4Y1", "DDX3Y", "UTY", "EIF1AY", "KDM5D", "EIF2S3Y", "USP9Y", "ZFY", "TXLNGY")
"""Upper case; mouse symbols (Xist, Ddx3y, ...) are read alike."""
SEX_COUNTS, SEX_PER_MILLION = 8, 30.0
"""Counts that the genes of one sex must reach; stray Y counts of female sections are up to 5 per million."""
SEX_RATIO = 5.0
"""Factor by which they must exceed those of the other sex."""

EXPECTED, SWITCHED = 16.0, 8.0
USUAL_SWITCHED = 30
"""Fewest switched genes between donors (median over pairs) with which donors can be told apart."""
FEWER = 5.0
"""Factor below the median that makes one donor of two sections."""
FEWEST_PAIRS = 3


def sex_of(totals: Mapping[str, float]) -> Literal["female", "male", "unknown"]:
    """Sex by a section's summed counts of each gene."""
    everything = max(sum(totals.values()), 1.0)
    female = sum(count for gene, count in totals.items() if gene.upper() in FEMALE)
    male = sum(count for gene, count in totals.items() if gene.upper() in MALE)
    least = max(SEX_COUNTS, SEX_PER_MILLION * everything / 1e6)
    if female >= least and female >= SEX_RATIO * male:
        return "female"
    return "male" if male >= least and male >= SEX_RATIO * female else "unknown"


def switched_genes(left: Mapping[str, float], right: Mapping[str, float]) -> int:
    """Number of genes, of those in both, that one section counts often and the other, at its depth, hardly ever."""
    genes = [gene for gene in left if gene in right]
    if not genes:
        return 0
    a, b = (np.array([each[gene] for gene in genes], np.float64) for each in (left, right))
    total_a, total_b = max(a.sum(), 1.0), max(b.sum(), 1.0)
    wanted_b, wanted_a = a * total_b / total_a, b * total_a / total_b
    off = (wanted_b >= EXPECTED) & (b <= wanted_b / SWITCHED) | (wanted_a >= EXPECTED) & (a <= wanted_a / SWITCHED)
    return int(off.sum())


def donor_findings(summaries: Sequence[SectionSummary]) -> list[Finding]:
    """Patients with sections of both sexes, and patients whose sections look like one donor."""
    sexes = {one.name: sex_of(one.totals) for one in summaries}
    found = []
    for patient in dict.fromkeys(one.patient for one in summaries):
        own = [one.name for one in summaries if one.patient == patient]
        men, women = ([name for name in own if sexes[name] == sex] for sex in ("male", "female"))
        if men and women:
            sentence = (
                f"Patient {patient} has sections of both sexes: {', '.join(women)} express XIST, {', '.join(men)} "
                "genes of the Y chromosome; one of them bears the wrong patient."
            )
            fewer = float(min(len(men), len(women)))
            found.append(Finding("sexes differ", (*women, *men), fewer, 0.0, sentence, certain=True))
    return found + _one_donor(summaries, sexes)


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
        sentence = (
            f"{a} (patient {patient[a]}) and {b} (patient {patient[b]}) may be of one donor: {count} genes are on in "
            f"one and off in the other, where sections of different patients here differ in {usual:.0f} (median); "
            "check the patients, or a test will leak."
        )
        found.append(Finding("same donor", (a, b), float(count), usual / FEWER, sentence))
    return found
