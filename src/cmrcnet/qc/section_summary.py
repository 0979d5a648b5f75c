"""What the detectors keep of a section once its pixels and counts are gone: small pictures and short vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cmrcnet.qc.arrangement import Arrangement, judge_arrangement
from cmrcnet.qc.texture import texture_curve
from cmrcnet.qc.under_spots import SpotMaps
from cmrcnet.slides.section import Section
from cmrcnet.slides.slide import known_scale

PICTURE_UM = 80.0
"""Micrometres a pixel of the kept grey picture of the spots' surroundings: 6.5 mm are 81 px."""

TOP_GENES = 200
"""Genes whose counts are kept spot by spot, so that duplicates can be told: those of the largest totals."""

MOST_SPOTS = 5_000
"""Spots whose counts are kept: the first ones in the order of their total counts, largest first."""


@dataclass(frozen=True, eq=False)
class SectionSummary:
    """A section, made so small that all sections of a cohort fit in memory.

    Parameters
    ----------
    name, patient : str
    slide : str
        Fingerprint of the picture.
    centre_px : numpy.ndarray, shape (spots, 2)
    diameter_um : float
    pitch_um : float or None
        Median distance to the nearest spot.
    picture : numpy.ndarray, shape (height, width), float32
        Optical density of the spots' surroundings at `PICTURE_UM` a pixel.
    colour : numpy.ndarray, shape (3,)
        Median optical density of the tissue around the spots: red, green, blue.
    texture : numpy.ndarray, shape (sizes,)
        See `texture_curve`.
    arrangement : Arrangement
    totals : dict of str to float
        Counts of each gene, summed over the spots.
    top : dict of str to int
        Column of each gene of `rows`.
    rows : numpy.ndarray, shape (spots, genes), int64
        Counts of the `TOP_GENES` genes.
    """

    name: str
    patient: str
    slide: str
    centre_px: np.ndarray
    diameter_um: float
    pitch_um: float | None
    picture: np.ndarray
    colour: np.ndarray
    texture: np.ndarray
    arrangement: Arrangement
    totals: dict[str, float]
    top: dict[str, int]
    rows: np.ndarray


def summarize_section(section: Section) -> SectionSummary:
    """Look at a section once and keep little.

    Parameters
    ----------
    section : Section

    Returns
    -------
    SectionSummary

    Raises
    ------
    ScaleError
    """
    mpp = known_scale(section.slide)
    maps = SpotMaps.of(section.slide, section.spots.diameter_um)
    totals = np.asarray(section.counts.sum(axis=0), np.float64).ravel()
    columns = np.argsort(-totals, kind="stable")[:TOP_GENES]
    deep = np.argsort(-np.asarray(section.counts.sum(axis=1)).ravel(), kind="stable")[:MOST_SPOTS]
    return SectionSummary(
        name=section.name,
        patient=section.patient,
        slide=section.slide.fingerprint(),
        centre_px=np.array(section.spots.centre_px),
        diameter_um=section.spots.diameter_um,
        pitch_um=_pitch(section.spots.centre_px, mpp),
        picture=maps.around(section.spots.centre_px, PICTURE_UM),
        colour=maps.colour(section.spots.centre_px),
        texture=texture_curve(section.slide, section.spots.centre_px),
        arrangement=judge_arrangement(maps, section.spots.centre_px, section.counts),
        totals=dict(zip(section.genes, totals.tolist(), strict=True)),
        top={section.genes[column]: place for place, column in enumerate(columns)},
        rows=section.counts[deep][:, columns].toarray().astype(np.int64),
    )


def _pitch(centre_px: np.ndarray, mpp: float) -> float | None:
    from scipy.spatial import cKDTree

    if len(centre_px) < 2:
        return None
    return float(np.median(cKDTree(centre_px).query(centre_px, k=2)[0][:, 1]) * mpp)
