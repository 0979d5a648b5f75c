"""What a patch looks like before any encoder or standardisation: colour, and how much detail there is of each size.

With D the optical density ``-log10((v + 1) / 256)`` of each channel, and the grey density g (mean of the channels)
halved again and again by 2 x 2 means (the Haar pyramid, Mallat 1989)::

    strength   = log mean (D_red + D_green + D_blue)
    red, blue  = mean D_red, D_blue over the mean of all three, as shares
    contrast   = log deviation of D_red - D_blue
    detail_j   = log mean square of what the j-th halving takes away        from 1 to 16 um

The default config standardises features within a slide, so that stain and scanner fall away; these numbers keep them.

Shifts that are planted on sound sections, to learn where each one moves the look of a patch.

A wrong scale is planted by reading patches that show half or twice as much; blur and exchanged channels on the
patches themselves. What a shift does to a section's median traits is much the same on every section, so that a new
slide can be asked: would it look like the bank's if this shift were taken away?

Is this slide, and is each location on it, like what the model has learnt from? And if not, which shift is it like?

With m the median traits (`appearance`) of a slide, and over the training sections their centre c, their covariance B
around it (shrunk, below) and the covariance W of spots within a section::

    distance of a slide   D(m) = (m - c)^T (B (1 + 1 / n))^-1 (m - c)             Mahalanobis, with Hotelling's 1 + 1/n
    distance of a location   (x - c)^T (B (1 + 1 / n) + W)^-1 (x - c)
    gain of a shift       D(m) - D(m - d)         d: what the shift does to sound sections (`shifts`)
    B = (sum_s (m_s - c)(m_s - c)^T + p A) / (n - 1 + p)
    A = W / 4 + 0.36 u u^T + 0.0004 on the colours' shares

A is what sections may differ by before any is seen: a half of the spread within a section, and the strength of the
stain, u, along which log density goes by 1, log deviation by 1 and log detail by 2. A slide alarms when a shift gains
more, or its distance is larger, than validation sections ever showed (a section judged by those of other units, where
these are more than half); never below the floors, which sound sections of two public cohorts stayed under. Where fewer
than three sections could be held in, the floor is twice as high, and holds for gains too. A shift is named when,
without it, the slide would be near the bank's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cmrcnet.slides.patches import crop_patches
from cmrcnet.slides.slide import PatchScale, Slide

LOOK = PatchScale(size_px=128, mpp=1.0)
"""One um a pixel: fine enough for nuclei, and cheap to read."""
DETAIL_UM = (1, 2, 4, 8, 16)
"""Size of a pixel before each halving."""
TRAITS = ("strength", "red", "blue", "contrast", *(f"detail_{size}_um" for size in DETAIL_UM))
"""Names of the numbers of a patch, in their order."""

_FAINT = 1e-6


def appearance(slide: Slide, centre_px: np.ndarray) -> np.ndarray:
    """The traits of the patch around each centre.

    Parameters
    ----------
    slide : Slide
    centre_px : array, shape (locations, 2)
        x, y in level-0 pixels.

    Returns
    -------
    numpy.ndarray, shape (locations, traits), float32

    Raises
    ------
    ScaleError
    """
    found = [traits_of(patches) for patches in looks(slide, centre_px)]
    return np.concatenate(found) if found else np.empty((0, len(TRAITS)), np.float32)


def looks(slide: Slide, centre_px: np.ndarray, scale: PatchScale = LOOK) -> Iterator[np.ndarray]:
    """Patches (patches, 128, 128, 3) uint8, some at a time."""
    return crop_patches(slide, centre_px, scale)


def traits_of(patches: np.ndarray) -> np.ndarray:
    """The traits of patches.

    Parameters
    ----------
    patches : array, shape (patches, side, side, 3), uint8
        The side is a multiple of 32; a pixel shows 1 um.

    Returns
    -------
    numpy.ndarray, shape (patches, traits), float32
    """
    density = -np.log10((patches.astype(np.float32) + 1) / 256)
    mean = density.mean(axis=(1, 2))
    total = mean.sum(axis=1)
    share = mean / np.maximum(total, _FAINT)[:, None]
    contrast = (density[..., 0] - density[..., 2]).std(axis=(1, 2))
    colour = [np.log(total + 1e-3), share[:, 0], share[:, 2], np.log(contrast + 1e-3)]
    return np.column_stack([*colour, *_details(density.mean(axis=3))]).astype(np.float32)


def _details(grey: np.ndarray) -> list[np.ndarray]:
    """Log mean square of what each halving takes away, one array (patches,) a size."""
    found = []
    for _ in DETAIL_UM:
        patches, height, width = grey.shape
        blocks = grey.reshape(patches, height // 2, 2, width // 2, 2)
        half = blocks.mean(axis=(2, 4))
        found.append(np.log(((blocks - half[:, :, None, :, None]) ** 2).mean(axis=(1, 2, 3, 4)) + _FAINT))
        grey = half
    return found


MOST_LOCATIONS = 64
"""Locations of a section on which shifts are planted."""


@dataclass(frozen=True)
class Shift:
    """One kind of shift.

    Parameters
    ----------
    name : str
        One word, for tables.
    looks_like : str
        The end of the sentence "It looks as if ...".
    scale : PatchScale
        What is read in place of `LOOK`.
    change : callable
        Patches (patches, side, side, 3) uint8 in and out.
    """

    name: str
    looks_like: str
    scale: PatchScale = LOOK
    change: Callable[[np.ndarray], np.ndarray] = lambda patches: patches


def _blurred(sigma_um: float) -> Callable[[np.ndarray], np.ndarray]:
    def blur(patches: np.ndarray) -> np.ndarray:
        from scipy.ndimage import gaussian_filter

        return gaussian_filter(patches, (0, sigma_um / LOOK.mpp, sigma_um / LOOK.mpp, 0))

    return blur


def _in_order(*channels: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda patches: patches[..., list(channels)]


SHIFTS = (
    Shift(
        "too large",
        "its mpp were about twice too large: cells show at twice their size; check the scale",
        LOOK.showing(LOOK.side_um / 2),
    ),
    Shift(
        "too small",
        "its mpp were about half of what is true: cells show at half their size; check the scale",
        LOOK.showing(LOOK.side_um * 2),
    ),
    Shift("blur", "it were out of focus or saved at a lower resolution; scan it again", change=_blurred(2.0)),
    Shift("strong blur", "it were far out of focus or greatly enlarged; scan it again", change=_blurred(4.0)),
    Shift("red-blue", "its red and blue channels were exchanged (BGR read as RGB)", change=_in_order(2, 1, 0)),
    Shift("red-green", "its red and green channels were exchanged", change=_in_order(1, 0, 2)),
    Shift("green-blue", "its green and blue channels were exchanged", change=_in_order(0, 2, 1)),
)
"""The kinds, in the order of `moves_of`."""


def moves_of(slide: Slide, centre_px: np.ndarray) -> np.ndarray:
    """By how much each shift moves the median traits of a section: (shifts, traits) float64.

    Parameters
    ----------
    slide : Slide
    centre_px : array, shape (locations, 2)
        At most `MOST_LOCATIONS` of them, evenly picked, are looked at.
    """
    picked = evenly(centre_px, MOST_LOCATIONS)
    plain = np.concatenate(list(looks(slide, picked)))
    sound = np.median(traits_of(plain), axis=0)
    found = []
    for shift in SHIFTS:
        patches = plain if shift.scale == LOOK else np.concatenate(list(looks(slide, picked, shift.scale)))
        found.append(np.median(traits_of(shift.change(patches)), axis=0) - sound)
    return np.array(found, np.float64)


def evenly(centre_px: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the locations, evenly picked in their order."""
    rows = np.unique(np.linspace(0, len(centre_px) - 1, min(most, len(centre_px))).astype(np.intp))
    return np.asarray(centre_px, np.float64)[rows]


