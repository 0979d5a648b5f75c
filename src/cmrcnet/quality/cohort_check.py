"""Run every detector over a cohort, one section in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence

from cmrcnet.progress import tracked
from cmrcnet.quality.arrangement import arrangement_finding
from cmrcnet.quality.donors import donor_findings
from cmrcnet.quality.duplicates import duplicate_findings
from cmrcnet.quality.finding import Finding
from cmrcnet.quality.sketch import Sketch, sketch
from cmrcnet.quality.stain import stain_findings
from cmrcnet.quality.texture import scale_findings
from cmrcnet.tissue.section import Cohort


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
    UnknownScale
    """
    return findings_of([_sketched(entry.load()) for entry in tracked(cohort.entries, "check", unit="sections")])


def findings_of(sketches: Sequence[Sketch]) -> tuple[Finding, ...]:
    """All findings about sections that were sketched.

    Parameters
    ----------
    sketches : sequence of Sketch
        In the cohort's order.
    """
    placed = [arrangement_finding(one.name, one.arrangement) for one in sketches]
    found = [
        *duplicate_findings(sketches),
        *donor_findings(sketches),
        *scale_findings(sketches),
        *stain_findings(sketches),
        *(finding for finding in placed if finding is not None),
    ]
    return tuple(sorted(found, key=lambda finding: not finding.certain))


def _sketched(section) -> Sketch:
    """Sketch a section and let go of its pixels."""
    try:
        return sketch(section)
    finally:
        close = getattr(section.slide, "close", None)
        if close is not None:
            close()
