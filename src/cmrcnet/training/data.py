"""Everything that a training learns from, collected in one pass over the sections, and its batches.

Each section is read once. Its counts stay in memory, as one sparse matrix, until panel, components and scored genes
are chosen; then it becomes rows: tokens or patches mapped from disk, beside sparse expression in the panel's order. All
that a later step needs of the section's counts or pixels (weights of the spots, a sample of expression to calibrate
on, image statistics) is computed here too, so that no later step reads a section or slide again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy import sparse

from cmrcnet.config import Config
from cmrcnet.errors import BadOption, ShapeMismatch, TooFew
from cmrcnet.features.device import read_ahead
from cmrcnet.features.extract import cached_patches, extract, extract_with, features_key, location_key
from cmrcnet.features.spec import PERTURBED, STATISTICS, FeatureSpec
from cmrcnet.features.tokens import Standardizer
from cmrcnet.genes.components import ExpressionComponents, find_components
from cmrcnet.genes.gene_sets import GenePanel, choose_panel, gene_sets
from cmrcnet.genes.scaling import Scaling
from cmrcnet.models.image_encoder import ROTATIONS_FIRST, ImageEncoder
from cmrcnet.slides.patches import crop_scales
from cmrcnet.slides.section import Cohort, Section
from cmrcnet.slides.slide import given_features
from cmrcnet.storage.arrays import MappedArray
from cmrcnet.storage.cache import TokenCache
from cmrcnet.storage.hashing import fingerprint
from cmrcnet.uncertainty.ood import (
    PERTURBED_LOCATIONS,
    PERTURBED_SCALES,
    evenly,
    image_statistics,
    perturbation_effects,
    perturbed_statistics,
)

CALIBRATION_SPOTS = 10_000
"""Spots that calibrate, at most, evenly picked: quantiles and correlations gain little from more."""
STATISTICS_LOCATIONS = 500
"""Locations of a section that its image statistics are taken from, at most."""

_CHUNK = 64


@dataclass(frozen=True, eq=False)
class ExpressionSample:
    """Expression of evenly picked training spots, over all genes that any section lists."""

    rows: np.ndarray
    """(spots,): rows of the training data, ascending."""
    genes: tuple[str, ...]
    expression: sparse.csc_matrix
    """(spots, genes) float32."""
    measured: np.ndarray
    """(sections, genes) bool: whether a section measured a gene; where it did not, its expression is stored as 0."""

    @classmethod
    def of(cls, sections: Sequence[Section], scaling: Scaling) -> ExpressionSample:
        """Pick at most `CALIBRATION_SPOTS` of all spots."""
        first = np.cumsum([0, *(len(section.spots) for section in sections)])
        rows = np.unique(np.linspace(0, first[-1] - 1, min(CALIBRATION_SPOTS, first[-1])).astype(np.int64))
        column_of: dict[str, int] = {}
        for section in sections:
            for gene in section.genes:
                column_of.setdefault(gene, len(column_of))
        parts = []
        for number, section in enumerate(sections):
            mine = rows[(rows >= first[number]) & (rows < first[number + 1])] - first[number]
            kept = scaling.expression(section)[mine].tocoo()
            columns = np.array([column_of[gene] for gene in section.genes])[kept.col]
            parts.append(sparse.coo_matrix((kept.data, (kept.row, columns)), shape=(len(mine), len(column_of))))
        measured = []
        for section in sections:
            listed = frozenset(section.genes)
            measured.append([section.absent_genes == "zero" or gene in listed for gene in column_of])
        expression = sparse.csc_matrix(sparse.vstack(parts, format="csc"), dtype=np.float32)
        return cls(rows, tuple(column_of), expression, np.array(measured))


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Input and expression of every training spot, section after section.

    A spot's id is its row in that order. Inputs stay on disk (memory-mapped); expression is sparse.
    """

    sections: tuple[str, ...]
    patients: tuple[str, ...]
    """One entry a section."""
    inputs: tuple[np.ndarray, ...]
    """One array a section: tokens (spots, tokens, dim) float16 or float32, or patches (spots, px, px, 3) uint8."""
    symmetries: int = field(default=1, kw_only=True)
    """Symmetries by which patches were turned before they were encoded, in the order of `ROTATIONS_FIRST`; their tokens
    follow each other in `inputs`."""
    expression: sparse.csr_matrix
    """(spots, genes) float32, what the gene encoder sees: log-normalised expression in the panel's order, or the
    leading columns of `scores`."""
    scored: sparse.csr_matrix | None = None
    """(spots, scored genes) float32: log-normalised expression of the genes whose prediction chooses the epoch."""
    patients_within: tuple[str, ...] = ()
    """Patients of the rows of all sections (`Section.patients_within`)."""
    contents: tuple[str, ...] = ()
    """Fingerprint of each section's picture and locations."""
    scores: np.ndarray | None = None
    """(spots, rank) float32: expression scores, when the config works on components."""
    weights: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    """(spots,) float32: weight of each spot where heads are fitted; 1 for all when left out."""
    panel: GenePanel | None = None
    components: ExpressionComponents | None = None
    image_statistics: tuple[np.ndarray, ...] = ()
    """(locations, statistics), one a section, for the out-of-distribution detector; empty when not collected."""
    perturbation_effects: tuple[np.ndarray, ...] = ()
    """(perturbations, statistics), one a section: how each known fault of an image shifts the median statistics."""
    sample: ExpressionSample | None = None
    """What intervals and gene reliability are calibrated on; None where no section can be held out."""
    section_of: np.ndarray = field(init=False)
    """(spots,) int64: index of each spot's section."""
    first: np.ndarray = field(init=False)
    """(sections,) int64: id of each section's first spot."""

    def __post_init__(self) -> None:
        lengths = np.array([len(array) for array in self.inputs], np.int64)
        if self.expression.get_shape()[0] != lengths.sum():
            raise ShapeMismatch("expression", want=(int(lengths.sum()), "genes"), got=self.expression.get_shape())
        different = {(array.shape[1:], array.dtype.str) for array in self.inputs}
        if len(different) != 1:
            raise ShapeMismatch("inputs of the sections", want="one shape and type", got=sorted(map(str, different)))
        # Plain views: indexing a numpy.memmap makes a new memmap object each time, which is slow.
        object.__setattr__(self, "inputs", tuple(np.asarray(array) for array in self.inputs))
        if len(self.weights) == 0:
            object.__setattr__(self, "weights", np.ones(lengths.sum(), np.float32))
        object.__setattr__(self, "section_of", np.repeat(np.arange(len(lengths)), lengths))
        object.__setattr__(self, "first", np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64))

    @classmethod
    def collect(
        cls,
        cohort: Cohort,
        config: Config,
        encoder: ImageEncoder,
        cache: TokenCache,
        *,
        panel: GenePanel | None = None,
        limits: bool = False,
    ) -> TrainingData:
        """Read every section once and compute all that a training needs of it.

        Sections are taken in the order of their names, so that the rows of a cohort file can stand in any. Counts come
        first and pixels second, so that genes that do not fit are reported before anything is encoded.

        Parameters
        ----------
        encoder : ImageEncoder
            Its tokens are the inputs; patches where it is trained; where its last blocks are, what is below them gives.
        panel : GenePanel, optional
            Genes of the gene encoder; chosen from the sections when left out.
        limits : bool
            Also collect what `calibrate` needs: image statistics and a sample of expression.
        """
        if len(cohort) == 0:
            raise TooFew("training sections", 0, 1, "give a cohort with at least one section")
        cohort = cohort.in_order()
        sections = tuple(cohort)
        read = Cohort.of(sections, cohort.name)
        if any(section.spots.members is not None for section in sections) and not config.features.scales_um:
            want = "one scale or more: regions and slides have the mean of the features of their locations"
            raise BadOption("features.scales_um", "none", want=want)
        panel = choose_panel(read, config.panel) if panel is None else panel
        expression = [panel.select(section) for section in sections]
        components = scored = scores = sample = None
        weights = np.empty(0, np.float32)
        if config.target.ranks:
            components = find_components(expression, max(*config.target.ranks, config.target.gene_rank))
            by_section = [components.scores(selected) for selected in expression]
            expression = [sparse.csr_matrix(each[:, : config.target.gene_rank]) for each in by_section]
            scores = np.concatenate(by_section)
        if components is not None or (config.train.validation != "none" and config.train.select_by == "pearson"):
            genes = gene_sets(read, panel.scaling, config.evaluation.set_size, svg=False)["HVG"]
            chooses = GenePanel(genes, panel.scaling, {"kind": "HVG of the training sections"})
            stacked = sparse.vstack([chooses.select(section) for section in sections], format="csr")
            scored = sparse.csr_matrix(stacked, dtype=np.float32)
        if config.target.depth_weights:
            weights = np.concatenate([panel.scaling.spot_weights(section) for section in sections])
        if limits and components is not None and len(sections) > 1:
            sample = ExpressionSample.of(sections, panel.scaling)

        below, symmetries = None, 1
        if config.model.trained_blocks is not None:
            below = encoder.below(config.model.trained_blocks, config.patch.size_px)
            symmetries = len(ROTATIONS_FIRST) if config.train.augment else 1
        inputs, contents, statistics, effects = [], [], [], []
        for section in sections:
            slide, centre_px = section.slide, section.spots.location_px
            some = evenly(len(centre_px), STATISTICS_LOCATIONS)
            if config.model.train_encoder:
                if below is None:
                    key = location_key(slide, centre_px, config.patch)
                    inputs.append(cached_patches(cache, slide, centre_px, config.patch))
                else:
                    spec = replace(FeatureSpec.of(config, below), augmentations=symmetries)
                    key = features_key(below, slide, centre_px, spec)
                    inputs.append(extract(below, slide, centre_px, spec, cache=cache))
                if limits:
                    statistics.append(image_statistics(slide, centre_px[some]))
                    few = centre_px[evenly(len(centre_px), PERTURBED_LOCATIONS)]
                    effects.append(
                        perturbation_effects(perturbed_statistics(crop_scales(slide, few, PERTURBED_SCALES)))
                    )
            else:
                layers = (STATISTICS, PERTURBED) if limits else ()
                spec = FeatureSpec.of(config, encoder)
                key = features_key(encoder, slide, centre_px, spec)
                tokens, also = extract_with(encoder, slide, centre_px, spec, layers, cache=cache)
                inputs.append(section.spots.pooled(tokens))
                if limits:
                    statistics.append(also[STATISTICS][some])
                    effects.append(perturbation_effects(also[PERTURBED]))
            contents.append(fingerprint(key, given_features(slide), section.spots.first_location))
            close = getattr(slide, "close", None)  # a slide in memory has nothing to close
            if close is not None:
                close()
        return cls(
            sections=cohort.sections,
            patients=tuple(section.patient for section in sections),
            patients_within=tuple(dict.fromkeys(name for section in sections for name in section.patients_within)),
            inputs=tuple(inputs),
            symmetries=symmetries,
            expression=sparse.csr_matrix(sparse.vstack(expression, format="csr"), dtype=np.float32),
            scored=scored,
            contents=tuple(contents),
            scores=scores,
            weights=weights,
            panel=panel,
            components=components,
            image_statistics=tuple(statistics),
            perturbation_effects=tuple(effects),
            sample=sample,
        )

    def __len__(self) -> int:
        return len(self.section_of)

    def __getstate__(self) -> dict[str, Any]:
        """All but mapped inputs, of which the place is sent to a process of this machine."""
        return {**self.__dict__, "inputs": tuple(MappedArray.of(array) for array in self.inputs)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        inputs = [each.open() if isinstance(each, MappedArray) else each for each in state["inputs"]]
        self.__dict__.update(state, inputs=tuple(np.asarray(array) for array in inputs))

    @property
    def n_genes(self) -> int:
        """Genes, or expression components, that the gene encoder sees."""
        return self.expression.get_shape()[1]

    def gather(self, ids: np.ndarray, ways: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and expression of some spots, as stored: tokens float16 or float32, patches uint8.

        Where patches were turned before they were encoded, `ways` (batch,) chooses those of each spot; upright if None.

        It computes with NumPy alone, so that a thread can prepare batches: torch's own threads, woken from two sides
        at once, wait for each other. The ids may have any order and repeat; the disk is read in ascending order. Gives
        (batch, tokens, dim) or (batch, px, px, 3), and (batch, genes) float32.
        """
        ids = np.asarray(ids, np.int64)
        if ids.ndim != 1 or (ids.size and not (ids.min() >= 0 and ids.max() < len(self))):
            raise BadOption("ids", ids, want=f"a list of spots, 0 to {len(self) - 1}")
        model = self.inputs[0]
        height = model.shape[1] // self.symmetries  # of a patch, or tokens
        gathered = np.empty((len(ids), height, *model.shape[2:]), model.dtype)
        sections, rows = self.section_of[ids], ids - self.first[self.section_of[ids]]
        start = np.zeros(len(ids), np.int64)
        if ways is not None and self.symmetries > 1:
            start = np.argsort(ROTATIONS_FIRST)[ways] * height
        for position in np.argsort(ids, kind="stable").tolist():
            whole = self.inputs[sections[position]][rows[position]]
            gathered[position] = whole[start[position] : start[position] + height]
        matrix, dense = self.expression, np.zeros((len(ids), self.n_genes), np.float32)
        for position, row in enumerate(ids.tolist()):
            entries = slice(matrix.indptr[row], matrix.indptr[row + 1])
            dense[position, matrix.indices[entries]] = matrix.data[entries]
        return gathered, dense

    def inputs_of(self, ids: np.ndarray) -> np.ndarray:
        """The inputs of these spots, in order, as stored. All at once: for pooled scales, which are small."""
        return np.stack([self.inputs[self.section_of[i]][i - self.first[self.section_of[i]]] for i in ids.tolist()])

    def groups(self, group_by: str) -> tuple[np.ndarray, str]:
        """The group of each spot, which a split keeps together, and what a group is: "patient" or "section".

        With a single patient, sections are the groups whatever `group_by` asks for.
        """
        kind = "section" if group_by == "section" or len(set(self.patients)) < 2 else "patient"
        return np.array(self.sections if kind == "section" else self.patients)[self.section_of], kind

    def token_statistics(self, ids: np.ndarray, chunk: int = _CHUNK) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation (dim,) of each feature over all tokens of these spots; 1 where it never varies.

        One pass in float64, `chunk` spots in memory together.
        """
        ordered, dim = np.sort(ids), self.inputs[0].shape[-1]
        starts = range(0, len(ordered), chunk)
        found = Standardizer.fit(self.gather(ordered[i : i + chunk])[0].reshape(-1, dim) for i in starts)
        varies = found.deviation > 1e-6 * np.maximum(np.abs(found.mean), 1e-3)
        deviation = np.where(varies, found.deviation, 1.0)
        return torch.from_numpy(found.mean).float(), torch.from_numpy(deviation).float()

    def fingerprint(self) -> str:
        """Name of all that is learnt from: sections, pictures, locations, expression."""
        matrix = self.expression
        return fingerprint(
            list(self.sections), list(self.patients), list(self.contents), matrix.indptr, matrix.indices, matrix.data
        )


def as_tensors(inputs: np.ndarray, expression: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """What `TrainingData.gather` gives, as tensors; nothing is copied but half precision, which becomes float32.

    Patches stay uint8, a quarter of the size.
    """
    tensor = torch.from_numpy(inputs)
    return tensor.float() if tensor.is_floating_point() else tensor, torch.from_numpy(expression)


def steps_in(spots: int, batch_size: int) -> int:
    """Batches an epoch."""
    return max(1, math.ceil(spots / batch_size))


def epoch_batches(
    data: TrainingData, ids: np.ndarray, batch_size: int, rng: np.random.Generator, rank: int = 0, ranks: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Every spot of `ids` once, in random order, gathered ahead by a thread.

    The spots are shared out evenly over the least number of batches that holds them: 100 spots at batch size 64 make
    two batches of 50, not one of 64 and one of 36, because the number of candidates is part of the contrastive loss.

    Parameters
    ----------
    rank, ranks : int
        Give only this rank's part of each batch, out of so many that are as even as they can be.

    Yields
    ------
    inputs, expression : numpy.ndarray
        See `TrainingData.gather`.
    ways : numpy.ndarray, shape (batch,)
        Which of the eight symmetries of a square (D4) each sample is augmented by; 0 leaves it as it is.
    """
    shuffled = rng.permutation(np.asarray(ids))
    ways = rng.integers(8, size=len(shuffled))
    batches = np.array_split(np.arange(len(shuffled)), steps_in(len(shuffled), batch_size))
    parts = [np.array_split(batch, ranks)[rank] for batch in batches]
    return read_ahead((*data.gather(shuffled[part], ways[part]), ways[part]) for part in parts)
