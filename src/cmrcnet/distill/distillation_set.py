"""What a student learns from: locations on slides, with teacher features, student features and teacher predictions.

Locations are the measured spots of the bank's sections, a grid over the tissue of the same slides, and a grid over
further slides, which need no counts. Spots and grid of one slide are two sets, because neighbourhood features and
section standardisation depend on the other locations, and `predict` is used on both kinds.

The teacher predicts a set with the bank WITHOUT the sections that were measured there: otherwise each spot would be its
own nearest neighbour, and the student would learn to reproduce measurements. The network, ridge and kernel of the model
were fitted on all training spots; the student report says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.errors import BadOption, TooFew
from cmrcnet.heads.gene_decoder import GeneBasis, basis_of_decoder, basis_of_predictions
from cmrcnet.heads.pca import FeaturePCA, fit_pca
from cmrcnet.inference.location_features import LocationEncoder, LocationFeatures, split_features
from cmrcnet.inference.predictor import average_expression, component_scores
from cmrcnet.models.trained_model import TrainedModel
from cmrcnet.readers.hest import PatchSlide
from cmrcnet.retrieval.bank import ReferenceBank
from cmrcnet.retrieval.store import temporary_store
from cmrcnet.search.exact import Neighbours
from cmrcnet.slides.section import Cohort, Spots
from cmrcnet.slides.slide import Slide
from cmrcnet.slides.tissue import find_tissue, patch_grid

if TYPE_CHECKING:
    from cmrcnet.storage.cache import TokenCache

PCA_SAMPLE = 4_096
"""Locations that the PCA of the student's features is fitted on, at most."""
BASIS_SAMPLE = 2_048
"""Locations whose predictions the gene basis of an averaging teacher is fitted on, at most."""
_LOCATIONS_AT_ONCE = 1_024
_VALUES_AT_ONCE = 1 << 22


@dataclass(frozen=True, eq=False)
class _Locations:
    """Locations of one slide, before their features are extracted."""

    group: str
    """Name of the slide's first section, or of the slide; sets of one group are left out for validation together."""
    sections: tuple[str, ...]
    """Sections of the bank that were measured here: that of the spots, or all on the slide of a grid. The teacher
    predicts this set without them."""
    slide: Slide
    spots: Spots
    measured: bool
    """Measured spots; else a grid."""

    def __len__(self) -> int:
        return len(self.spots)


@dataclass(frozen=True, eq=False)
class DistillationSet(_Locations):
    """Locations of one slide, with their features."""

    teacher_features: np.ndarray
    """(locations, embedding + components) float32: embedding and inputs of the teacher's heads."""
    student_features: np.ndarray
    """(locations, components) float32: principal components of the student's features."""


def make_distillation_sets(
    model: TrainedModel,
    bank: ReferenceBank,
    cohort: Cohort,
    slides: Sequence[Slide],
    encoder: LocationEncoder,
    *,
    grid_um: float,
    seed: int,
    cache: TokenCache | None,
) -> tuple[list[DistillationSet], FeaturePCA]:
    """Extract the features of teacher and student at every location.

    Features that are not reduced yet are kept in a temporary folder, so that memory holds a few hundred numbers per
    location.

    `cohort` is the one that the bank was built from (else `BadOption`), `slides` are further slides, `encoder` is that
    of the student; `grid_um` is the pitch of the grids, 0 for no grid on the slides of the bank. Sets are sorted by
    name, whatever the order of the cohort. The PCA of the student's features is fitted on images, without expression.
    """
    located = _locations_of_bank(bank, cohort, grid_um)
    located += _locations_of_slides(slides, grid_um, {each.slide.fingerprint() for each in located})
    with temporary_store(cache) as folder:
        raw = []
        for number, each in enumerate(located):
            features = LocationFeatures(encoder, each.slide, each.spots, Path(folder) / str(number))
            features.encode(cache)
            raw.append(features)
        pca = fit_pca(_sample(raw, [len(each) for each in located], seed), seed)
        sets = []
        for each, features in zip(located, raw, strict=True):
            own = np.concatenate([pca.apply(features.take(rows)) for rows in _slices(len(each), _LOCATIONS_AT_ONCE)])
            teacher = features_at(LocationEncoder.of_model(model), each.slide, each.spots, cache)
            sets.append(DistillationSet(**vars(each), teacher_features=teacher, student_features=own))
    return sets, pca


