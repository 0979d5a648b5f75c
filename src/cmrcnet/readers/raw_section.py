"""What a reader returns, its checks, and the `Section` made of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadInput, CmrcnetError, ScaleError, SectionError, ShapeMismatch
from cmrcnet.genes.naming import clean_features
from cmrcnet.readers.affine import Affine
from cmrcnet.slides.section import Section, Spots, on_slide, repeated
from cmrcnet.slides.slide import Slide, scales_differ
from cmrcnet.slides.table_kinds import TableKind, check_values

NEIGHBOURS_WITHIN = 1.3
"""Neighbours are within this factor of the nearest distance: below the next ring (1.41 square, 1.73 hexagonal)."""
MOST_UNMATCHED = 0.05
"""Largest share of spots that counts and positions may each name alone; above it they do not belong together."""
PITCH_TOLERANCE = 1.5
"""Largest factor between the distance of the spots and the assay's own pitch."""
AFFINE_TOLERANCE = 1.25
"""Largest factor between the scale of the slide and the scale that an affine implies."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RawSection:
    """One section as its files state it, unchecked; `checked_section` makes a `Section` of it.

    Parameters
    ----------
    patient : str or None
        Where the files state one.
    centre_px : numpy.ndarray, shape (spots, 2), float64
        x, y in level-0 pixels of `slide`. Where `affine` is set, or the user states one: in the assay's own unit, which
        `placed` maps to level-0 pixels.
    diameter_um : float
        Diameter of a spot.
    counts : scipy.sparse.csr_matrix, shape (spots, features)
        As stored, not yet checked.
    genes : sequence of str, length features
        As stored: controls and duplicates included.
    absent_genes : {"zero", "unmeasured"}
    pitch_um : (float, float)
        Least and largest distance between neighbouring spots that this assay can have.
    pitch_px : float or None
        That distance in level-0 pixels, when the format gives a better measure than the nearest neighbour.
    affine : Affine or None
        Map from the assay's coordinates to level-0 pixels, where the format states one. The user's own overrides it.
    assay_mpp : float or None
        Micrometres of one unit of the assay's coordinates, where known: 1 for micrometres.
    table_kind : {"counts", "continuous", "proportions", "binary"}
        What `counts` holds (see `slides.table_kinds`).
    members : tuple of numpy.ndarray, shape (locations, 2), or None
        Locations of each region, as `centre_px` (see `Spots`).
    notes : tuple of str
        What the reader dropped or assumed, one sentence each.
    patients_within : tuple of str
        See `Section`.
    """

    name: str
    patient: str | None
    slide: Slide
    barcodes: Sequence[str]
    centre_px: np.ndarray
    diameter_um: float
    counts: sparse.csr_matrix
    genes: Sequence[str]
    absent_genes: Literal["zero", "unmeasured"]
    pitch_um: tuple[float, float]
    pitch_px: float | None = None
    affine: Affine | None = None
    assay_mpp: float | None = None
    table_kind: TableKind = "counts"
    members: tuple[np.ndarray, ...] | None = None
    notes: tuple[str, ...] = ()
    patients_within: tuple[str, ...] = ()


def placed(raw: RawSection, affine: Affine) -> RawSection:
    """Map the spots of a section from the assay's coordinates to level-0 pixels of its slide.

    Parameters
    ----------
    raw : RawSection
        `centre_px` and `pitch_px` in the unit of the assay.
    affine : Affine
        The map.

    Returns
    -------
    RawSection
        A slide of unknown scale has the scale that the affine implies, where the unit of the assay is known.

    Raises
    ------
    ScaleError
        The scale of the slide and the scale that the affine implies differ by more than `AFFINE_TOLERANCE`.
    """
    slide, notes = raw.slide, [*raw.notes, f"Spots are mapped to the image by the affine {affine.text}."]
    implied = None if raw.assay_mpp is None else raw.assay_mpp / affine.scale
    if implied is not None:
        if slide.mpp is None:
            slide = copy.copy(slide)
            slide.mpp = implied
            notes.append(f"um per px follows from the affine: {implied:.4g}.")
        elif not 1 / AFFINE_TOLERANCE <= slide.mpp / implied <= AFFINE_TOLERANCE:
            raise ScaleError(
                f"{slide.name} is said to show {slide.mpp:.4g} um per px, but the affine of {raw.name} makes it "
                f"{implied:.4g} (a unit of the assay is {raw.assay_mpp:.4g} um and {affine.scale:.4g} px); correct the "
                "affine, which maps from the assay to the image and not back, or mpp."
            )
    return replace(
        raw,
        slide=slide,
        centre_px=affine.apply(raw.centre_px),
        members=None if raw.members is None else tuple(affine.apply(each) for each in raw.members),
        pitch_px=None if raw.pitch_px is None else raw.pitch_px * affine.scale,
        affine=None,
        notes=tuple(notes),
    )


def refuse_unmatched(unmatched: Sequence[str], total: int, sentence: str, hint: str) -> None:
    """Raise `SectionError` when more than `MOST_UNMATCHED` of `total` spots (and more than two) have no partner.

    Parameters
    ----------
    unmatched : sequence of str
        Their names.
    sentence : str
        What is true of them: "counted spots have no line in spots.tsv".
    hint : str
        What to do.
    """
    if len(unmatched) > max(2, MOST_UNMATCHED * total):
        few = ", ".join(map(str, unmatched[:3]))
        raise SectionError(f"{len(unmatched)} of {total} {sentence}, the first {few}; {hint}.")


def neighbour_distance_px(centre_px: np.ndarray) -> float | None:
    """Distance between neighbouring spots of an array, in pixels; None for fewer than three spots.

    The median over all pairs of neighbours, not over each spot's nearest: where locations jitter, the nearest of four
    or six neighbours is always somewhat too near (6 % on the shared spinal cord sections).
    """
    from scipy.spatial import KDTree

    centres = np.unique(np.asarray(centre_px, dtype=np.float64), axis=0)
    centres = centres[np.isfinite(centres).all(axis=1)]
    if len(centres) < 3:
        return None
    tree = KDTree(centres)
    nearest = float(np.median(tree.query(centres, k=2)[0][:, 1]))
    pairs = tree.query_pairs(NEIGHBOURS_WITHIN * nearest, output_type="ndarray")
    return float(np.median(np.linalg.norm(centres[pairs[:, 0]] - centres[pairs[:, 1]], axis=1)))


def problems_of(raw: RawSection) -> list[CmrcnetError]:
    """All errors of a section, not only the first. Without spots, genes or counts there is nothing more to check."""
    size = (len(raw.barcodes), len(raw.genes))
    if raw.counts.shape != size:
        return [ShapeMismatch(f"counts of {raw.name}", want=size, got=raw.counts.shape)]
    if raw.centre_px.shape != (size[0], 2):
        return [ShapeMismatch(f"centres of {raw.name}", want=(size[0], 2), got=raw.centre_px.shape)]
    if 0 in size:
        return [SectionError.empty(raw.name, *size)]
    problems: list[CmrcnetError] = []
    if twice := repeated(raw.barcodes):
        problems.append(SectionError.repeated_barcodes(twice, f"the spots of {raw.name}"))
    nameless = [number for number, name in enumerate(raw.genes, 1) if not str(name).strip()]
    twice = repeated([str(name) for name in raw.genes])
    if raw.table_kind != "counts" and (nameless or twice):  # in another table there is nothing to sum
        what = f"column {nameless[0]} has no name" if nameless else f"it repeats the feature(s) {', '.join(twice[:5])}"
        why = f"{what}; each feature needs a name of its own"
        problems.append(BadInput(raw.name, f"a table of kind {raw.table_kind}", why))
    try:
        check_values(raw.counts, raw.table_kind, raw.name, barcodes=raw.barcodes, features=raw.genes)
    except CmrcnetError as error:
        problems.append(error)
    if not raw.counts.count_nonzero():
        return [*problems, SectionError.empty(raw.name, spots=size[0], genes=0)]
    if raw.slide.mpp is None:
        problems.append(ScaleError.unknown(raw.slide.name, getattr(raw.slide, "scale_fault", "")))
    if not np.isfinite(raw.centre_px).all():
        problems.append(BadInput(raw.name, "a section", "some spots have no position"))
    else:
        try:
            on_slide(raw.slide, raw.centre_px, raw.name)
        except SectionError as error:
            problems.append(error)
    return [*problems, *_scale_problems(raw)]


def checked_section(
    raw: RawSection,
    *,
    patient: str | None = None,
    controls: Literal["drop", "keep"] = "drop",
    metadata: Mapping[str, str] | None = None,
) -> Section:
    """Check a section and clean its features.

    Parameters
    ----------
    patient : str, optional
        Overrides the files; when neither states one, the section's name is used and noted.
    controls : {"drop", "keep"}
        What happens to features that are no genes (see `clean_features`).
    metadata : mapping, optional
        See `Section`.

    Raises
    ------
    SectionError, ScaleError
    """
    for problem in problems_of(raw):
        raise problem
    notes = [*raw.notes, *_scale_notes(raw)]
    inside = on_slide(raw.slide, raw.centre_px, raw.name)
    if not inside.all():
        notes.append(f"{int((~inside).sum())} of {len(inside)} spots have their centre outside the image: dropped.")
    spots = Spots(tuple(raw.barcodes), raw.centre_px, raw.diameter_um, raw.members).take(inside)
    kept = raw.counts if inside.all() else raw.counts[np.flatnonzero(inside)]
    # Floating point cannot wrap; 32 bits hold whole numbers up to `LARGEST_COUNT`, which is then refused.
    raw_counts = sparse.csr_matrix(kept, dtype=np.float32 if kept.dtype.kind in "biu" else np.float64, copy=True)
    stored = raw_counts.nnz
    raw_counts.sum_duplicates()
    if raw_counts.nnz < stored:
        twice = f"{stored - raw_counts.nnz:,} of the {stored:,} counts of {raw.name} repeat a spot and gene"
        raise SectionError(f"{twice}: which is right is unknown; write the matrix again.")
    genes, counts, remarks = tuple(raw.genes), raw_counts, ()
    if raw.table_kind == "counts":
        genes, counts, remarks = clean_features(raw.genes, raw_counts, controls=controls)
    check_values(counts, raw.table_kind, raw.name, barcodes=spots.barcodes, features=genes)
    notes += remarks
    if patient is None and raw.patient is None:
        notes.append("No patient is given; the section's name is used.")
    counts = sparse.csr_matrix(counts, dtype=np.float32)
    counts.eliminate_zeros()
    counts.sort_indices()
    return Section(
        name=raw.name,
        patient=str(patient or raw.patient or raw.name),
        slide=raw.slide,
        spots=spots,
        counts=counts,
        genes=genes,
        absent_genes=raw.absent_genes if raw.table_kind == "counts" else "unmeasured",
        table_kind=raw.table_kind,
        notes=tuple(notes),
        metadata=dict(metadata or {}),
        patients_within=raw.patients_within,
    )


def _scale_problems(raw: RawSection) -> list[CmrcnetError]:
    """Neighbouring spots should be as far apart as the assay puts them, within a factor `PITCH_TOLERANCE`."""
    pitch_px = None if raw.slide.mpp is None else raw.pitch_px or neighbour_distance_px(raw.centre_px)
    if raw.slide.mpp is None or pitch_px is None:
        return []
    least, most = raw.pitch_um
    pitch_um = pitch_px * raw.slide.mpp
    if least / PITCH_TOLERANCE <= pitch_um <= most * PITCH_TOLERANCE:
        return []
    apart = f"{least:g} um" if least == most else f"{least:g} to {most:g} um"
    fits = f"{least / pitch_px:.3g}" if least == most else f"{least / pitch_px:.3g} to {most / pitch_px:.3g}"
    why = (
        f"then the spots of {raw.name} would lie {pitch_um:.0f} um apart, and their assay puts them {apart} apart "
        f"({fits} um per px would fit)"
    )
    return [ScaleError.contradicted(raw.slide.name, raw.slide.mpp, why)]


def _scale_notes(raw: RawSection) -> list[str]:
    """A sentence that names the scale in use, another one that the image file states, and that of the spots."""
    own, used = getattr(raw.slide, "file_mpp", None), raw.slide.mpp
    if own is None or used is None or not scales_differ(own, used):
        return []
    pitch_px, (least, most) = raw.pitch_px or neighbour_distance_px(raw.centre_px), raw.pitch_um
    by_spots = ""
    if pitch_px is not None and most <= PITCH_TOLERANCE * least:
        by_spots = f"; by the distance of the spots it is {(least + most) / 2 / pitch_px:.3g}"
    return [f"{used:.4g} um per px is used, although the image file says {own:.4g}{by_spots}."]
