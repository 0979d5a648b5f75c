"""Out-of-distribution detection: does a slide, and each location on it, look like the training sections?

**Image statistics** of a patch, before any encoder or standardisation. With D the optical density
``-log10((v + 1) / 256)`` of each channel, and the grey density (mean of the channels) halved again and again by 2 x 2
means (the Haar pyramid, Mallat 1989)::

    strength   = log mean (D_red + D_green + D_blue)
    red, blue  = mean D_red, D_blue over the mean of all three, as shares
    contrast   = log deviation of D_red - D_blue
    detail_j   = log mean square of the detail removed by the j-th halving      from 1 to 16 um

The default config standardises features within a slide, which removes stain and scanner; these statistics keep them.

**Perturbations** (wrong scale, blur, exchanged channels) are applied to sound sections. Their effect on a section's
median statistics hardly depends on the section, so a new slide can be tested: is it near the training sections once
the effect is subtracted?

**Detection.** With m the median statistics of a slide, and over the training sections their centre c, their covariance
B around it (shrunk, below) and the covariance W of spots within a section::

    distance of a slide       D(m) = (m - c)^T (B (1 + 1 / n))^-1 (m - c)         Mahalanobis, with Hotelling's 1 + 1/n
    distance of a location    (x - c)^T (B (1 + 1 / n) + W)^-1 (x - c)
    gain of a perturbation    D(m) - D(m - d)         d: effect of the perturbation on sound sections
    B = (sum_s (m_s - c)(m_s - c)^T + p A) / (n - 1 + p)
    A = W / 4 + 0.36 u u^T + 0.0004 on the colours' shares

A is the prior of the differences between sections: half of the deviation within a section, and the strength of the
stain, u, along which log density changes by 1, log deviation by 1 and log detail by 2. A slide is flagged when the gain
of a perturbation or its distance exceeds every validation section's (a section judged by those of other groups, where
these are more than half), but never below floors that sound sections of two public cohorts stayed under. With fewer
than three validation sections the floor of distances is doubled, and applies to gains as well. The perturbation is
named when the slide is near the training sections without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from cmrcnet.slides.patches import crop_patches
from cmrcnet.slides.slide import PatchScale, Slide

STATISTICS_SCALE = PatchScale(size_px=128, mpp=1.0)
"""One um a pixel: fine enough for nuclei, and cheap to read."""
DETAIL_UM = (1, 2, 4, 8, 16)
"""Size of a pixel before each halving."""
STATISTIC_NAMES = ("strength", "red", "blue", "contrast", *(f"detail_{size}_um" for size in DETAIL_UM))
"""Names of a patch's statistics, in their order."""

PERTURBED_LOCATIONS = 64
"""Locations of a section, at most, to which perturbations are applied."""
PRIOR_SECTIONS = 2.0
"""``p``: weight of the prior, in sections."""
SLIDE_FLOOR = 45.0
"""Distance below which no slide is flagged; sound sections (14 of two cohorts, each by the others) reach 41."""
GAIN_FLOOR = 9.0
"""Gain below which no perturbation is named: with few training sections the largest of their gains is no limit."""
LOCATION_FLOOR = 40.0
"""Distance below which no location is flagged."""
NEAR = 2.0
"""Times the slide limit: largest distance without the perturbation at which it is named."""
FEWEST_VALIDATION = 3
"""Validation sections from which limits are learnt."""
UNTRIED = 2.0
"""Times the floor, with fewer validation sections."""
MARGIN = 1.1
"""Times the largest validation distance."""
VALIDATION_INSIDE = 0.98
"""Share of validation locations within the location limit."""

_FAINT = 1e-6
_CELL_UM = 8
_DENSITY = -np.log10((np.arange(256, dtype=np.float32) + 1) / 256)
_STAIN = np.array([1.0, 0.0, 0.0, 1.0, *([2.0] * (len(STATISTIC_NAMES) - 4))])
_SHARES = np.diag([0.0, 1.0, 1.0, *([0.0] * (len(STATISTIC_NAMES) - 3))])
_SPOKEN = {"strength": "how strongly it is stained", "red": "its colour", "blue": "its colour"}
_VALUES = ("slide_limit", "location_limit", "gain_limit", "facts")


def image_statistics(slide: Slide, centre_px: np.ndarray) -> np.ndarray:
    """Read a small patch around each centre (locations, 2), in level-0 pixels, and compute its statistics.

    Returns (locations, statistics) float32. A slide of unknown scale is a `ScaleError`.
    """
    found = [patch_statistics(patches) for patches in crop_patches(slide, centre_px, STATISTICS_SCALE)]
    return np.concatenate(found) if found else np.empty((0, len(STATISTIC_NAMES)), np.float32)


