"""Each section of a cohort read once, although folds and methods ask for it many times."""

from __future__ import annotations

from collections.abc import Callable

from cmrcnet.slides.section import Cohort, CohortEntry, Section
from cmrcnet.storage.hashing import fingerprint

MOST_BYTES = 1 << 30
"""Counts kept in memory; beyond it sections are read again each time, so that memory stays bounded."""


def remembered(cohort: Cohort, most_bytes: int = MOST_BYTES) -> Cohort:
    """The same cohort; sections are kept once read, up to `most_bytes` of counts. Slides free their own pixels.

    Each entry keeps its own section and knows no other: from the training entries of a fold no held-out section
    can be reached.
    """
    budget = _Budget(most_bytes)
    return Cohort(
        cohort.name,
        tuple(
            CohortEntry(entry.section, entry.patient, _Kept(entry.load, budget), entry.metadata)
            for entry in cohort.entries
        ),
    )


class _Budget:
    """Bytes that may still be kept."""

    def __init__(self, left: int) -> None:
        self.left = left


class _Kept:
    """Read one section, and keep it while there is room."""

    def __init__(self, load: Callable[[], Section], budget: _Budget) -> None:
        self._load, self._budget = load, budget
        self._section: Section | None = None

    def __reduce__(self) -> tuple:  # another process reads for itself, and keeps what it wants
        return _Kept, (self._load, _Budget(0))

    def __call__(self) -> Section:
        if self._section is not None:
            return self._section
        section = self._load()
        size = section.counts.data.nbytes + section.counts.indices.nbytes + section.counts.indptr.nbytes
        if size <= self._budget.left:
            self._budget.left -= size
            self._section = section
        return section


def section_fingerprint(section: Section) -> str:
    """Name of all that a section holds: picture, locations, counts, genes, patient."""
    counts = section.counts
    return fingerprint(
        section.name,
        section.patient,
        section.slide.fingerprint(),
        section.slide.mpp,
        list(section.spots.barcodes),
        section.spots.centre_px,
        counts.indptr,
        counts.indices,
        counts.data,
        list(section.genes),
        section.absent_genes,
    )
