"""Spots, sections (a slide, its spots and their counts) and cohorts, which load one section at a time.

Long because it is one thing: the measured data, and what must hold for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadOption, SectionError, ShapeMismatch, UnknownName
from cmrcnet.slides.slide import ArraySlide, Slide, known_scale, open_slide
from cmrcnet.slides.spot_tables import SpotTable, image_and_spots, spots_of_anndata
from cmrcnet.slides.table_kinds import FEATURE_WORD, TableKind, check_values, table_kind

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


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
    members : tuple of numpy.ndarray, shape (locations, 2), or None
        x, y of the locations whose image features are averaged for each spot, where a spot is a region or a whole
        slide; None: the spot itself.

    Examples
    --------
    >>> spots = Spots(("a", "b", "c"), [[10, 20], [30, 40], [50, 60]], diameter_um=55.0)
    >>> spots.take([2, 0]).barcodes
    ('c', 'a')
    """

    barcodes: tuple[str, ...]
    centre_px: np.ndarray
    diameter_um: float
    members: tuple[np.ndarray, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "barcodes", tuple(str(b) for b in self.barcodes))
        centres = np.array(self.centre_px, dtype=np.float64)
        if len(self.barcodes) == 0:
            centres = centres.reshape(-1, 2)
        if centres.shape != (len(self.barcodes), 2):
            raise ShapeMismatch("centre_px", want=(len(self.barcodes), 2), got=centres.shape)
        centres.setflags(write=False)
        object.__setattr__(self, "centre_px", centres)
        if len(set(self.barcodes)) != len(self.barcodes):
            raise SectionError.repeated_barcodes(repeated(self.barcodes))
        if self.members is not None:
            members = tuple(np.array(each, dtype=np.float64).reshape(-1, 2) for each in self.members)
            if len(members) != len(self.barcodes) or not all(map(len, members)):
                got = f"{len(members)}, {sum(not len(each) for each in members)} of them without a location"
                raise ShapeMismatch("members", want=f"{len(self.barcodes)}, one location or more each", got=got)
            object.__setattr__(self, "members", members)

    def __len__(self) -> int:
        return len(self.barcodes)

    def take(self, rows: Sequence[int] | np.ndarray) -> Spots:
        """The spots at `rows` (indices or a boolean mask), in that order."""
        chosen = np.asarray(rows)
        if chosen.shape == (0,) and chosen.dtype == np.float64:  # what numpy makes of []
            chosen = chosen.astype(np.intp)
        index = np.arange(len(self))[chosen]
        members = None if self.members is None else tuple(self.members[i] for i in index)
        return Spots(tuple(self.barcodes[i] for i in index), self.centre_px[index], self.diameter_um, members)

    @property
    def location_px(self) -> np.ndarray:
        """Centres (locations, 2) of all that is encoded: the members of every spot in turn, or the spots."""
        return self.centre_px if self.members is None else np.concatenate(self.members)

    @cached_property
    def first_location(self) -> np.ndarray:
        """Row of `location_px` at which each spot begins, and the number of rows: (spots + 1,) int64."""
        counts = np.ones(len(self), np.int64) if self.members is None else [len(each) for each in self.members]
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def pooled(self, values: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
        """Mean over the locations of each spot of `rows`; `values` are those of their locations, (locations, ...).

        Values themselves, where every spot is its own location.

        Examples
        --------
        >>> region = Spots(("r",), [[15, 10]], 55.0, members=([[10, 10], [20, 10]],))
        >>> region.pooled(np.array([[1.0], [3.0]])).tolist()
        [[2.0]]
        """
        if self.members is None:
            return values
        start, stop, _ = rows.indices(len(self))
        first = self.first_location[start : stop + 1] - self.first_location[start]
        sums = np.add.reduceat(np.asarray(values, np.float64), first[:-1], axis=0)
        return (sums / np.diff(first).reshape(-1, *[1] * (values.ndim - 1))).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Section:
    """One section: a slide, its spots and what was measured there.

    Parameters
    ----------
    name, patient : str
        Sections of one patient name the same patient, so that they are never split between training and test.
    slide : Slide
        The stained picture.
    spots : Spots
        In the order of the rows of `counts`.
    counts : scipy.sparse.csr_matrix, shape (spots, genes)
        Raw whole counts; or the values of a table of another kind, as measured.
    genes : tuple of str
        Names of the columns of `counts`, all different: genes, or other features.
    absent_genes : {"zero", "unmeasured"}
        What a gene missing from `genes` means: the assay reads every transcript and found none ("zero"), or the
        assay's panel does not hold it ("unmeasured").
    table_kind : {"counts", "continuous", "proportions", "binary"}
        What the table holds (see `slides.table_kinds`).
    notes : tuple of str
        What the reader dropped, merged or assumed; one sentence each.
    metadata : dict
        Further columns of the cohort file (disease, site, condition), as text.
    patients_within : tuple of str
        Patients of the rows, where a section is a group of patients with one row a slide. What is made from the section
        has seen them as well as `patient`.

    Examples
    --------
    >>> from cmrcnet import synthetic_cohort
    >>> section = synthetic_cohort(patients=1, spots=12, genes=40).read("P1S1")
    >>> section.patient, len(section.spots), section.counts.shape
    ('P1', 12, (12, 40))
    """

    name: str
    patient: str
    slide: Slide
    spots: Spots
    counts: sparse.csr_matrix
    genes: tuple[str, ...]
    absent_genes: Literal["zero", "unmeasured"] = "unmeasured"
    table_kind: TableKind = "counts"
    notes: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    patients_within: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "genes", tuple(self.genes))
        if table_kind(self.table_kind) != "counts" and self.absent_genes != "unmeasured":
            raise BadOption("absent_genes", self.absent_genes, want="unmeasured for a table that is none of counts")
        wanted = (len(self.spots), len(self.genes))
        if self.counts.shape != wanted:
            raise ShapeMismatch(f"counts of {self.name}", want=wanted, got=self.counts.shape)
        if 0 in wanted:
            raise SectionError.empty(self.name, *wanted)

    def take(self, rows: np.ndarray) -> Section:
        """The same section with only the spots at `rows` (indices or a boolean mask)."""
        index = np.arange(len(self.spots))[np.asarray(rows)]
        return replace(self, spots=self.spots.take(index), counts=self.counts[index])

    @classmethod
    def from_anndata(
        cls,
        adata: AnnData,
        slide: Slide | Path | str | np.ndarray,
        *,
        layer: str | None = None,
        mpp: float | None = None,
        spot_diameter_um: float | None = None,
        library: str | None = None,
        name: str | None = None,
        patient: str | None = None,
        absent_genes: Literal["zero", "unmeasured"] = "unmeasured",
        table_kind: TableKind = "counts",
    ) -> Section:
        """Make a section from an AnnData table in memory and its slide.

        Parameters
        ----------
        adata : anndata.AnnData
            One row a spot, with centres (x, y in level-0 pixels of `slide`) in ``obsm["spatial"]``. Spots whose
            ``obs["in_tissue"]`` is 0 are dropped. Genes are taken as they are: drop controls first.
        slide : Slide, path or array
            What is not a `Slide` is opened with `open_slide`.
        layer : str, optional
            Layer that holds the raw counts, or the values of another kind of table; ``X`` by default.
        mpp : float, optional
            Micrometres per level-0 pixel, for a slide that is opened here.
        spot_diameter_um : float, optional
            Otherwise ``spot_diameter_fullres`` of ``uns["spatial"]`` times the slide's scale. Space Ranger writes
            there a spot of 65 um: give 55 for Visium.
        library : str, optional
            Which section, where the table holds several: a value of ``obs["library_id"]`` (or ``library``,
            ``sample``, ``section``, ``batch``), or the key of its entry of ``uns["spatial"]``.
        name : str, optional
            Name of the section; the slide's by default.
        patient : str, optional
            Otherwise ``obs["patient"]`` or ``obs["patient_id"]`` when it has one value, else the section's name.
        absent_genes, table_kind : str
            See `Section`.

        Returns
        -------
        Section

        Raises
        ------
        BadInput, BadOption
            There are no centres, no such layer or library, or no spot diameter.
        SectionError, ScaleError
            The values are not of the table's kind, names repeat, over 10 % of the spots are off the slide, or its scale
            is unknown.

        Examples
        --------
        >>> import anndata, numpy as np, pandas as pd
        >>> counts = anndata.AnnData(np.ones((2, 3), np.float32), pd.DataFrame(index=["s1", "s2"]))
        >>> counts.obsm["spatial"] = np.array([[30.0, 40.0], [70.0, 40.0]])
        >>> pixels = np.full((80, 100, 3), 200, np.uint8)
        >>> section = Section.from_anndata(counts, pixels, mpp=0.5, spot_diameter_um=55.0, patient="P1")
        >>> section.spots.barcodes, section.counts.shape
        (('s1', 's2'), (2, 3))
        """
        if isinstance(slide, Slide) and mpp is not None:
            raise BadOption("mpp", mpp, want="None for a slide that is open already, which has its own scale")
        opened = slide if isinstance(slide, Slide) else open_slide(slide, mpp=mpp)
        table = spots_of_anndata(adata, name or opened.name, layer=layer, library=library)
        return cls._checked(opened, table, name, patient, spot_diameter_um, absent_genes, table_kind)

    @classmethod
    def from_spatialdata(
        cls,
        sdata: SpatialData,
        *,
        image: str,
        mpp: float | None = None,
        table: str = "table",
        shapes: str | None = None,
        coordinate_system: str = "global",
        layer: str | None = None,
        spot_diameter_um: float | None = None,
        name: str | None = None,
        patient: str | None = None,
        absent_genes: Literal["zero", "unmeasured"] = "unmeasured",
        table_kind: TableKind = "counts",
    ) -> Section:
        """Make a section from the image, the shapes and the table of a SpatialData object.

        Parameters
        ----------
        sdata : spatialdata.SpatialData
            Needs ``pip install cmrcnet[spatialdata]``.
        image : str
            Name of the image; 8-bit RGB. It (level 0 of a pyramid) is loaded into memory.
        mpp : float, optional
            Micrometres per pixel of the image; without it anything that needs a scale raises `ScaleError`.
        table : str
            Name of the table; only its rows that annotate `shapes` are used.
        shapes : str, optional
            Name of the spots (circles or polygons); may be left out when the table annotates one element.
        coordinate_system : str
            In which image and shapes are aligned. Transformations to it are applied, and undone for the image, so
            that centres come out in pixels of the image.
        layer, spot_diameter_um, name, patient, absent_genes, table_kind
            As in `from_anndata`; the diameter is otherwise that of the circles.

        Returns
        -------
        Section

        Raises
        ------
        MissingExtra
            spatialdata is not installed.
        UnknownName, BadInput, BadOption, SectionError, ScaleError
            As in `from_anndata`; or there is no such element.
        """
        pixels, spots = image_and_spots(
            sdata, image, shapes, table, coordinate_system, section_name=name or image, layer=layer
        )
        slide = ArraySlide(pixels, mpp, name or image)
        return cls._checked(slide, spots, name, patient, spot_diameter_um, absent_genes, table_kind)

    @classmethod
    def _checked(
        cls,
        slide: Slide,
        table: SpotTable,
        name: str | None,
        patient: str | None,
        diameter_um: float | None,
        absent_genes: Literal["zero", "unmeasured"],
        kind: TableKind,
    ) -> Section:
        """The section of a table in memory, if they fulfil what readers ask of files."""
        name, notes = name or slide.name, list(table.notes)
        mpp = known_scale(slide)
        if diameter_um is None and table.diameter_px is None:
            want = f"the diameter of the spots of {name} in micrometres, which the table does not state"
            raise BadOption("spot_diameter_um", None, want=want)
        if twice := repeated(table.genes):
            raise SectionError(
                f"{name} repeats the {FEATURE_WORD[kind]}(s) {', '.join(twice[:5])}; each column needs its own name."
            )
        check_values(table.counts, table_kind(kind), name, barcodes=table.barcodes, features=table.genes)
        if not table.counts.count_nonzero():
            raise SectionError.empty(name, spots=len(table.barcodes), genes=0)
        kept = on_slide(slide, table.centre_px, name)
        if not kept.all():
            notes.append(f"{int((~kept).sum())} of {len(kept)} spots have their centre outside the image: dropped.")
        if not (patient or table.patient):
            notes.append("No patient is given; the section's name is used.")
        return cls(
            name=name,
            patient=str(patient or table.patient or name),
            slide=slide,
            spots=Spots(table.barcodes, table.centre_px, diameter_um or float(table.diameter_px or 0) * mpp).take(kept),
            counts=sparse.csr_matrix(table.counts[np.flatnonzero(kept)], dtype=np.float32),
            genes=table.genes,
            absent_genes=absent_genes,
            table_kind=kind,
            notes=tuple(notes),
        )