def patch_statistics(patches: np.ndarray) -> np.ndarray:
    """Compute the statistics of patches: (patches, statistics) float32.

    The patches (patches, side, side, 3) are uint8, their side a multiple of 32; a pixel shows 1 um.
    """
    density = _DENSITY[patches]
    contrast = (density[..., 0] - density[..., 2]).std(axis=(1, 2))
    details = [squares.mean(axis=(1, 2)) for squares in _details(density.mean(axis=3))]
    return _statistics(density.mean(axis=(1, 2)), contrast, np.column_stack(details))


def statistics_maps(picture: np.ndarray) -> list[np.ndarray]:
    """Maps of a picture whose means over a window are what `statistics_of_means` takes.

    The picture (height, width, 3) is uint8, both sides a multiple of 32; a pixel shows 1 um. The maps are (height /
    cell, width / cell, channels) float32, with cells of 8, 16 and 32 um: the densities, their difference, its square
    and the finest three details; then one coarser detail each.
    """
    density = _DENSITY[picture]
    difference = density[..., 0] - density[..., 2]
    details = [squares[0] for squares in _details(density.mean(axis=2)[None])]
    fine = [*np.moveaxis(density, 2, 0), difference, difference**2, *details[:3]]
    height, width = (side // _CELL_UM for side in picture.shape[:2])
    first = [each.reshape(height, each.shape[0] // height, width, -1).mean(axis=(1, 3)) for each in fine]
    return [np.stack(first, axis=2), *(detail[..., None] for detail in details[3:])]


def statistics_of_means(means: np.ndarray) -> np.ndarray:
    """Statistics (windows, statistics) float32 from the means (windows, channels) of the maps over each window.

    They are those of a patch but for two things: the halvings are counted from the picture's corner, not the patch's,
    and a cell at the window's edge counts by the share that lies inside.
    """
    spread = means[:, 4] - means[:, 3] ** 2
    return _statistics(means[:, :3], np.sqrt(np.maximum(spread, 0.0)), means[:, 5:])


def _details(grey: np.ndarray) -> list[np.ndarray]:
    """Mean squares of the detail that each halving removes, (pictures, height, width) of the halved picture."""
    found = []
    for _ in DETAIL_UM:
        number, height, width = grey.shape
        blocks = grey.reshape(number, height // 2, 2, width // 2, 2)
        grey = blocks.mean(axis=(2, 4))
        found.append(((blocks - grey[:, :, None, :, None]) ** 2).mean(axis=(2, 4)))
    return found


def _statistics(density: np.ndarray, contrast: np.ndarray, details: np.ndarray) -> np.ndarray:
    """From mean densities (n, 3), the deviation of their difference (n,), mean squares of details (n, halvings)."""
    total = density.sum(axis=1)
    share = density / np.maximum(total, _FAINT)[:, None]
    columns = [np.log(total + 1e-3), share[:, 0], share[:, 2], np.log(contrast + 1e-3), np.log(details + _FAINT)]
    return np.column_stack(columns).astype(np.float32)


@dataclass(frozen=True)
class Perturbation:
    """One kind of perturbation: `change` of patches (patches, side, side, 3) uint8 that are read at `scale`.

    `name` is one word, for tables; `looks_like` is the end of the sentence "It looks as if ...".
    """

    name: str
    looks_like: str
    scale: PatchScale = STATISTICS_SCALE
    change: Callable[[np.ndarray], np.ndarray] = lambda patches: patches


def _blur(patches: np.ndarray, sigma_um: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(patches, (0, sigma_um / STATISTICS_SCALE.mpp, sigma_um / STATISTICS_SCALE.mpp, 0))


_FOCUS = "were out of focus or saved at a lower resolution; check the scale first, then the focus"
# Texture cannot tell these two: on four spinal cord sections, most mpp 3, 4 or 10 times too large were named a blur.

PERTURBATIONS = (
    Perturbation(
        "too large",
        "its mpp were about twice too large: cells show at twice their size; check the scale",
        STATISTICS_SCALE.showing(STATISTICS_SCALE.side_um / 2),
    ),
    Perturbation(
        "too small",
        "its mpp were about half of what is true: cells show at half their size; check the scale",
        STATISTICS_SCALE.showing(STATISTICS_SCALE.side_um * 2),
    ),
    Perturbation(
        "blur", f"its mpp were two or three times too large, or it {_FOCUS}", change=partial(_blur, sigma_um=2.0)
    ),
    Perturbation(
        "strong blur", f"its mpp were several times too large, or it {_FOCUS}", change=partial(_blur, sigma_um=4.0)
    ),
    Perturbation(
        "red-blue", "its red and blue channels were exchanged (BGR read as RGB)", change=lambda rgb: rgb[..., [2, 1, 0]]
    ),
    Perturbation("red-green", "its red and green channels were exchanged", change=lambda rgb: rgb[..., [1, 0, 2]]),
    Perturbation("green-blue", "its green and blue channels were exchanged", change=lambda rgb: rgb[..., [0, 2, 1]]),
)
"""The kinds, in the order of `perturbation_effects`."""


PERTURBED_SCALES = tuple(dict.fromkeys([STATISTICS_SCALE, *(kind.scale for kind in PERTURBATIONS)]))
"""Scales of the patches that perturbations are applied to, in the order of `perturbed_statistics`."""


def perturbed_statistics(patches: Sequence[np.ndarray]) -> np.ndarray:
    """Compute the statistics of patches as they are, then under each perturbation.

    The patches (locations, side, side, 3) uint8 are of sound sections (in focus, of the right scale and channel order),
    at each of `PERTURBED_SCALES`. Returns (locations, 1 + perturbations, statistics) float32.
    """
    of = dict(zip(PERTURBED_SCALES, patches, strict=True))
    under = [patch_statistics(kind.change(of[kind.scale])) for kind in PERTURBATIONS]
    return np.stack([patch_statistics(of[STATISTICS_SCALE]), *under], axis=1)


def perturbation_effects(perturbed: np.ndarray) -> np.ndarray:
    """Change of a section's median statistics under each perturbation: (perturbations, statistics) float64."""
    medians = np.median(perturbed, axis=0)
    return (medians[1:] - medians[0]).astype(np.float64)


def evenly(count: int, most: int) -> np.ndarray:
    """Indices of at most `most` of `count` locations, evenly picked, ascending."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(np.intp))


@dataclass(frozen=True)
class OODFlag:
    """Whether a slide is out of distribution, and why in words.

    `kind` is "" when it is not, the name of a perturbation, or "unlike" for anything else; `limit` is the largest
    distance that is not flagged.
    """

    raised: bool
    kind: str
    sentence: str
    distance: float
    limit: float


@dataclass(frozen=True, eq=False)
class OODDetector:
    """Distribution of the image statistics of the training sections, and the limits of distances.

    Parameters
    ----------
    centre : numpy.ndarray, shape (statistics,)
    between, within : numpy.ndarray, shape (statistics, statistics)
        Covariance of a new section's median around the centre, and of locations around their section's median.
    effects : numpy.ndarray, shape (perturbations, statistics)
        Mean change of a section's median under each of `PERTURBATIONS`.
    slide_limit, location_limit, gain_limit : float
        Largest distance of a slide and of a location, and largest gain, that are not flagged.
    facts : dict
        sections, groups, group_by, validation_sections.
    """

    centre: np.ndarray
    between: np.ndarray
    within: np.ndarray
    effects: np.ndarray
    slide_limit: float
    location_limit: float
    gain_limit: float
    facts: dict[str, Any]

    def location_distance(self, statistics: np.ndarray) -> np.ndarray:
        """(locations,) float64 of statistics (locations, statistics)."""
        return _mahalanobis(np.asarray(statistics, np.float64) - self.centre, self.between + self.within)

    def slide_distance(self, median: np.ndarray) -> float:
        """Distance of a slide's median statistics (statistics,)."""
        return float(_mahalanobis((median - self.centre)[None], self.between)[0])

    def gains(self, median: np.ndarray) -> np.ndarray:
        """(perturbations,) float64: decrease of the slide's distance when each effect is subtracted."""
        back = np.asarray(median, np.float64) - self.centre - self.effects
        return self.slide_distance(median) - _mahalanobis(back, self.between)

    def flag(self, statistics: np.ndarray, name: str = "This slide") -> tuple[np.ndarray, OODFlag]:
        """Judge the slide `name` by the statistics (locations, statistics) of all of its locations.

        Returns which locations (locations,) are in distribution, none on a flagged slide, and the flag.
        """
        median = np.median(np.asarray(statistics, np.float64), axis=0)
        distance, gains, sections = self.slide_distance(median), self.gains(median), self.facts["sections"]
        best = int(gains.argmax())
        kind, why = "", f"{name} looks like the {sections} training sections."
        if gains[best] > self.gain_limit and distance - gains[best] <= NEAR * self.slide_limit:
            kind = PERTURBATIONS[best].name
            why = (
                f"{name} looks as if {PERTURBATIONS[best].looks_like}. Do not rely on its predictions before that is "
                "corrected."
            )
        elif distance > self.slide_limit or gains[best] > self.gain_limit:
            kind = "unlike"
            furthest = int((np.abs(median - self.centre) / np.sqrt(np.diag(self.between))).argmax())
            most = _SPOKEN.get(STATISTIC_NAMES[furthest], "how coarse or fine its texture is")
            why = (
                f"{name} does not look like the {sections} training sections (distance {distance:.0f}, "
                f"{self.slide_limit:.0f} allowed), most in {most}: another tissue, stain or scanner, or a wrong mpp. "
                "Do not rely on its predictions."
            )
        if kind:
            inside = np.zeros(len(statistics), bool)
        else:
            inside = self.location_distance(statistics) <= self.location_limit
        return inside, OODFlag(bool(kind), kind, why, distance, self.slide_limit)

    def to_dict(self) -> dict[str, Any]:
        """Plain values to store beside the arrays."""
        values = {name: getattr(self, name) for name in _VALUES}
        return values | {"statistics": list(STATISTIC_NAMES), "perturbations": len(PERTURBATIONS)}

    @classmethod
    def restore(cls, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> OODDetector | None:
        """From the arrays and `to_dict`; None when this version has other statistics or perturbations."""
        if facts["statistics"] != list(STATISTIC_NAMES) or facts["perturbations"] != len(PERTURBATIONS):
            return None
        return cls(**arrays, **{name: facts[name] for name in _VALUES})


def fit_ood_detector(
    statistics: Sequence[np.ndarray], effects: Sequence[np.ndarray], group_of: Sequence[str], group_by: str = "patient"
) -> OODDetector:
    """Fit a detector to training sections, with limits from leaving out each group in turn.

    Of each section: its `statistics` (locations, statistics), the `effects` (perturbations, statistics) from
    `perturbation_effects`, and its group (patient, or section): it is compared with sections of other groups only.
    `group_by` says what the groups are, for the record.
    """
    effect = np.mean(effects, axis=0)
    slides, locations, gains, weights = [], [], [], []
    for held in dict.fromkeys(group_of):
        rest = [values for values, its in zip(statistics, group_of, strict=True) if its != held]
        if len(rest) < 2 or 2 * len(rest) <= len(statistics):
            continue  # too few sections to stand for all of them
        detector = OODDetector(*_distribution(rest), effect, np.inf, np.inf, np.inf, {})
        for values, its in zip(statistics, group_of, strict=True):
            if its == held:
                median = np.median(values, axis=0)
                slides.append(detector.slide_distance(median))
                gains.append(float(detector.gains(median).max()))
                locations.append(detector.location_distance(values))
                weights.append(np.full(len(values), 1 / len(values)))
    untried = len(slides) < FEWEST_VALIDATION
    slide_limit = max([SLIDE_FLOOR * (UNTRIED if untried else 1.0), *(MARGIN * distance for distance in slides)])
    gain_limit = max([SLIDE_FLOOR * UNTRIED if untried else GAIN_FLOOR, *gains])
    location_limit = LOCATION_FLOOR
    if locations:
        inside = np.quantile(
            np.concatenate(locations), VALIDATION_INSIDE, weights=np.concatenate(weights), method="inverted_cdf"
        )
        location_limit = max(location_limit, float(inside))
    facts = {
        "sections": len(statistics),
        "groups": len(set(group_of)),
        "group_by": group_by,
        "validation_sections": len(slides),
    }
    return OODDetector(*_distribution(statistics), effect, slide_limit, location_limit, gain_limit, facts)


def _distribution(statistics: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre, covariance of a new section's median around it, covariance within sections."""
    medians = np.array([np.median(values, axis=0) for values in statistics], np.float64)
    around = [np.asarray(values, np.float64) - median for values, median in zip(statistics, medians, strict=True)]
    within = np.mean([values.T @ values / len(values) for values in around], axis=0) + 1e-6 * np.eye(
        len(STATISTIC_NAMES)
    )
    centre = medians.mean(axis=0)
    allowed = within / 4 + 0.36 * np.outer(_STAIN, _STAIN) + 0.0004 * _SHARES
    scatter = (medians - centre).T @ (medians - centre) + PRIOR_SECTIONS * allowed
    between = scatter / (len(medians) - 1 + PRIOR_SECTIONS) * (1 + 1 / len(medians))
    return centre, between, within


def _mahalanobis(differences: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis length of each row."""
    return np.einsum("nt,nt->n", differences, np.linalg.solve(covariance, differences.T).T)
