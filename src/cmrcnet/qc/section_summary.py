"""Findings, and what the detectors keep of a section: maps of its slide, small pictures and short vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cmrcnet.slides.patches import thumbnail
from cmrcnet.slides.slide import Slide, known_scale
from cmrcnet.slides.tissue import find_tissue

if TYPE_CHECKING:
    from cmrcnet.qc.arrangement import Arrangement

Kind = Literal[
    "duplicated counts",
    "duplicated picture",
    "shared picture",
    "same donor",
    "sexes differ",
    "stain",
    "scale",
    "shuffled",
    "misaligned",
]


@dataclass(frozen=True)
class Finding:
    """One result of a detector.

    Parameters
    ----------
    kind : str
        The kind of problem; see `Kind`.
    sections : tuple of str
        The sections concerned, in the cohort's order.
    value : float
        The measured value; the sentence gives its unit.
    threshold : float
        Value from which there is a finding.
    sentence : str
        The measurement and what to do.
    certain : bool
        A problem (True), or a suspicion that a person must judge (False).

    Examples
    --------
    >>> Finding("stain", ("C6",), 12.0, 8.0, "The colour of C6 lies 12 degrees from the others.").certain
    False
    """

    kind: Kind
    sections: tuple[str, ...]
    value: float
    threshold: float
    sentence: str
    certain: bool = False


PICTURE_UM = 80.0
"""Micrometres a pixel of the kept grey picture of the spots' surroundings: 6.5 mm are 81 px."""

TOP_GENES = 200
"""Number of genes, those of the largest totals, whose counts are kept spot by spot to find duplicates."""

MOST_ROWS = 5_000
"""Spots whose counts are kept: the first ones in the order of their total counts, largest first."""


@dataclass(frozen=True, eq=False)
class SectionSummary:
    """A section reduced so far that all sections of a cohort fit in memory.

    Parameters
    ----------
    slide : str
        Fingerprint of the picture.
    pitch_um : float
        Median distance to the nearest spot; nan for a single spot.
    picture : numpy.ndarray, shape (height, width), float32
        Optical density of the spots' surroundings at `PICTURE_UM` a pixel.
    colour : numpy.ndarray, shape (3,)
        Median optical density of the tissue around the spots: red, green, blue.
    texture : numpy.ndarray, shape (sizes,)
        See `texture_curve`.
    totals : dict of str to float
        Counts of each gene, summed over the spots.
    top, rows : dict of str to int; numpy.ndarray, shape (spots, genes), int64
        Counts of the `TOP_GENES` genes, and the column of each.
    """

    name: str
    patient: str
    slide: str
    centre_px: np.ndarray
    diameter_um: float
    pitch_um: float
    picture: np.ndarray
    colour: np.ndarray
    texture: np.ndarray
    arrangement: Arrangement
    totals: dict[str, float]
    top: dict[str, int]
    rows: np.ndarray


MAP_MPP = 8.0
"""A map pixel: about one cell."""

AROUND_UM = 150.0
"""Colour is judged within this distance of a spot; the picture kept reaches so far beyond the outermost spots."""