@dataclass(frozen=True)
class CohortEntry:
    """One section of a cohort: name, patient, a function that reads it, and the cohort file ("" for none)."""

    section: str
    patient: str
    load: Callable[[], Section] = field(repr=False)
    metadata: dict[str, str] = field(default_factory=dict, compare=False)
    source: str = field(default="", compare=False)


@dataclass(frozen=True)
class Cohort:
    """Sections in a fixed order, each read only when needed, so that memory does not grow with their number.

    Examples
    --------
    >>> from cmrcnet import synthetic_cohort
    >>> cohort = synthetic_cohort(patients=3, spots=12, genes=40)
    >>> cohort.without(["P2S1"]).sections
    ('P1S1', 'P3S1')
    >>> [section.patient for section in cohort]
    ['P1', 'P2', 'P3']
    """

    name: str
    entries: tuple[CohortEntry, ...]

    def __post_init__(self) -> None:
        if twice := repeated(self.sections):
            raise BadOption("section", ", ".join(twice), want="each section named once in a cohort")

    @classmethod
    def of(cls, sections: Iterable[Section], name: str = "cohort") -> Cohort:
        """A cohort of sections that are in memory already."""
        return cls(name, tuple(CohortEntry(s.name, s.patient, partial(_itself, s), s.metadata) for s in sections))

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Section]:
        for entry in self.entries:
            yield entry.load()

    @property
    def sections(self) -> tuple[str, ...]:
        """Names of the sections, in the order of the cohort."""
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

    def in_order(self) -> Cohort:
        """The same sections sorted by name, in which order they are learnt from, whatever the rows of a cohort file."""
        return Cohort(self.name, tuple(sorted(self.entries, key=lambda entry: entry.section)))

    def _entry(self, section: str) -> CohortEntry:
        """The entry of a section, or `UnknownName`."""
        for entry in self.entries:
            if entry.section == section:
                return entry
        raise UnknownName("section", section, self.sections)


