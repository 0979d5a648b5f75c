"""Run every detector over a cohort, one section in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence

from cmrcnet.progress import tracked
from cmrcnet.qc.arrangement import arrangement_finding
from cmrcnet.qc.donors import donor_findings
from cmrcnet.qc.duplicates import duplicate_findings
from cmrcnet.qc.finding import Finding
from cmrcnet.qc.section_summary import SectionSummary, summarize_section
from cmrcnet.qc.stain import stain_findings
from cmrcnet.qc.texture import scale_findings
from cmrcnet.slides.section import Cohort


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
