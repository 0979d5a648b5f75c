"""Each section of a cohort read once, although folds and methods ask for it many times."""

from __future__ import annotations

from cmrcnet.fingerprint import fingerprint
from cmrcnet.tissue.section import Cohort, CohortEntry, Section

MOST_BYTES = 1 << 30
"""Counts kept in memory; beyond it sections are read again each time, so that memory stays bounded."""


def remembered(cohort: Cohort, most_bytes: int = MOST_BYTES) -> Cohort:
    """The same cohort; sections are kept once read, up to `most_bytes` of counts. Slides free their own pixels."""
    kept: dict[str, Section] = {}
    used = [0]

    def entry(original: CohortEntry) -> CohortEntry:
        def load() -> Section:
            if original.section in kept:
                return kept[original.section]
            section = original.load()
            size = section.counts.data.nbytes + section.counts.indices.nbytes + section.counts.indptr.nbytes
            if used[0] + size <= most_bytes:
                kept[original.section] = section
                used[0] += size
            return section

        return CohortEntry(original.section, original.patient, load, original.facts)

    return Cohort(cohort.name, tuple(entry(original) for original in cohort.entries))


def section_fingerprint(section: Section) -> str:
    """Name of all that a section holds: picture, places, counts, genes, patient."""
    counts = section.counts
    return fingerprint(
        section.name,
        section.patient,
        section.slide.fingerprint(),
        section.slide.um_per_px,
        list(section.spots.barcodes),
        section.spots.centre_px,
        counts.indptr,
        counts.indices,
        counts.data,
        list(section.genes),
        section.absent_genes,
    )
