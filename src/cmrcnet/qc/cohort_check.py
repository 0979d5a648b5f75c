"""Run every detector over a cohort, one section in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cmrcnet.genes.spatial_stats import pitch_of
from cmrcnet.progress import tracked
from cmrcnet.qc.appearance import scale_findings, stain_findings, texture_curve
from cmrcnet.qc.arrangement import arrangement_finding, judge_arrangement
from cmrcnet.qc.identity import donor_findings, duplicate_findings
from cmrcnet.qc.section_summary import MOST_ROWS, PICTURE_UM, TOP_GENES, Finding, SectionSummary, SpotMaps
from cmrcnet.slides.section import Cohort, Section
from cmrcnet.slides.slide import known_scale


def check_cohort(cohort: Cohort) -> tuple[Finding, ...]:
    """Detect duplicates, wrong patients, odd stains and scales, and misplaced spots.

    Every picture is read once, at reduced size. Of each section only vectors and a picture of 80 um per pixel are kept.

    Parameters
    ----------
    cohort : Cohort
        Its sections are read one by one.

    Returns
    -------
    tuple of Finding
        Problems (``certain``) first, then suspicions. An empty tuple does not prove that the cohort is sound: sections
        with few spots or weak signal cannot be judged.

    Raises
    ------
    ScaleError

    Examples
    --------
    >>> from cmrcnet import synthetic_cohort
    >>> check_cohort(synthetic_cohort(patients=2, spots=40, genes=60))
    ()
    """
    summaries = []
    for entry in tracked(cohort.entries, "check", unit="sections"):
        section = entry.load()
        try:
            summaries.append(summarize_section(section))
        finally:
            close = getattr(section.slide, "close", None)
            if close is not None:
                close()
    return findings_of(summaries)


def findings_of(summaries: Sequence[SectionSummary]) -> tuple[Finding, ...]:
    """Findings of all detectors, problems first; `summaries` are in the cohort's order."""
    arranged = [arrangement_finding(one.name, one.arrangement) for one in summaries]
    found = [
        *duplicate_findings(summaries),
        *donor_findings(summaries),
        *scale_findings(summaries),
        *stain_findings(summaries),
        *(finding for finding in arranged if finding is not None),
    ]
    return tuple(sorted(found, key=lambda finding: not finding.certain))


def summarize_section(section: Section) -> SectionSummary:
    """Reduce a section to what the detectors compare; its scale must be known (`ScaleError`)."""
    mpp, centre_px = known_scale(section.slide), np.array(section.spots.centre_px)
    maps = SpotMaps.of(section.slide, section.spots.diameter_um)
    counts, genes = section.counts, list(section.genes)
    if section.table_kind != "counts":  # what is compared of the table are molecules; pictures and places remain
        counts, genes = counts[:0, :0], []
    totals = np.asarray(counts.sum(axis=0), np.float64).ravel()
    columns = np.argsort(-totals, kind="stable")[:TOP_GENES]
    deep = np.argsort(-np.asarray(counts.sum(axis=1)).ravel(), kind="stable")[:MOST_ROWS]
    return SectionSummary(
        name=section.name,
        patient=section.patient,
        slide=section.slide.fingerprint(),
        centre_px=centre_px,
        diameter_um=section.spots.diameter_um,
        pitch_um=pitch_of(centre_px) * mpp,
        picture=maps.around(centre_px, PICTURE_UM),
        colour=maps.colour(centre_px),
        texture=texture_curve(section.slide, centre_px),
        arrangement=judge_arrangement(maps, centre_px, counts),
        totals=dict(zip(genes, totals.tolist(), strict=True)),
        top={genes[gene]: column for column, gene in enumerate(columns)},
        rows=counts[deep][:, columns].toarray().astype(np.int64),
    )
