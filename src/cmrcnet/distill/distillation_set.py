"""What a student learns on: the locations of each slide, as its teacher sees them and as it sees them itself.

The measured spots of the bank's sections, a grid over the tissue of the same slides, and a grid over further slides,
which need no counts: an unlabelled place costs its encoding only. Spots and grid of one slide are two lessons, because
with a neighbourhood or section standardisation a location looks different among other locations, and `predict` meets
both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.errors import BadOption, TooFew
from cmrcnet.heads.pca import FeaturePCA, fit_pca
from cmrcnet.inference.location_features import LocationEncoder, LocationFeatures
from cmrcnet.models.trained_model import TrainedModel
from cmrcnet.readers.hest import PatchSlide
from cmrcnet.retrieval.bank import ReferenceBank
from cmrcnet.retrieval.store import BankSection, temporary_store
from cmrcnet.slides.query_grid import patch_grid
from cmrcnet.slides.section import Cohort, Section, Spots
from cmrcnet.slides.slide import Slide
from cmrcnet.slides.tissue_mask import find_tissue

if TYPE_CHECKING:
    from cmrcnet.storage.cache import TokenCache

SAMPLE = 4_096
"""Locations that the principal components of the student's features are found on, at most."""
_AT_ONCE = 1_024
"""Locations whose tokens are in memory together."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """Locations of one slide.

    Parameters
    ----------
    unit : str
        Name of the slide's first section, or of the slide; lessons of one unit are held in together.
    sections : tuple of str
        The bank's sections that were measured here: the spots' own one, or all on the slide under a grid. Their
        measured expression must not answer.
    spots : Spots or None
        The measured spots, where the locations are those.
    slide : Slide
    teacher_sees : numpy.ndarray, shape (locations, embedding + components), float32
    student_sees : numpy.ndarray, shape (locations, components), float32
        Reduced.
    """

    unit: str
    sections: tuple[str, ...]
    spots: Spots | None
    slide: Slide
    teacher_sees: np.ndarray
    student_sees: np.ndarray

    def __len__(self) -> int:
        return len(self.teacher_sees)


@dataclass(frozen=True, eq=False)
class _Laid:
    """Locations before they are looked at."""

    unit: str
    sections: tuple[str, ...]
    slide: Slide
    locations: Spots
    measured: bool


def gather_lessons(
    model: TrainedModel,
    bank: ReferenceBank,
    cohort: Cohort,
    slides: Sequence[Slide],
    encoder: LocationEncoder,
    *,
    grid_um: float,
    seed: int,
    cache: TokenCache | None,
) -> tuple[list[Lesson], FeaturePCA]:
    """Look at every location through both pairs of eyes.

    What is encoded lies in a temporary folder meanwhile; what stays in memory is a few hundred numbers a location.

    Parameters
    ----------
    model : TrainedModel
    bank : ReferenceBank
    cohort : Cohort
        That the bank was built from.
    slides : sequence of Slide
        Further slides.
    encoder : LocationEncoder
        The student's.
    grid_um : float
        Distance between the locations of the grids; 0: none on the slides of the bank.
    seed : int
    cache : TokenCache or None

    Returns
    -------
    lessons : list of Lesson
        Sorted by name, whatever the order of the cohort.
    reduction : FeaturePCA
        Of the student's features. It is found on pictures alone; no expression takes part.

    Raises
    ------
    BadOption
        The cohort is not the one that the bank was built from.
    """
    laid = _of_the_bank(bank, cohort, grid_um)
    laid += _of_slides(slides, grid_um, {each.slide.fingerprint() for each in laid})
    with temporary_store(cache) as folder:
        looked = []
        for number, each in enumerate(laid):
            features = LocationFeatures(encoder, each.slide, each.locations.centre_px, Path(folder) / str(number))
            features.encode(cache)
            looked.append(features)
        reduction = fit_pca(_sample(looked, [len(each.locations) for each in laid], seed), seed)
        lessons = []
        for each, features in zip(laid, looked, strict=True):
            blocks = [reduction.apply(features.take(rows)) for rows in _rows(len(each.locations))]
            teacher_sees = seen_by(LocationEncoder.of_model(model), each.slide, each.locations, cache)
            spots = each.locations if each.measured else None
            lessons.append(Lesson(each.unit, each.sections, spots, each.slide, teacher_sees, np.concatenate(blocks)))
    return lessons, reduction


def seen_by(encoder: LocationEncoder, slide: Slide, locations: Spots, cache: TokenCache | None) -> np.ndarray:
    """What a location encoder gives of all locations of a slide: (locations, width) float32.

    Parameters
    ----------
    encoder : LocationEncoder
    slide : Slide
    locations : Spots
    cache : TokenCache or None
    """
    with temporary_store(cache) as folder:
        features = LocationFeatures(encoder, slide, locations.centre_px, Path(folder) / "features")
        features.encode(cache)
        return np.concatenate([features.take(rows) for rows in _rows(len(locations))])


def _of_the_bank(bank: ReferenceBank, cohort: Cohort, grid_um: float) -> list[_Laid]:
    """The spots of each section; then a grid a slide, for one slide may bear several sections."""
    found: list[_Laid] = []
    on_slide: dict[str, list[_Laid]] = {}
    for part in sorted(bank.entries, key=lambda part: part.section):
        if part.section not in cohort.sections:
            want = f"the cohort that the bank was built from; it has no section {part.section}"
            raise BadOption("cohort", cohort.name, want)
        section = cohort.read(part.section)
        _require_the_same(section, part, cohort.name)
        others = on_slide.setdefault(section.slide.fingerprint(), [])
        unit = others[0].unit if others else section.name
        others.append(_Laid(unit, (section.name,), section.slide, section.spots, True))
        found.append(others[-1])
    for spots in on_slide.values() if grid_um > 0 else ():
        slide, sections = spots[0].slide, tuple(each.sections[0] for each in spots)
        grid = None if isinstance(slide, PatchSlide) else _grid(slide, grid_um)  # nothing is known between patches
        if grid is not None:
            found.append(_Laid(spots[0].unit, sections, slide, grid, False))
    return found


def _of_slides(slides: Sequence[Slide], grid_um: float, known: set[str]) -> list[_Laid]:
    """A grid on every further slide; those of the bank have theirs."""
    if slides and not grid_um > 0:
        raise BadOption("grid_um", grid_um, want="micrometres above 0, for slides without spots")
    named = {slide.fingerprint(): slide for slide in slides if slide.fingerprint() not in known}
    in_order = [named[name] for name in sorted(named, key=lambda name: (named[name].name, name))]
    return [
        _Laid(slide.name, (), slide, patch_grid(slide, find_tissue(slide), pitch_um=grid_um), False)
        for slide in in_order
    ]


def _grid(slide: Slide, grid_um: float) -> Spots | None:
    try:
        return patch_grid(slide, find_tissue(slide), pitch_um=grid_um)
    except TooFew:  # its spots are enough
        return None


def _require_the_same(section: Section, part: BankSection, cohort: str) -> None:
    """Refuse a section whose spots are not those of the bank: `BadOption`."""
    same = list(section.spots.barcodes) == list(part.spots["barcode"]) and np.allclose(
        section.spots.centre_px, part.spots[["x", "y"]].to_numpy(np.float64)
    )
    if not same:
        want = f"the cohort that the bank was built from; section {part.section} has other spots there"
        raise BadOption("cohort", cohort, want)


def _rows(locations: int) -> Iterator[slice]:
    for start in range(0, locations, _AT_ONCE):
        yield slice(start, min(start + _AT_ONCE, locations))


def _sample(looked: Sequence[LocationFeatures], sizes: Sequence[int], seed: int) -> np.ndarray:
    """Features of some locations of all lessons together, in their order."""
    total = sum(sizes)
    chosen = np.zeros(total, bool)
    chosen[np.random.default_rng(seed).choice(total, min(SAMPLE, total), replace=False)] = True
    found, before = [], 0
    for features, size in zip(looked, sizes, strict=True):
        for rows in _rows(size):
            wanted = chosen[before + rows.start : before + rows.stop]
            if wanted.any():
                found.append(features.take(rows)[wanted])
        before += size
    return np.concatenate(found)