PRIOR_SECTIONS = 2.0
"""``p``: the allowance counts as so many sections."""
SLIDE_FLOOR = 45.0
"""Distance of a slide that never alarms; sound sections reach 41 (14 sections of two cohorts, each by the others)."""
LOCATION_FLOOR = 40.0
"""Distance of a location that never counts as outside."""
NEAR = 2.0
"""Times the limit: so near must a slide come for a shift to be named."""
FEWEST_VALIDATION = 3
"""Validation sections that limits can be set on."""
UNTRIED = 2.0
"""Times the floor, where fewer were held in."""
MARGIN = 1.1
"""Times the largest validation distance."""
VALIDATION_INSIDE = 0.98
"""Share of validation locations that are inside."""

_STAIN = np.array([1.0, 0.0, 0.0, 1.0, *([2.0] * (len(TRAITS) - 4))])
_SHARES = np.diag([0.0, 1.0, 1.0, *([0.0] * (len(TRAITS) - 3))])
_WORDS = {"strength": "how strongly it is stained", "red": "its colour", "blue": "its colour"}


@dataclass(frozen=True)
class Alarm:
    """The judgement of a slide.

    Parameters
    ----------
    raised : bool
    kind : str
        "" when it is inside; the name of a shift; or "unlike" for anything else.
    sentence : str
        For people.
    distance, limit : float
    """

    raised: bool
    kind: str
    sentence: str
    distance: float
    limit: float


