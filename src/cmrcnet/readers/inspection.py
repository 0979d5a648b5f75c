"""Inspect a cohort, a section or a slide: its figures and every problem with it.

Nothing is changed. Counts are read, one section at a time; pixels, reduced, to see whether the spots are on tissue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadInput, BadOption, CmrcnetError, ScaleError, SectionError, ShapeMismatch
from cmrcnet.genes.naming import are_disjoint, clean_features, explain_no_shared_genes, naming_of
from cmrcnet.readers.affine import Affine
from cmrcnet.readers.cohort import CohortRow, cohort_rows, is_cohort_file, located
from cmrcnet.readers.raw_section import RawSection, checked_section, neighbour_distance_px, problems_of
from cmrcnet.readers.registry import SectionSource, input_problems, reader_of
from cmrcnet.slides.patches import thumbnail
from cmrcnet.slides.slide import PatchScale, known_scale, open_slide
from cmrcnet.slides.slide_files import require_file
from cmrcnet.slides.table_kinds import FEATURE_WORD, TableKind
from cmrcnet.slides.tissue import find_tissue
from cmrcnet.storage.atomic import atomic_file
from cmrcnet.storage.names import file_name

PATCH = PatchScale()
"""The default patch, of which the side on each slide is shown."""
TABLE_ENDINGS = (".csv", ".tsv", ".txt", ".gz", ".h5", ".h5ad")

LEAST_ON_TISSUE = 0.5
"""Share of the spots on tissue below which their positions, the image or the affine are wrong."""
PICTURE_PX = 1200
"""Longer side of a picture of the spots."""
ON, OFF = (0, 70, 255), (255, 130, 0)
"""Colours of spots on and off the tissue: blue and orange, which no kind of colour blindness confuses."""


@dataclass(frozen=True)
class SectionInspection:
    """Figures of one section, a row of the printed table; None where they could not be determined.

    Parameters
    ----------
    section, patient : str
        Names.
    spots : int or None
        On tissue and on the picture.
    genes : int or None
        Without controls; names merged.
    median_counts : float or None
        Median over the spots of the summed counts.
    mpp : float or None
        Micrometres per level-0 pixel.
    patch_px : float or None
        Side of a default patch (112 um) in level-0 pixels.
    image_px : tuple of int or None
        Width, height.
    pitch_um : float or None
        Distance between neighbouring spots by this scale.
    on_tissue : float or None
        Share of the spots that are on the tissue of the image.
    table_kind : {"counts", "continuous", "proportions", "binary"}
        What the table holds.
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
    on_tissue: float | None = None
    table_kind: TableKind = "counts"


