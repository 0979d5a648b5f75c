"""Spots, sections (a slide, its spots and their counts) and cohorts, which load one section at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadOption, SectionError, ShapeMismatch, UnknownName
from cmrcnet.slides.slide import Slide


@dataclass(frozen=True, eq=False)
class Spots:
    """Named locations on one slide.

    Parameters
    ----------
    barcodes : tuple of str
        One name a spot, all different.
    centre_px : numpy.ndarray, shape (spots, 2), float64
        x, y of each centre in level-0 pixels of the slide.
    diameter_um : float
        Diameter of the measured area in micrometres.
    """

    barcodes: tuple[str, ...]
    centre_px: np.ndarray
    diameter_um: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "barcodes", tuple(str(b) for b in self.barcodes))
        centres = (
            np.array(self.centre_px, dtype=np.float64).reshape(-1, 2)
            if len(self.barcodes) == 0
            else np.array(self.centre_px, dtype=np.float64)
        )
        if centres.shape != (len(self.barcodes), 2):
            raise ShapeMismatch("centre_px", want=(len(self.barcodes), 2), got=centres.shape)
        centres.setflags(write=False)
        object.__setattr__(self, "centre_px", centres)
        if len(set(self.barcodes)) != len(self.barcodes):
            seen: set[str] = set()
            twice = sorted({b for b in self.barcodes if b in seen or seen.add(b)})
            raise SectionError.repeated_barcodes(twice)

    def __len__(self) -> int:
        return len(self.barcodes)

    def take(self, rows: Sequence[int] | np.ndarray) -> Spots:
        """The spots at `rows` (indices or a boolean mask), in that order."""
        chosen = np.asarray(rows)
        if chosen.shape == (0,) and chosen.dtype == np.float64:  # what numpy makes of []
            chosen = chosen.astype(np.intp)
        index = np.arange(len(self))[chosen]
        return Spots(tuple(self.barcodes[i] for i in index), self.centre_px[index], self.diameter_um)


@dataclass(frozen=True, eq=False)
class Section:
    """One paired section.

    Parameters
    ----------
    name, patient : str
    slide : Slide
    spots : Spots
        In the order of the rows of `counts`.
    counts : scipy.sparse.csr_matrix, shape (spots, genes)
        Raw whole counts.
    genes : tuple of str
        Names of the columns of `counts`, all different.
    absent_genes : {"zero", "unmeasured"}
        What a gene missing from `genes` means: the assay reads every transcript and found none ("zero"), or the
        assay's panel does not hold it ("unmeasured").
    notes : tuple of str
        What the reader dropped, merged or noticed; one sentence each.
    facts : dict
        Further columns of the cohort file (disease, site, condition), as text.
    """

    name: str
    patient: str
    slide: Slide
    spots: Spots
    counts: sparse.csr_matrix
    genes: tuple[str, ...]
    absent_genes: Literal["zero", "unmeasured"] = "unmeasured"
    notes: tuple[str, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "genes", tuple(self.genes))
        if self.counts.shape != (len(self.spots), len(self.genes)):
            raise ShapeMismatch(
                f"counts of {self.name}", want=(len(self.spots), len(self.genes)), got=self.counts.shape
            )
        if 0 in self.counts.shape:
            raise SectionError.empty(self.name, spots=self.counts.shape[0], genes=self.counts.shape[1])

    def take(self, rows: np.ndarray) -> Section:
        """The same section with only the spots at `rows` (indices or a boolean mask)."""
        index = np.arange(len(self.spots))[np.asarray(rows)]
        return Section(
            self.name,
            self.patient,
            self.slide,
            self.spots.take(index),
            self.counts[index],
            self.genes,
            self.absent_genes,
            self.notes,
            self.facts,
        )


@dataclass(frozen=True)
class CohortEntry:
    """One row of a cohort: a section's name, its patient, how to read it, and the file that names it ("" if none)."""

    section: str
    patient: str
    load: Callable[[], Section] = field(repr=False)
    facts: dict[str, str] = field(default_factory=dict, compare=False)
    source: str = field(default="", compare=False)


@dataclass(frozen=True)
class Cohort:
    """Sections in a stated order, each read only when asked for, so that memory does not grow with their number."""

    name: str
    entries: tuple[CohortEntry, ...]

    def __post_init__(self) -> None:
        names = [entry.section for entry in self.entries]
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise BadOption("section", ", ".join(twice), want="each section named once in a cohort")

    @classmethod
    def of(cls, sections: Iterable[Section], name: str = "cohort") -> Cohort:
        """A cohort of sections that are in memory already."""
        return cls(name, tuple(CohortEntry(s.name, s.patient, partial(_itself, s), s.facts) for s in sections))

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Section]:
        for entry in self.entries:
            yield entry.load()

    @property
    def sections(self) -> tuple[str, ...]:
        """Names of the sections, in order."""
        return tuple(entry.section for entry in self.entries)

    @property
    def patients(self) -> tuple[str, ...]:
        """The different patients, in order of first appearance."""
        return tuple(dict.fromkeys(entry.patient for entry in self.entries))

    def patient_of(self, section: str) -> str:
        """The patient of a section."""
        return self._entry(section).patient

    def source_of(self, section: str) -> str:
        """The cohort file that names a section; "" for one that is in memory only."""
        return self._entry(section).source

    def read(self, section: str) -> Section:
        """Read one section."""
        return self._entry(section).load()

    def only(self, sections: Iterable[str]) -> Cohort:
        """The cohort of just these sections, in THIS cohort's order."""
        wanted = set(sections)
        for name in sorted(wanted):
            self._entry(name)
        return Cohort(self.name, tuple(entry for entry in self.entries if entry.section in wanted))

    def without(self, sections: Iterable[str]) -> Cohort:
        """The cohort of all sections but these."""
        dropped = set(sections)
        return self.only(name for name in self.sections if name not in dropped)

    def _entry(self, section: str) -> CohortEntry:
        for entry in self.entries:
            if entry.section == section:
                return entry
        raise UnknownName("section", section, self.sections)


def _itself(section: Section) -> Section:
    """A function with a name, so that a cohort in memory can be sent to another process."""
    return section