@dataclass(frozen=True, eq=False)
class Domain:
    """What the sections of training look like.

    Parameters
    ----------
    centre : numpy.ndarray, shape (traits,)
    between, within : numpy.ndarray, shape (traits, traits)
        Covariance of a new section's median around the centre, and of locations around their section's median.
    moves : numpy.ndarray, shape (shifts, traits)
        What each of `SHIFTS` does to a section's median.
    slide_limit, location_limit, gain_limit : float
    facts : dict
        sections, units and what a unit is; how many validation sections alarmed.
    """

    centre: np.ndarray
    between: np.ndarray
    within: np.ndarray
    moves: np.ndarray
    slide_limit: float
    location_limit: float
    gain_limit: float
    facts: dict[str, Any]

    def location_distance(self, traits: np.ndarray) -> np.ndarray:
        """(locations,) float64 of traits (locations, traits)."""
        return _distance(np.asarray(traits, np.float64) - self.centre, self.between + self.within)

    def slide_distance(self, median: np.ndarray) -> float:
        """Of a slide's median traits (traits,)."""
        return float(_distance((median - self.centre)[None], self.between)[0])

    def gains(self, median: np.ndarray) -> np.ndarray:
        """(shifts,) float64: by how much the slide comes nearer when each shift is taken away."""
        back = np.asarray(median, np.float64) - self.centre - self.moves
        return self.slide_distance(median) - _distance(back, self.between)

    def judge(self, traits: np.ndarray, name: str = "This slide") -> tuple[np.ndarray, Alarm]:
        """Judge a slide by all of its locations.

        Parameters
        ----------
        traits : array, shape (locations, traits)
            From `appearance`.
        name : str
            Of the slide, for the sentence.

        Returns
        -------
        inside : numpy.ndarray, shape (locations,), bool
            Locations like those of training; none where the slide as a whole alarms.
        Alarm
        """
        median = np.median(np.asarray(traits, np.float64), axis=0)
        alarm = self._alarm(median, name)
        if alarm.raised:
            return np.zeros(len(traits), bool), alarm
        return self.location_distance(traits) <= self.location_limit, alarm

    def _alarm(self, median: np.ndarray, name: str) -> Alarm:
        distance, gains = self.slide_distance(median), self.gains(median)
        best = int(gains.argmax())
        sections = self.facts["sections"]
        if gains[best] > self.gain_limit and distance - gains[best] <= NEAR * self.slide_limit:
            shift = SHIFTS[best]
            why = f"{name} looks as if {shift.looks_like}. Its predictions are not to be trusted as they are."
            return Alarm(True, shift.name, why, distance, self.slide_limit)
        if distance > self.slide_limit or gains[best] > self.gain_limit:
            why = (
                f"{name} does not look like the {sections} sections that the model has learnt from (distance "
                f"{distance:.0f}, {self.slide_limit:.0f} allowed), most in {self._most(median)}: another tissue, stain "
                "or scanner. Its predictions are not to be trusted."
            )
            return Alarm(True, "unlike", why, distance, self.slide_limit)
        why = f"{name} looks like the {sections} sections that the model has learnt from."
        return Alarm(False, "", why, distance, self.slide_limit)

    def _most(self, median: np.ndarray) -> str:
        """The trait that is furthest from the centre, by its own spread between sections, in words."""
        trait = TRAITS[int((np.abs(median - self.centre) / np.sqrt(np.diag(self.between))).argmax())]
        return _WORDS.get(trait, "how coarse or fine its texture is")

    def arrays(self) -> dict[str, np.ndarray]:
        """What is stored."""
        return {name: getattr(self, name) for name in ("centre", "between", "within", "moves")}

    def to_dict(self) -> dict[str, Any]:
        """What is stored as plain values."""
        names = ("slide_limit", "location_limit", "gain_limit", "facts")
        return {name: getattr(self, name) for name in names} | {"traits": list(TRAITS), "shifts": len(SHIFTS)}

    @classmethod
    def restore(cls, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> Domain | None:
        """The opposite of `arrays` and `to_dict`; None where this version looks at other traits or shifts."""
        if facts["traits"] != list(TRAITS) or facts["shifts"] != len(SHIFTS):
            return None
        limits = {name: facts[name] for name in ("slide_limit", "location_limit", "gain_limit", "facts")}
        return cls(**{name: arrays[name] for name in ("centre", "between", "within", "moves")}, **limits)


def fit_domain(
    traits: Sequence[np.ndarray], moves: Sequence[np.ndarray], unit_of: Sequence[str], unit: str = "patient"
) -> Domain:
    """Learn what training sections look like, and set the limits on validation ones.

    Parameters
    ----------
    traits : sequence of array, shape (locations, traits)
        One a section.
    moves : sequence of array, shape (shifts, traits)
        One a section, from `shifts.moves_of`.
    unit_of : sequence of str
        Patient (or section) of each; a section is held against those of other units only.
    unit : str
        What the units are, for the record.

    Returns
    -------
    Domain
    """
    move = np.mean(moves, axis=0)
    slides, locations, gains, weights = [], [], [], []
    for held in dict.fromkeys(unit_of):
        rest = [values for values, its in zip(traits, unit_of, strict=True) if its != held]
        if len(rest) < 2 or 2 * len(rest) <= len(traits):
            continue  # so few know much less than all will
        judge = Domain(*_moments(rest), move, np.inf, np.inf, np.inf, {})
        for values, its in zip(traits, unit_of, strict=True):
            if its == held:
                median = np.median(values, axis=0)
                slides.append(judge.slide_distance(median))
                gains.append(float(judge.gains(median).max()))
                locations.append(judge.location_distance(values))
                weights.append(np.full(len(values), 1 / len(values)))
    untried = len(slides) < FEWEST_VALIDATION
    slide = max([SLIDE_FLOOR * (UNTRIED if untried else 1.0), *(MARGIN * distance for distance in slides)])
    gain = max([SLIDE_FLOOR * UNTRIED if untried else 0.0, *gains])
    place = LOCATION_FLOOR
    if locations:
        place = max(place, _quantile(np.concatenate(locations), np.concatenate(weights), VALIDATION_INSIDE))
    facts = {"sections": len(traits), "units": len(set(unit_of)), "unit": unit, "validation_sections": len(slides)}
    return Domain(*_moments(traits), move, slide, place, gain, facts)


def _moments(traits: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre, covariance of a new section's median around it, covariance within sections."""
    medians = np.array([np.median(values, axis=0) for values in traits], np.float64)
    around = [np.asarray(values, np.float64) - middle for values, middle in zip(traits, medians, strict=True)]
    within = np.mean([values.T @ values / len(values) for values in around], axis=0) + 1e-6 * np.eye(len(TRAITS))
    centre = medians.mean(axis=0)
    allowed = within / 4 + 0.36 * np.outer(_STAIN, _STAIN) + 0.0004 * _SHARES
    scatter = (medians - centre).T @ (medians - centre) + PRIOR_SECTIONS * allowed
    between = scatter / (len(medians) - 1 + PRIOR_SECTIONS) * (1 + 1 / len(medians))
    return centre, between, within


def _distance(differences: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    return np.einsum("nt,nt->n", differences, np.linalg.solve(covariance, differences.T).T)


def _quantile(values: np.ndarray, weights: np.ndarray, level: float) -> float:
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(np.searchsorted(reached, level), len(values) - 1)])
