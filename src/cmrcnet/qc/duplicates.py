"""One section under two names: the same counts, or the same picture.

Counts: two measured spots hardly ever agree in the counts of 20 genes or more, so equal rows are copies, in
whatever order spots and genes stand and also when one table holds a part of them only. Pictures: the surroundings of
the spots, made small, are laid on each other in the eight turns and mirrorings with every shift (normalised
cross-correlation by FFT; Lewis 1995). Two sections on one slide share a picture and are no duplicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.qc.finding import Finding

if TYPE_CHECKING:
    from cmrcnet.qc.section_summary import SectionSummary

FEWEST_SHARED_GENES = 20
FEWEST_COUNTS, FEWEST_GENES = 30, 8
"""A row says something when it sums to so much over so many genes."""
EQUAL_ROWS = 0.05
"""Share of the smaller section's rows that may be equal to rows of the other; at least three rows."""
ALIKE = 0.76
"""Correlation of two pictures' detail from which they are one. Measured on 14 real sections: different sections (also
serial ones) reach 0.68; a cropped, turned and restained copy has 0.83 and more."""
DETAIL = 2.0
"""Sigma in pixels of the Gaussian that is taken off: sections of one organ share the outline, not the detail."""
OVERLAP = 0.5
"""Share of the smaller picture that must be covered."""


def duplicate_findings(summaries: Sequence[SectionSummary]) -> list[Finding]:
    """Pairs of sections that are one.

    Parameters
    ----------
    summaries : sequence of SectionSummary
    """
    found = []
    for one, other in combinations(summaries, 2):
        equal = equal_rows(one, other)
        if equal > EQUAL_ROWS:
            found.append(
                Finding(
                    "duplicated counts",
                    (one.name, other.name),
                    equal,
                    EQUAL_ROWS,
                    f"{one.name} and {other.name} hold the same counts in {equal:.0%} of the spots of the smaller one; "
                    "keep one of them.",
                    certain=True,
                )
            )
        if one.slide == other.slide:
            found.append(_one_picture(one, other))
            continue
        alike = picture_likeness(one.picture, other.picture)
        if alike > ALIKE:
            found.append(
                Finding(
                    "duplicated picture",
                    (one.name, other.name),
                    alike,
                    ALIKE,
                    f"The pictures of {one.name} and {other.name} are the same tissue (correlation {alike:.2f} after "
                    "turning and shifting); keep one of them, or give the right picture.",
                    certain=True,
                )
            )
    return found


def equal_rows(one: SectionSummary, other: SectionSummary) -> float:
    """Share of the smaller section's telling spots whose counts occur in the other section too.

    Parameters
    ----------
    one, other : SectionSummary
        Compared over the genes that both hold among their top genes.
    """
    shared = [gene for gene in one.top if gene in other.top]
    if len(shared) < FEWEST_SHARED_GENES:
        return 0.0
    rows = []
    for each in (one, other):
        values = np.ascontiguousarray(each.rows[:, [each.top[gene] for gene in shared]])
        telling = (values.sum(axis=1) >= FEWEST_COUNTS) & ((values > 0).sum(axis=1) >= FEWEST_GENES)
        rows.append([row.tobytes() for row in values[telling]])
    few, many = sorted(rows, key=len)
    known = set(many)
    equal = sum(row in known for row in few)
    return equal / len(few) if equal >= 3 else 0.0


def picture_likeness(left: np.ndarray, right: np.ndarray) -> float:
    """Largest correlation of two pictures over the eight turns and mirrorings, and every shift with enough overlap.

    Parameters
    ----------
    left, right : numpy.ndarray, shape (height, width)
        Grey pictures at the same scale.

    Returns
    -------
    float
        -1 to 1; 0 for pictures without contrast.
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

    def slide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return fftconvolve(a, b[::-1, ::-1])

    a, b = left.astype(np.float64) - left.mean(), right.astype(np.float64) - right.mean()
    ones_a, ones_b = np.ones_like(a), np.ones_like(b)
    count = np.maximum(slide(ones_a, ones_b).round(), 1)
    sum_a, sum_b = slide(a, ones_b), slide(ones_a, b)
    variance_a = slide(a * a, ones_b) - sum_a**2 / count
    variance_b = slide(ones_a, b * b) - sum_b**2 / count
    shared = slide(a, b) - sum_a * sum_b / count
    least = 0.05 * count * max(min(a.var(), b.var()), 1e-9)  # a strip of glass on glass says nothing
    enough = (count >= OVERLAP * min(a.size, b.size)) & (variance_a > least) & (variance_b > least)
    if not enough.any():
        return 0.0
    return float((shared[enough] / np.sqrt(variance_a[enough] * variance_b[enough])).max())


def _one_picture(one: SectionSummary, other: SectionSummary) -> Finding:
    """Two sections on one picture: apart, or on top of each other."""
    from scipy.spatial import cKDTree

    few, many = sorted((one.centre_px, other.centre_px), key=len)
    reach = 0.5 * float(np.median(cKDTree(many).query(many, k=min(2, len(many)))[0].max(axis=1)))
    same = float((cKDTree(many).query(few)[0] < max(reach, 1.0)).mean())
    if same > 0.5:
        return Finding(
            "duplicated picture",
            (one.name, other.name),
            same,
            0.5,
            f"{one.name} and {other.name} have the same picture and {same:.0%} of their spots lie at the "
            f"same locations; "
            "keep one of them, or give each its own picture.",
            certain=True,
        )
    return Finding(
        "shared picture",
        (one.name, other.name),
        same,
        0.5,
        f"{one.name} and {other.name} lie at different locations of one picture; that is fine, as "
        f"long as each spot file "
        "belongs to its own section.",
    )
