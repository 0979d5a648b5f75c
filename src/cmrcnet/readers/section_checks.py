"""What every section must fulfil, whichever reader brought it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
from scipy import sparse

from cmrcnet.errors import (
    BadInput,
    CmrcnetError,
    ScaleError,
    SectionError,
    ShapeMismatch,
)
from cmrcnet.genes.naming import clean_features
from cmrcnet.readers.registry import RawSection, neighbour_distance_px
from cmrcnet.slides.section import Section, Spots, check_counts

MOST_OFF_IMAGE = 0.10
"""Share of spots whose centre may lie outside the picture; they are dropped. More: picture and spots do not fit."""

SCALE_FACTOR = 1.5
"""How far the distance between spots may be from the assay's own before the scale is called wrong."""


def problems_of(raw: RawSection) -> list[CmrcnetError]:
    """Everything that is wrong with a section, not only the first.

    Parameters
    ----------
    raw : RawSection
    """
    problems = []
    for check in CHECKS:
        try:
            check(raw)
        except CmrcnetError as error:
            problems.append(error)
            if check in (check_size, check_not_blank):
                break  # the other checks need spots, genes and counts
    return problems


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
    raw : RawSection
    patient : str, optional
        Wins over what the files say; a patient that nobody names is called after the section, with a note.
    controls : {"drop", "keep"}
    metadata : mapping, optional

    Raises
    ------
    SectionError, ScaleError
    """
    for check in CHECKS:
        check(raw)
    notes = list(raw.notes)
    inside = _inside(raw)
    if not inside.all():
        notes.append(f"{int((~inside).sum())} of {len(inside)} spots have their centre outside the image: dropped.")
        raw = _take(raw, inside)
    genes, counts, remarks = clean_features(raw.genes, sparse.csr_matrix(raw.counts), controls=controls)
    notes += remarks
    if patient is None and raw.patient is None:
        notes.append("Nobody names the patient; the section's name stands for one.")
    counts = counts.astype(np.float32)
    counts.eliminate_zeros()
    counts.sort_indices()
    return Section(
        name=raw.name,
        patient=str(patient or raw.patient or raw.name),
        slide=raw.slide,
        spots=Spots(tuple(raw.barcodes), raw.centre_px, raw.diameter_um),
        counts=counts,
        genes=genes,
        absent_genes=raw.absent_genes,
        notes=tuple(notes),
        metadata=dict(metadata or {}),
    )


def check_size(raw: RawSection) -> None:
    """Spots and genes are there, and as many as the counts have rows and columns."""
    wanted = (len(raw.barcodes), len(raw.genes))
    if raw.counts.shape != wanted:
        raise ShapeMismatch(f"counts of {raw.name}", want=wanted, got=raw.counts.shape)
    if raw.centre_px.shape != (wanted[0], 2):
        raise ShapeMismatch(f"centres of {raw.name}", want=(wanted[0], 2), got=raw.centre_px.shape)
    if 0 in wanted:
        raise SectionError.empty(raw.name, *wanted)


def check_barcodes(raw: RawSection) -> None:
    """Each spot has a name of its own."""
    seen: set[str] = set()
    twice = [barcode for barcode in raw.barcodes if barcode in seen or seen.add(barcode)]
    if twice:
        raise SectionError.repeated_barcodes(sorted(set(twice)), f"the spots of {raw.name}")


def check_raw_counts(raw: RawSection) -> None:
    """Whole numbers, 0 or more."""
    check_counts(raw.counts, raw.name, barcodes=raw.barcodes, genes=raw.genes)


def check_not_blank(raw: RawSection) -> None:
    """Something was counted at all."""
    if not raw.counts.count_nonzero():
        raise SectionError.empty(raw.name, spots=raw.counts.shape[0], genes=0)


def check_scale_known(raw: RawSection) -> None:
    """Somebody has said how large a pixel is."""
    if raw.slide.mpp is None:
        raise ScaleError.unknown(raw.slide.name)


def check_on_image(raw: RawSection) -> None:
    """At most `MOST_OFF_IMAGE` of the spots have their centre outside the picture."""
    if not np.isfinite(raw.centre_px).all():
        raise BadInput(raw.name, "a section", "some spots have no position")
    inside = _inside(raw)
    off = int((~inside).sum())
    if off > MOST_OFF_IMAGE * len(inside):
        low, high = raw.centre_px.min(axis=0), raw.centre_px.max(axis=0)
        span = (f"x {low[0]:.0f} to {high[0]:.0f}", f"y {low[1]:.0f} to {high[1]:.0f}")
        size = (raw.slide.width_px, raw.slide.height_px)
        raise SectionError.off_image(raw.name, off, len(inside), size, f"{span[0]}, {span[1]}")


def check_scale(raw: RawSection) -> None:
    """Neighbouring spots are as far apart as the assay puts them, within a factor `SCALE_FACTOR`."""
    if raw.slide.mpp is None:
        return  # told by `check_scale_known`
    pitch_px = raw.pitch_px or neighbour_distance_px(raw.centre_px)
    if pitch_px is None:
        return
    least, most = raw.pitch_um
    pitch_um = pitch_px * raw.slide.mpp
    if not least / SCALE_FACTOR <= pitch_um <= most * SCALE_FACTOR:
        apart = f"{least:g} um" if least == most else f"{least:g} to {most:g} um"
        fits = f"{least / pitch_px:.3g}" if least == most else f"{least / pitch_px:.3g} to {most / pitch_px:.3g}"
        raise ScaleError.contradicted(
            raw.slide.name,
            raw.slide.mpp,
            f"then the spots of {raw.name} would lie {pitch_um:.0f} um apart, and their assay puts them {apart} apart "
            f"({fits} um per px would fit)",
        )


CHECKS: tuple[Callable[[RawSection], None], ...] = (
    check_size,
    check_barcodes,
    check_raw_counts,
    check_not_blank,
    check_scale_known,
    check_on_image,
    check_scale,
)
"""In this order. Each raises one typed error or nothing."""


def _inside(raw: RawSection) -> np.ndarray:
    """Which centres lie in the picture, shape (spots,), bool."""
    x, y = raw.centre_px[:, 0], raw.centre_px[:, 1]
    return (x >= 0) & (y >= 0) & (x < raw.slide.width_px) & (y < raw.slide.height_px)


def _take(raw: RawSection, rows: np.ndarray) -> RawSection:
    index = np.flatnonzero(rows)
    return replace(
        raw,
        barcodes=[raw.barcodes[i] for i in index],
        centre_px=raw.centre_px[index],
        counts=sparse.csr_matrix(raw.counts)[index],
    )
