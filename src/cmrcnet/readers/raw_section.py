"""What a reader is asked for, and what it brings back before anybody has checked it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import sparse

from cmrcnet.slides.slide import Slide

NEIGHBOURS_WITHIN = 1.3
"""Times the nearest distance: takes in all neighbours, not the next ring (1.41 on a square, 1.73 on a hexagon)."""


@dataclass(frozen=True, kw_only=True)
class SectionSource:
    """Where one section lies, and what the user said about it.

    Parameters
    ----------
    path : pathlib.Path
        The counts: a table, an `outs` folder, an `.h5ad` file, the root of a HEST folder.
    name : str or None
        Name of the section; None: the reader makes one from `path`.
    image, spots : pathlib.Path or None
        The picture and the spot file, where the format does not find them by itself.
    mpp : float or None
        Micrometres per pixel of the full-resolution picture. It wins over everything that a file says.
    spot_diameter_um : float or None
    """

    path: Path
    name: str | None = None
    image: Path | None = None
    spots: Path | None = None
    mpp: float | None = None
    spot_diameter_um: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class RawSection:
    """One section as its files tell it. `section_checks` makes a `Section` of it, or says what is wrong.

    Parameters
    ----------
    name : str
    patient : str or None
        When the files say so.
    slide : Slide
    barcodes : sequence of str, length spots
    centre_px : numpy.ndarray, shape (spots, 2), float64
        x, y in level-0 pixels of `slide`.
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
    notes : tuple of str
        What the reader dropped or assumed, one sentence each.
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
    notes: tuple[str, ...] = ()


def neighbour_distance_px(centre_px: np.ndarray) -> float | None:
    """Distance between neighbouring spots of an array, in pixels; None for fewer than three spots.

    The median over all pairs of neighbours, not over each spot's nearest: where locations jitter, the nearest of four
    or
    six neighbours is always somewhat too near (6 % on the shared spinal cord sections).

    Parameters
    ----------
    centre_px : numpy.ndarray, shape (spots, 2)
    """
    from scipy.spatial import cKDTree

    centres = np.unique(np.asarray(centre_px, dtype=np.float64), axis=0)
    centres = centres[np.isfinite(centres).all(axis=1)]
    if len(centres) < 3:
        return None
    tree = cKDTree(centres)
    nearest = float(np.median(tree.query(centres, k=2)[0][:, 1]))
    pairs = tree.query_pairs(NEIGHBOURS_WITHIN * nearest, output_type="ndarray")
    return float(np.median(np.linalg.norm(centres[pairs[:, 0]] - centres[pairs[:, 1]], axis=1)))