def features_at(encoder: LocationEncoder, slide: Slide, locations: Spots, cache: TokenCache | None) -> np.ndarray:
    """Features of all locations of a slide, (locations, width) float32; encoded in memory where there is no cache."""
    with nullcontext() if cache is None else temporary_store(cache) as folder:
        features = LocationFeatures(encoder, slide, locations, None if folder is None else Path(folder))
        features.encode(cache)
        return np.concatenate([features.take(rows) for rows in _slices(len(locations), _LOCATIONS_AT_ONCE)])


def _locations_of_bank(bank: ReferenceBank, cohort: Cohort, grid_um: float) -> list[_Locations]:
    """The spots of each section, then one grid per slide: a slide can bear several sections."""
    found: list[_Locations] = []
    on_slide: dict[str, list[_Locations]] = {}
    for part in sorted(bank.entries, key=lambda part: part.section):
        want = "the cohort that the bank was built from"
        if part.section not in cohort.sections:
            raise BadOption("cohort", cohort.name, f"{want}; it has no section {part.section}")
        section = cohort.read(part.section)
        same_names = list(section.spots.barcodes) == list(part.spots["barcode"])
        if not (same_names and np.allclose(section.spots.centre_px, part.spots[["x", "y"]].to_numpy(np.float64))):
            raise BadOption("cohort", cohort.name, f"{want}; section {part.section} has other spots there")
        others = on_slide.setdefault(section.slide.fingerprint(), [])
        group = others[0].group if others else section.name
        others.append(_Locations(group, (section.name,), section.slide, section.spots, True))
        found.append(others[-1])
    for spots in on_slide.values() if grid_um > 0 else ():
        slide, sections = spots[0].slide, tuple(each.sections[0] for each in spots)
        if isinstance(slide, PatchSlide):
            continue  # there is no image between its patches
        try:
            grid = patch_grid(slide, find_tissue(slide), pitch_um=grid_um)
        except TooFew:  # no tissue was found; the spots remain
            continue
        if len(grid) == 1:  # which cannot be standardised within itself
            continue
        found.append(_Locations(spots[0].group, sections, slide, grid, False))
    return found


def _locations_of_slides(slides: Sequence[Slide], grid_um: float, known: set[str]) -> list[_Locations]:
    """A grid on every further slide that is not among the slides of the bank."""
    if slides and not grid_um > 0:
        raise BadOption("grid_um", grid_um, want="micrometres above 0, for slides without spots")
    named = {slide.fingerprint(): slide for slide in slides if slide.fingerprint() not in known}
    in_order = [named[name] for name in sorted(named, key=lambda name: (named[name].name, name))]
    return [
        _Locations(slide.name, (), slide, patch_grid(slide, find_tissue(slide), pitch_um=grid_um), False)
        for slide in in_order
    ]


def _slices(count: int, step: int) -> Iterator[slice]:
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _sample(raw: Sequence[LocationFeatures], sizes: Sequence[int], seed: int) -> np.ndarray:
    """Features of a random sample of the locations of all sets together, in their order."""
    total = sum(sizes)
    chosen = np.zeros(total, bool)
    chosen[np.random.default_rng(seed).choice(total, min(PCA_SAMPLE, total), replace=False)] = True
    found, before = [], 0
    for features, size in zip(raw, sizes, strict=True):
        for rows in _slices(size, _LOCATIONS_AT_ONCE):
            wanted = chosen[before + rows.start : before + rows.stop]
            if wanted.any():
                found.append(features.take(rows)[wanted])
        before += size
    return np.concatenate(found)