@dataclass(frozen=True)
class Inspection:
    """Result of `inspect`.

    Parameters
    ----------
    kind : {"cohort", "section", "slide"}
    rows : tuple of (str, str)
        Label and value, in the order to print.
    sections : tuple of SectionInspection
        Empty for a slide.
    notes : tuple of str
        What reading dropped, merged or assumed.
    problems : tuple of str
        Every problem, one sentence each; empty when all is well.
    """

    kind: Literal["cohort", "section", "slide"]
    source: str
    rows: tuple[tuple[str, str], ...]
    sections: tuple[SectionInspection, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def to_text(self) -> str:
        """The report as plain text."""
        wide = max((len(label) for label, _ in self.rows), default=0)
        lines = [f"{self.kind}: {self.source}", *(f"  {label:<{wide}}  {value}" for label, value in self.rows)]
        if self.kind == "cohort" and self.sections:
            lines += ["", *_table_lines(self.sections)]
        if self.notes:
            lines += ["", "Notes", *(f"  - {note}" for note in self.notes)]
        lines += ["", f"Problems: {len(self.problems) or 'none'}"]
        lines += [f"  {number}. {problem}" for number, problem in enumerate(self.problems, 1)]
        return "\n".join(lines)


def inspect(
    source: Path | str,
    *,
    mpp: float | None = None,
    format: str | None = None,
    image: Path | str | None = None,
    spots: Path | str | None = None,
    spot_diameter_um: float | None = None,
    affine: Affine | Path | str | Sequence | np.ndarray | None = None,
    bin_um: float | None = None,
    library: str | None = None,
    table_kind: str | None = None,
    assay: str | None = None,
    pixels: bool = True,
    pictures: Path | None = None,
) -> Inspection:
    """Inspect a cohort, section or slide: its figures and every problem with it.

    Parameters
    ----------
    source : path
        A cohort file, a section (counts file or folder), or a slide.
    mpp : float, optional
        Micrometres per level-0 pixel. In a cohort, only for rows that do not give their own.
    format, image, spots, spot_diameter_um, affine, bin_um, library, table_kind, assay : optional
        Of one section, as in `read_section`. In a cohort file its columns state them.
    pixels : bool
        Find the tissue on each image, to see whether the spots are on it.
    pictures : path, optional
        Folder in which a PNG is written for each section, with its spots on the reduced image.

    Returns
    -------
    Inspection

    Raises
    ------
    MissingInput, BadInput
        `source` does not exist, or no reader recognises it.
    BadOption
        An option of a section is given with a cohort file or a slide.

    Examples
    --------
    >>> import tempfile
    >>> from cmrcnet import synthetic_cohort
    >>> from cmrcnet.datasets.cohort_files import write_cohort
    >>> csv = write_cohort(synthetic_cohort(patients=2, spots=12, genes=40), Path(tempfile.mkdtemp()) / "made")
    >>> found = inspect(csv)
    >>> found.kind, found.problems, found.sections[0].spots
    ('cohort', (), 12)
    """
    path = require_file(Path(source), "The file or folder to inspect", or_folder=True)
    stated = {"image": image, "spots": spots, "spot_diameter_um": spot_diameter_um, "affine": affine}
    stated |= {"bin_um": bin_um, "library": library, "table_kind": table_kind, "assay": assay}
    if format is None and is_cohort_file(path):
        _refuse_stated(stated, f"nothing with a cohort file: write it into a column of {path.name}")
        return _inspect_cohort(path, mpp, pixels, pictures)
    files = SectionSource.of(
        path,
        mpp=mpp,
        image=image,
        spots=spots,
        spot_diameter_um=spot_diameter_um,
        affine=affine,
        bin_um=bin_um,
        library=library,
        table_kind=table_kind,
        assay=assay,
    )
    try:
        reader = reader_of(files, format)
    except BadInput:
        if format is not None or path.is_dir() or path.name.lower().endswith(TABLE_ENDINGS):
            raise
        _refuse_stated(stated, f"nothing with a slide, which {path.name} seems to be: no reader of sections knows it")
        return _inspect_slide(path, mpp)
    row = CohortRow("", "", files, reader.name, {}, tuple(input_problems(files, reader.name)))
    section, _, notes, problems = _inspect_row(row, pixels, pictures)
    rows = (
        ("format", reader.name),
        ("section", section.section),
        ("patient", section.patient),
        *_section_rows(section),
    )
    return Inspection("section", str(path), rows, (section,), notes, problems)


def _refuse_stated(stated: Mapping[str, object], want: str) -> None:
    """Refuse options of one section where the source is none."""
    for option, value in stated.items():
        if value is not None:
            raise BadOption(option, str(value), want=want)


def _inspect_cohort(path: Path, mpp: float | None, pixels: bool, pictures: Path | None) -> Inspection:
    try:
        rows = cohort_rows(path)
    except CmrcnetError as error:
        return Inspection("cohort", str(path), (), problems=(str(error),))
    sections, notes, problems, genes_of = [], [], [], {}
    for row in rows:
        section, genes, remarks, wrong = _inspect_row(row.or_scale(mpp), pixels, pictures)
        sections.append(section)
        notes += [f"{section.section}: {remark}" for remark in remarks]
        problems += wrong
        if genes:
            genes_of[section.section] = genes
    patients = list(dict.fromkeys(section.patient for section in sections if section.patient))
    summary = [
        ("sections", str(len(sections))),
        ("patients", f"{len(patients)} ({', '.join(patients[:12])}{', ...' if len(patients) > 12 else ''})"),
        ("spots on tissue", str(sum(section.spots or 0 for section in sections))),
    ]
    if genes_of:
        shared = set.intersection(*map(set, genes_of.values()))
        all_genes = {gene for genes in genes_of.values() for gene in genes}
        kinds = list(dict.fromkeys(section.table_kind for section in sections if section.section in genes_of))
        word = FEATURE_WORD[kinds[0]]
        summary.append((f"{word}s", f"{len(all_genes)} in all, {len(shared)} named in every section"))
        if kinds != ["counts"]:
            summary.append(("table", ", ".join(kinds)))
        if len(kinds) > 1:
            problems.append(f"The sections hold tables of several kinds ({', '.join(kinds)}); a cohort has one kind.")
        if kinds == ["counts"]:
            summary.append(("gene names", ", ".join(dict.fromkeys(str(naming_of(g)) for g in genes_of.values()))))
        first, *others = genes_of
        for other in others:
            ours, theirs = genes_of[first], genes_of[other]
            if are_disjoint(ours, theirs):
                hint = explain_no_shared_genes(ours, theirs)
                both = len(set(ours) & set(theirs))
                problems.append(str(SectionError.none_shared(first, other, hint, shared=both)))
    if len(patients) == 1 and len(sections) > 1:
        notes.append("All sections are of one patient: leaving one out does not test on another patient.")
    return Inspection("cohort", str(path), tuple(summary), tuple(sections), tuple(notes), tuple(problems))


def _inspect_row(
    row: CohortRow, pixels: bool, pictures: Path | None
) -> tuple[SectionInspection, tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Figures, genes, notes and problems of one section."""
    name = row.source.name or row.source.path.name
    if row.problems:
        return SectionInspection(name, row.patient), (), (), tuple(str(problem) for problem in row.problems)
    try:
        raw = row.read_raw()
    except CmrcnetError as error:
        return SectionInspection(name, row.patient), (), (), (str(located(error, row.where)),)
    problems = problems_of(raw)
    section, genes, notes = _inspect_raw(raw, row.patient, sound=not problems)
    placeable = not any(isinstance(problem, ScaleError | ShapeMismatch) for problem in problems)
    if pixels and placeable and np.isfinite(raw.centre_px).all():
        try:
            share = share_on_tissue(raw, None if pictures is None else pictures / f"{file_name(raw.name)}.png")
        except CmrcnetError as error:
            problems.append(error)
        else:
            section = replace(section, on_tissue=share)
            if share is None:
                notes = (*notes, "No tissue is recognised on the image, so the positions of the spots are not checked.")
            elif share < LEAST_ON_TISSUE:
                said = f"Only {share:.0%} of the spots of {raw.name} are on the tissue of its image"
                hint = "check that image, positions and affine belong together"
                hint += " (cmrcnet inspect --pictures FOLDER draws the spots)"
                problems.append(SectionError(f"{said}; {hint}."))
    return section, genes, notes, tuple(str(located(problem, row.where)) for problem in problems)


def _inspect_raw(
    raw: RawSection, patient: str, sound: bool
) -> tuple[SectionInspection, tuple[str, ...], tuple[str, ...]]:
    """Figures, genes and notes of a section, also of one that has problems."""
    if sound:
        checked = checked_section(raw, patient=patient or None)
        spots, genes, counts, notes = len(checked.spots), checked.genes, checked.counts, checked.notes
        patient = checked.patient
    else:
        genes, counts, remarks = tuple(raw.genes), sparse.csr_matrix(raw.counts), ()
        if raw.table_kind == "counts":
            genes, counts, remarks = clean_features(raw.genes, counts)
        spots, notes = len(raw.barcodes), (*raw.notes, *remarks)
        patient = patient or raw.patient or raw.name
    mpp = raw.slide.mpp
    pitch_px = raw.pitch_px or neighbour_distance_px(raw.centre_px)
    sums = np.asarray(counts.sum(axis=1)).ravel()
    section = SectionInspection(
        section=raw.name,
        patient=patient,
        spots=spots,
        genes=len(genes),
        median_counts=float(np.median(sums)) if len(sums) and raw.table_kind == "counts" else None,
        table_kind=raw.table_kind,
        mpp=mpp,
        patch_px=None if mpp is None else PATCH.side_on(mpp),
        image_px=(raw.slide.width_px, raw.slide.height_px),
        pitch_um=None if mpp is None or pitch_px is None else pitch_px * mpp,
    )
    return section, genes, notes


def _inspect_slide(path: Path, mpp: float | None) -> Inspection:
    try:
        slide = open_slide(path, mpp=mpp)
    except CmrcnetError as error:
        return Inspection("slide", str(path), (), problems=(str(error),))
    size, problems = f"{slide.width_px} x {slide.height_px} px", ()
    rows = [("pyramid", ", ".join(f"1:{by:g}" for by in slide.downsamples))]
    if slide.mpp is None:
        problems = (str(ScaleError.unknown(slide.name, getattr(slide, "scale_fault", ""))),)
    else:
        size += f", {slide.width_px * slide.mpp / 1000:.1f} x {slide.height_px * slide.mpp / 1000:.1f} mm"
        patch = f"{PATCH.side_on(slide.mpp):.1f} px ({PATCH.side_um:g} um)"
        rows = [("um per px", f"{slide.mpp:.4g}"), ("patch on slide", patch), *rows]
    return Inspection("slide", str(path), (("size", size), *rows), problems=problems)


def _section_rows(section: SectionInspection) -> list[tuple[str, str]]:
    values = [
        ("spots on tissue", section.spots, "{}"),
        (f"{FEATURE_WORD[section.table_kind]}s", section.genes, "{}"),
        ("table", None if section.table_kind == "counts" else section.table_kind, "{}"),
        ("median counts a spot", section.median_counts, "{:.0f}"),
        ("um per px", section.mpp, "{:.4g}"),
        ("patch on slide", section.patch_px, f"{{:.1f}} px ({PATCH.side_um:g} um)"),
        ("spots apart", section.pitch_um, "{:.0f} um"),
        ("spots on tissue of the image", section.on_tissue, "{:.0%}"),
    ]
    rows = [(label, form.format(value)) for label, value, form in values if value is not None]
    return rows + ([("image", f"{section.image_px[0]} x {section.image_px[1]} px")] if section.image_px else [])


def _table_lines(sections: Sequence[SectionInspection]) -> list[str]:
    words = {f"{FEATURE_WORD[section.table_kind]}s" for section in sections}
    header = (
        "section",
        "patient",
        "spots",
        words.pop() if len(words) == 1 else "columns",
        "counts a spot",
        "um per px",
        "patch px",
        "apart um",
    )
    header = (*header, "on tissue", "image px")
    cells: list[tuple[str, ...]] = [header]
    for section in sections:
        numbers = (section.spots, section.genes, section.median_counts, section.mpp, section.patch_px)
        numbers = (*numbers, section.pitch_um, section.on_tissue)
        forms = ("{}", "{}", "{:.0f}", "{:.4g}", "{:.1f}", "{:.0f}", "{:.0%}")
        shown = [form.format(value) if value is not None else "-" for value, form in zip(numbers, forms, strict=True)]
        image = f"{section.image_px[0]} x {section.image_px[1]}" if section.image_px else "-"
        cells.append((section.section, section.patient or "-", *shown, image))
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return [
        "  "
        + "  ".join(f"{v:<{w}}" if i < 2 else f"{v:>{w}}" for i, (v, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]


def share_on_tissue(raw: RawSection, picture: Path | None = None) -> float | None:
    """Share of the spots whose centre is on the tissue of the image.

    Parameters
    ----------
    raw : RawSection
        Its slide has a scale.
    picture : pathlib.Path, optional
        PNG to write: the slide, reduced, with a blue ring at each spot on tissue and an orange cross at each other.

    Returns
    -------
    float or None
        None when no tissue is recognised on the image.

    Raises
    ------
    BadInput, ScaleError
        The pixels cannot be decoded, or the scale is unknown.
    """
    mask = find_tissue(raw.slide)
    on = mask.contains(raw.centre_px)
    if picture is not None:
        _draw(raw, on, picture)
    return float(on.mean()) if mask.pixels.any() and len(on) else None


def _draw(raw: RawSection, on: np.ndarray, picture: Path) -> None:
    from PIL import Image, ImageDraw

    slide = raw.slide
    downsample = max(1.0, max(slide.width_px, slide.height_px) / PICTURE_PX)
    image = Image.fromarray(thumbnail(slide, downsample))
    draw = ImageDraw.Draw(image)
    radius = max(1.0, 0.35 * raw.diameter_um / known_scale(slide) / downsample)
    for x, y, inside in zip(*(raw.centre_px.T / downsample), on, strict=True):
        box = (x - radius, y - radius, x + radius, y + radius)
        if inside:
            draw.ellipse(box, outline=ON, width=2)
        else:
            draw.line(box, fill=OFF, width=2)
            draw.line((box[0], box[3], box[2], box[1]), fill=OFF, width=2)
    with atomic_file(picture) as path:
        image.save(path, format="PNG")