@dataclass(frozen=True, eq=False)
class SpotMaps:
    """A slide averaged over discs of a spot's size.

    Parameters
    ----------
    density : numpy.ndarray, shape (height, width, 3), float32
        Optical density log10(256 / (value + 1)) of R, G, B at about 8 um per pixel.
    features : numpy.ndarray, shape (height, width, 5), float32
        Means over a disc: optical density (all channels), haematoxylin, eosin (Ruifrok & Johnston 2001, by
        scikit-image), red minus blue density, and the log of the density's standard deviation.
    tissue, mask : numpy.ndarray, shape (height, width), float32 and bool
        Share of the disc that is tissue, and whether a pixel is.
    downsample : float
        Level-0 pixels a map pixel.
    mpp, size_px : float, tuple of int
        Of level 0: micrometres a pixel; width and height.
    """

    density: np.ndarray
    features: np.ndarray
    tissue: np.ndarray
    mask: np.ndarray
    downsample: float
    mpp: float
    size_px: tuple[int, int]

    @classmethod
    def of(cls, slide: Slide, diameter_um: float) -> SpotMaps:
        """The maps of a slide, read at reduced size; its scale must be known (`ScaleError`)."""
        from skimage.color import rgb2hed

        mpp = known_scale(slide)
        downsample = max(1.0, MAP_MPP / mpp)
        small, mask = thumbnail(slide, downsample), find_tissue(slide).pixels
        density = optical_density(small)
        stains = rgb2hed(small).astype(np.float32)
        radius_px = max(diameter_um / 2 / (mpp * downsample), 1.0)
        y, x = np.mgrid[-int(radius_px) : int(radius_px) + 1, -int(radius_px) : int(radius_px) + 1]
        disc = (x * x + y * y <= radius_px**2).astype(np.float32)
        disc /= disc.sum()
        grey = density.mean(axis=2)
        mean = _mean(grey, disc)
        rough = np.sqrt(np.maximum(_mean(grey * grey, disc) - mean * mean, 0))
        features = [
            mean,
            _mean(stains[..., 0], disc),
            _mean(stains[..., 1], disc),
            _mean(density[..., 0] - density[..., 2], disc),
            np.log(rough + 1e-3),
        ]
        tissue = np.clip(_mean(mask.astype(np.float32), disc), 0, 1)
        size_px = (slide.width_px, slide.height_px)
        return cls(density, np.stack(features, axis=2), tissue, mask, downsample, mpp, size_px)

    def at(self, centre_px: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features (locations, 5) and tissue share (locations,) of the map pixel that holds each location; off the
        slide: 0."""
        cell = np.floor(centre_px / self.downsample).astype(np.intp)
        height, width = self.tissue.shape
        inside = (cell >= 0).all(axis=1) & (cell[:, 0] < width) & (cell[:, 1] < height)
        column, row = np.clip(cell, 0, (width - 1, height - 1)).T
        return self.features[row, column], np.where(inside, self.tissue[row, column], 0.0)

    def colour(self, centre_px: np.ndarray) -> np.ndarray:
        """Median optical density (3,) of tissue within `AROUND_UM` of a spot; of all pixels there if none is tissue."""
        from scipy import ndimage

        far = np.ones(self.mask.shape, bool)
        height, width = self.mask.shape
        cell = np.clip((centre_px / self.downsample).astype(np.intp), 0, (width - 1, height - 1))
        far[cell[:, 1], cell[:, 0]] = False
        distance: Any = ndimage.distance_transform_edt(far)
        near = distance <= AROUND_UM / (self.mpp * self.downsample)
        chosen = near & self.mask if (near & self.mask).any() else near
        return np.median(self.density[chosen], axis=0)

    def around(self, centre_px: np.ndarray, um: float) -> np.ndarray:
        """Grey optical density of the spots' bounding box at `um` micrometres a pixel, float32."""
        from PIL import Image

        reach = AROUND_UM / self.mpp
        low = np.maximum((centre_px.min(axis=0) - reach) / self.downsample, 0).astype(int)
        high = np.ceil((centre_px.max(axis=0) + reach) / self.downsample).astype(int)
        grey = self.density[low[1] : max(high[1], low[1] + 1), low[0] : max(high[0], low[0] + 1)].mean(axis=2)
        factor = self.mpp * self.downsample / um
        size = (max(1, round(grey.shape[1] * factor)), max(1, round(grey.shape[0] * factor)))
        return np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BOX), np.float32)


def optical_density(rgb: np.ndarray) -> np.ndarray:
    """Beer and Lambert: log10(256 / (value + 1)), float32, 0 for white."""
    return -np.log10((rgb.astype(np.float32) + 1) / 256)


def _mean(values: np.ndarray, disc: np.ndarray) -> np.ndarray:
    from scipy.signal import fftconvolve

    reach = disc.shape[0] // 2
    return fftconvolve(np.pad(values, reach, mode="edge"), disc, mode="valid").astype(np.float32)
