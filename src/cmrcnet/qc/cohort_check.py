"""Run every detector over a cohort, one section in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cmrcnet.progress import tracked
from cmrcnet.qc.appearance import scale_findings, stain_findings, texture_curve
from cmrcnet.qc.arrangement import arrangement_finding, judge_arrangement
from cmrcnet.qc.identity import donor_findings, duplicate_findings
from cmrcnet.qc.section_summary import MOST_SPOTS, PICTURE_UM, TOP_GENES, Finding, SectionSummary, SpotMaps
from cmrcnet.slides.section import Cohort, Section
from cmrcnet.slides.slide import known_scale


def check_cohort(cohort: Cohort) -> tuple[Finding, ...]:
    """Look for duplicates, wrong patients, odd stains and scales, and spots that lie wrong.

    Every picture is read once, made small. What is kept of a section are vectors and a picture of 80 um a pixel.

    Parameters
    ----------
    cohort : Cohort

    Returns
    -------
    tuple of Finding
        Problems (``certain``) first, then suspicions. Empty when nothing was found, which is no proof that all is
        well: weak sections cannot be judged.

    Raises
    ------
    ScaleError
    """
    return findings_of([_summarized(entry.load()) for entry in tracked(cohort.entries, "check", unit="sections")])


def findings_of(summaries: Sequence[SectionSummary]) -> tuple[Finding, ...]:
    """All findings about sections that were sketched.

    Parameters
    ----------
    summaries : sequence of SectionSummary
        In the cohort's order.
    """
    placed = [arrangement_finding(one.name, one.arrangement) for one in summaries]
    found = [
        *duplicate_findings(summaries),
        *donor_findings(summaries),
        *scale_findings(summaries),
        *stain_findings(summaries),
        *(finding for finding in placed if finding is not None),
    ]
    return tuple(sorted(found, key=lambda finding: not finding.certain))


def _summarized(section) -> SectionSummary:
    """SectionSummary a section and let go of its pixels."""
    try:
        return summarize_section(section)
    finally:
        close = getattr(section.slide, "close", None)
        if close is not None:
            close()


def summarize_section(section: Section) -> SectionSummary:
    """Look at a section once and keep little.

    Parameters
    ----------
    section : Section

    Returns
    -------
    SectionSummary

    Raises
    ------
    ScaleError
    """
    mpp = known_scale(section.slide)
    maps = SpotMaps.of(section.slide, section.spots.diameter_um)
    totals = np.asarray(section.counts.sum(axis=0), np.float64).ravel()
    columns = np.argsort(-totals, kind="stable")[:TOP_GENES]
    deep = np.argsort(-np.asarray(section.counts.sum(axis=1)).ravel(), kind="stable")[:MOST_SPOTS]
    return SectionSummary(
        name=section.name,
        patient=section.patient,
        slide=section.slide.fingerprint(),
        centre_px=np.array(section.spots.centre_px),
        diameter_um=section.spots.diameter_um,
        pitch_um=_pitch(section.spots.centre_px, mpp),
        picture=maps.around(section.spots.centre_px, PICTURE_UM),
        colour=maps.colour(section.spots.centre_px),
        texture=texture_curve(section.slide, section.spots.centre_px),
        arrangement=judge_arrangement(maps, section.spots.centre_px, section.counts),
        totals=dict(zip(section.genes, totals.tolist(), strict=True)),
        top={section.genes[column]: place for place, column in enumerate(columns)},
        rows=section.counts[deep][:, columns].toarray().astype(np.int64),
    )


def _pitch(centre_px: np.ndarray, mpp: float) -> float | None:
    from scipy.spatial import KDTree

    if len(centre_px) < 2:
        return None
    return float(np.median(KDTree(centre_px).query(centre_px, k=2)[0][:, 1]) * mpp)