def _itself(section: Section) -> Section:
    """A named function, because a lambda could not be pickled for another process."""
    return section


def repeated(names: Sequence[str]) -> list[str]:
    """Names that occur more than once, sorted."""
    return sorted(name for name, times in Counter(names).items() if times > 1)


MOST_OFF_SLIDE = 0.10
"""Largest share of spots with centres outside the slide that are dropped; more is an error."""


def on_slide(slide: Slide, centre_px: np.ndarray, name: str, most_off: float = MOST_OFF_SLIDE) -> np.ndarray:
    """Which centres (spots, 2: x, y in level-0 pixels) lie on the slide, as bool (spots,).

    Raises
    ------
    SectionError
        More than the share `most_off` lie outside; `name` is used in the message.
    """
    size = (slide.width_px, slide.height_px)
    inside = np.all((centre_px >= 0) & (centre_px < size), axis=1)
    outside = int((~inside).sum())
    if outside > most_off * len(inside):
        (left, top), (right, bottom) = centre_px.min(axis=0), centre_px.max(axis=0)
        span = f"x {left:.0f} to {right:.0f}, y {top:.0f} to {bottom:.0f}"
        raise SectionError(
            f"{outside} of {len(inside)} spots of {name} lie outside its image ({size[0]} x {size[1]} px; the spots "
            f"span {span}); check that image and spot file belong together and use level-0 pixels."
        )
    return inside
