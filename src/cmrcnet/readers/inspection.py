"""Look at a cohort, a section or a slide: what it is, and everything that is wrong with it.

Nothing is changed, no pixel is decoded. Counts are read, one section at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadInput, CmrcnetError, GenesError, MissingInput, ScaleError
from cmrcnet.genes.naming import are_strangers, clean_features, explain_no_shared_genes, naming_of
from cmrcnet.readers.cohort import CohortRow, cohort_rows, is_cohort_file, located
from cmrcnet.readers.registry import RawSection, lacks, neighbour_distance_px, reader_of, section_source
from cmrcnet.readers.section_checks import checked_section, problems_of
from cmrcnet.slides.slide import PatchScale, Slide

PATCH = PatchScale()
TABLE_ENDINGS = (".csv", ".tsv", ".txt", ".gz", ".h5", ".h5ad")


@dataclass(frozen=True)
class SectionLook:
    """One section as a row of the printed table; what could not be found out is None.

    Parameters
    ----------
    section, patient : str
    spots : int or None
        On tissue and on the picture.
    genes : int or None
        Without controls; names merged.
    median_counts : float or None
        Median over the spots of the summed counts.
    mpp : float or None
    patch_px : float or None
        Side of a default patch (112 um) in level-0 pixels.
    image_px : tuple of int or None
        Width, height.
    pitch_um : float or None
        Distance between neighbouring spots by this scale.
    """

    section: str
    patient: str
    spots: int | None = None
    genes: int | None = None
    median_counts: float | None = None
    mpp: float | None = None
    patch_px: float | None = None
    image_px: tuple[int, int] | None = None
    pitch_um: float | None = None


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Parameters
    ----------
    kind : {"cohort", "section", "slide"}
    source : str
    rows : tuple of (str, str)
        Label and value, in the order to print.
    sections : tuple of SectionLook
        Empty for a slide.
    notes : tuple of str
        What reading dropped, merged or assumed.
    problems : tuple of str
        Every problem, one sentence each; empty when all is well.
    """

    kind: Literal["cohort", "section", "slide"]
    source: str
    rows: tuple[tuple[str, str], ...]
    sections: tuple[SectionLook, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def to_text(self) -> str:
        """The whole as plain lines."""
        wide = max((len(label) for label, _ in self.rows), default=0)
        lines = [f"{self.kind}: {self.source}", *(f"  {label:<{wide}}  {value}" for label, value in self.rows)]
        if self.kind == "cohort" and self.sections:
            lines += ["", *_table_lines(self.sections)]
        if self.notes:
            lines += ["", "Notes", *(f"  - {note}" for note in self.notes)]
        lines += ["", f"Problems: {len(self.problems) or 'none'}"]
        lines += [f"  {number}. {problem}" for number, problem in enumerate(self.problems, 1)]
        return "\n".join(lines)


def inspect(source: Path | str, *, mpp: float | None = None, format: str | None = None) -> Inspection:
    """Say what a cohort, section or slide is, and every problem with it.

    Parameters
    ----------
    source : path
        A cohort file, a section (counts file or folder), or a slide.
    mpp : float, optional
        Micrometres per level-0 pixel. In a cohort, only for rows that do not give their own.
    format : str, optional
        Reader to use for a section, where its look is ambiguous.

    Returns
    -------
    Inspection

    Raises
    ------
    MissingInput, BadInput
        When there is nothing to look at, or no telling what it is.
    """
    path = Path(source)
    if not path.exists():
        raise MissingInput(path, "The thing to inspect")
    if format is None and is_cohort_file(path):
        return _look_at_cohort(path, mpp)
    place = section_source(path, mpp=mpp)
    try:
        reader = reader_of(place, format)
    except BadInput:
        if format is not None or path.is_dir() or path.name.lower().endswith(TABLE_ENDINGS):
            raise
        return _look_at_slide(path, mpp)
    row = CohortRow("", "", place, reader.name, {}, tuple(lacks(place, reader.name)))
    look, _, notes, problems = _look_at_row(row)
    rows = (("format", reader.name), ("section", look.section), ("patient", look.patient), *_section_rows(look))
    return Inspection("section", str(path), rows, (look,), notes, problems)


def _look_at_cohort(path: Path, mpp: float | None) -> Inspection:
    try:
        rows = cohort_rows(path)
    except CmrcnetError as error:
        return Inspection("cohort", str(path), (), problems=(str(error),))
    looks, notes, problems, genes_of = [], [], [], {}
    for row in rows:
        look, genes, remarks, wrong = _look_at_row(row.or_scale(mpp))
        looks.append(look)
        notes += [f"{look.section}: {remark}" for remark in remarks]
        problems += wrong
        if genes:
            genes_of[look.section] = genes
    patients = list(dict.fromkeys(look.patient for look in looks if look.patient))
    counted = [look for look in looks if look.spots]
    summary = [
        ("sections", str(len(looks))),
        ("patients", f"{len(patients)} ({', '.join(patients[:12])}{', ...' if len(patients) > 12 else ''})"),
        ("spots on tissue", str(sum(look.spots for look in counted))),
    ]
    if genes_of:
        shared = set.intersection(*map(set, genes_of.values()))
        all_genes = {gene for genes in genes_of.values() for gene in genes}
        summary.append(("genes", f"{len(all_genes)} in all, {len(shared)} named in every section"))
        summary.append(("gene names", ", ".join(dict.fromkeys(str(naming_of(g)) for g in genes_of.values()))))
        problems += _strangers(genes_of)
    if len(patients) == 1 and len(looks) > 1:
        notes.append("All sections are of one patient: leaving one out says nothing about other patients.")
    return Inspection("cohort", str(path), tuple(summary), tuple(looks), tuple(notes), tuple(problems))


def _look_at_row(row: CohortRow) -> tuple[SectionLook, tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """One section: its look, its genes, notes and problems."""
    name = row.source.name or row.source.path.name
    problems = list(row.problems)
    if problems:
        return SectionLook(name, row.patient), (), (), tuple(str(problem) for problem in problems)
    try:
        raw = row.read_raw()
    except CmrcnetError as error:
        return SectionLook(name, row.patient), (), (), (str(located(error, row.where)),)
    problems = problems_of(raw)
    look, genes, notes = _look_at_raw(raw, row.patient, whole=not problems)
    return look, genes, notes, tuple(str(located(problem, row.where)) for problem in problems)


def _look_at_raw(raw: RawSection, patient: str, whole: bool) -> tuple[SectionLook, tuple[str, ...], tuple[str, ...]]:
    """Figures of a section, also of one that has problems."""
    if whole:
        section = checked_section(raw, patient=patient or None)
        spots, genes, counts, notes = len(section.spots), section.genes, section.counts, section.notes
        patient = section.patient
    else:
        genes, counts, remarks = clean_features(raw.genes, sparse.csr_matrix(raw.counts))
        spots, notes = len(raw.barcodes), (*raw.notes, *remarks)
        patient = patient or raw.patient or raw.name
    mpp = raw.slide.mpp
    pitch_px = raw.pitch_px or neighbour_distance_px(raw.centre_px)
    sums = np.asarray(counts.sum(axis=1)).ravel()
    look = SectionLook(
        section=raw.name,
        patient=patient,
        spots=spots,
        genes=len(genes),
        median_counts=float(np.median(sums)) if len(sums) else None,
        mpp=mpp,
        patch_px=None if mpp is None else PATCH.side_on(mpp),
        image_px=(raw.slide.width_px, raw.slide.height_px),
        pitch_um=None if mpp is None or pitch_px is None else pitch_px * mpp,
    )
    return look, genes, notes


def _look_at_slide(path: Path, mpp: float | None) -> Inspection:
    from cmrcnet.slides.slide import open_slide

    try:
        slide = open_slide(path, mpp=mpp)
    except CmrcnetError as error:
        return Inspection("slide", str(path), (), problems=(str(error),))
    problems = () if slide.mpp is not None else (str(ScaleError.unknown(slide.name)),)
    return Inspection("slide", str(path), tuple(_slide_rows(slide)), problems=problems)


def _slide_rows(slide: Slide) -> list[tuple[str, str]]:
    rows = [("size", f"{slide.width_px} x {slide.height_px} px")]
    if slide.mpp is not None:
        side = (slide.width_px * slide.mpp / 1000, slide.height_px * slide.mpp / 1000)
        rows[0] = ("size", f"{slide.width_px} x {slide.height_px} px, {side[0]:.1f} x {side[1]:.1f} mm")
        rows.append(("um per px", f"{slide.mpp:.4g}"))
        rows.append(("patch on slide", f"{PATCH.side_on(slide.mpp):.1f} px ({PATCH.side_um:g} um)"))
    rows.append(("pyramid", ", ".join(f"1:{by:g}" for by in slide.downsamples)))
    return rows


def _section_rows(look: SectionLook) -> list[tuple[str, str]]:
    values = [
        ("spots on tissue", look.spots, "{}"),
        ("genes", look.genes, "{}"),
        ("median counts a spot", look.median_counts, "{:.0f}"),
        ("um per px", look.mpp, "{:.4g}"),
        ("patch on slide", look.patch_px, f"{{:.1f}} px ({PATCH.side_um:g} um)"),
        ("spots apart", look.pitch_um, "{:.0f} um"),
    ]
    rows = [(label, form.format(value)) for label, value, form in values if value is not None]
    return rows + ([("image", f"{look.image_px[0]} x {look.image_px[1]} px")] if look.image_px else [])


def _table_lines(looks: Sequence[SectionLook]) -> list[str]:
    header = ("section", "patient", "spots", "genes", "counts a spot", "um per px", "patch px", "apart um", "image px")
    cells = [header]
    for look in looks:
        numbers = (look.spots, look.genes, look.median_counts, look.mpp, look.patch_px, look.pitch_um)
        forms = ("{}", "{}", "{:.0f}", "{:.4g}", "{:.1f}", "{:.0f}")
        shown = [form.format(value) if value is not None else "-" for value, form in zip(numbers, forms, strict=True)]
        image = f"{look.image_px[0]} x {look.image_px[1]}" if look.image_px else "-"
        cells.append((look.section, look.patient or "-", *shown, image))
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return [
        "  "
        + "  ".join(f"{v:<{w}}" if i < 2 else f"{v:>{w}}" for i, (v, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]


def _strangers(genes_of: dict[str, tuple[str, ...]]) -> list[str]:
    """Sections whose genes do not meet those of the first one."""
    first, *others = genes_of
    ours = genes_of[first]
    return [
        str(
            GenesError.none_shared(
                first, other, explain_no_shared_genes(ours, theirs), shared=len(set(ours) & set(theirs))
            )
        )
        for other in others
        if are_strangers(ours, theirs := genes_of[other])
    ]