def bank_without(bank: ReferenceBank, sections: Sequence[str]) -> ReferenceBank:
    """Remove sections from a bank in memory; the result is searched exactly.

    The whole bank is returned when it holds none of the sections, or nothing else.
    """
    others = tuple(part for part in bank.entries if part.section not in sections)
    if not others or len(others) == len(bank.entries):
        return bank
    return ReferenceBank(others, bank.model_fingerprint, bank.scaling, bank.name)


@dataclass(frozen=True, eq=False)
class TeacherOutputs:
    """Predictions of a teacher on distillation sets, as scores in a gene basis."""

    genes: tuple[str, ...]
    """All genes of the bank."""
    basis: GeneBasis
    scores: list[np.ndarray]
    """(locations, rank) float32, of each set."""


def teacher_outputs(
    model: TrainedModel, bank: ReferenceBank, sets: Sequence[DistillationSet], seed: int
) -> TeacherOutputs:
    """Predict every set with the model and the bank without the set's sections; all genes of the bank.

    `seed` draws the locations that the gene basis of an averaging teacher is fitted on.
    """
    teachers = [_Teacher(model, bank_without(bank, each.sections), each, bank.genes) for each in sets]
    if model.head is not None and bank.gene_decoder is not None:
        covariance, variance_rescaling = model.head.ensemble.covariance, model.config.head.variance_rescaling
        basis, rotation = basis_of_decoder(bank.gene_decoder, covariance, variance_rescaling)
        scores = [(each.component_scores() @ rotation).astype(np.float32) for each in teachers]
        return TeacherOutputs(bank.genes, basis, scores)
    sizes = [len(each) for each in sets]
    chosen = np.sort(np.random.default_rng(seed).choice(sum(sizes), min(BASIS_SAMPLE, sum(sizes)), replace=False))
    starts = np.cumsum([0, *sizes])
    rows = [chosen[(chosen >= start) & (chosen < stop)] - start for start, stop in pairwise(starts)]

    def sampled() -> Iterator[tuple[slice, np.ndarray]]:
        for genes in _slices(len(bank.genes), max(16, _VALUES_AT_ONCE // max(len(chosen), 1))):
            found = [each.expression(genes, which) for each, which in zip(teachers, rows, strict=True)]
            yield genes, np.concatenate(found)

    basis = basis_of_predictions(sampled, len(chosen), len(bank.genes))
    scores = [basis.scores(teacher.gene_chunks(), size) for teacher, size in zip(teachers, sizes, strict=True)]
    return TeacherOutputs(bank.genes, basis, scores)


class _Teacher:
    """Model and bank on one distillation set; the nearest neighbours are searched once."""

    def __init__(self, model: TrainedModel, bank: ReferenceBank, given: DistillationSet, genes: Sequence[str]) -> None:
        self.model, self.bank = model, bank
        self.config = model.config.head.within(len(bank))
        queries, self.head_inputs = split_features(given.teacher_features, model)
        self.neighbours = bank.searcher().nearest(queries, self.config.k)
        column = {gene: number for number, gene in enumerate(bank.genes)}
        self.column_of = np.array([column.get(gene, -1) for gene in genes])

    def component_scores(self) -> np.ndarray:
        """Expression component scores of all locations: (locations, components) float32."""
        assert self.head_inputs is not None
        return component_scores(self.model, self.bank, self.config, self.neighbours, self.head_inputs)[0]

    def expression(self, genes: slice, rows: np.ndarray | None = None) -> np.ndarray:
        """Average the neighbours' expression: (locations, genes) float32, NaN for genes that none of them measured."""
        near = self.neighbours
        if rows is not None:
            near = Neighbours(near.ids[rows], near.similarity[rows])
        columns = self.column_of[genes]
        known = columns >= 0
        found = np.full((len(near.ids), len(columns)), np.nan, np.float32)
        if known.any() and len(found):
            found[:, known] = average_expression(near, self.bank, self.config, columns[known])[0]
        return found

    def gene_chunks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Expression of all locations, some genes at a time."""
        for genes in _slices(len(self.column_of), max(16, _VALUES_AT_ONCE // max(len(self.neighbours.ids), 1))):
            yield genes, self.expression(genes)
