"""What a model and its bank say at the locations of a lesson: what `predict` would say, but that no spot finds itself.

A measured spot of the bank is its own nearest neighbour. A student that learnt from such answers would learn to
recite them. So the teacher of a lesson is the bank WITHOUT the sections that were measured there. The network, ridge
and kernel parts of the model were fitted on all training spots and know them; that is said in the student's card.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cmrcnet.distill.distillation_set import Lesson
from cmrcnet.heads.gene_decoder import GeneBasis, basis_of_decoder, basis_of_predictions
from cmrcnet.inference.predictor import average_expression, component_scores, split_features
from cmrcnet.models.trained_model import TrainedModel
from cmrcnet.retrieval.bank import ReferenceBank
from cmrcnet.search.neighbours import Neighbours

SAMPLE = 2_048
"""Locations whose predictions the gene basis of an averaging teacher is found on, at most."""
_NUMBERS_AT_ONCE = 1 << 22
"""Predicted values that are laid out together, about."""


def without(bank: ReferenceBank, sections: Sequence[str]) -> ReferenceBank:
    """The bank without some sections, searched exactly; the whole bank where it holds none of them, or nothing else.

    Parameters
    ----------
    bank : ReferenceBank
    sections : sequence of str
    """
    others = tuple(part for part in bank.entries if part.section not in sections)
    if not others or len(others) == len(bank.entries):
        return bank
    return ReferenceBank(others, bank.model_fingerprint, bank.target_sum, bank.name)


@dataclass(frozen=True, eq=False)
class Taught:
    """What a teacher says of some lessons.

    Parameters
    ----------
    genes : tuple of str
    basis : GeneBasis
        Of these genes.
    scores : list of numpy.ndarray, shape (locations, rank), float32
        In this basis, of each lesson.
    """

    genes: tuple[str, ...]
    basis: GeneBasis
    scores: list[np.ndarray]


def teach(model: TrainedModel, bank: ReferenceBank, lessons: Sequence[Lesson], seed: int) -> Taught:
    """Predict every lesson.

    Parameters
    ----------
    model : TrainedModel
    bank : ReferenceBank
        Made by this model. Its genes and levels are the student's.
    lessons : sequence of Lesson
    seed : int
        Of the locations that the gene basis is found on.

    Returns
    -------
    Taught
    """
    found = [_Answers(model, without(bank, lesson.sections), lesson, bank.genes) for lesson in lessons]
    if model.head is not None and bank.gene_decoder is not None:
        covariance, variance_rescaling = model.head.ensemble.covariance, model.config.head.variance_rescaling
        basis, turn = basis_of_decoder(bank.gene_decoder, covariance, variance_rescaling)
        return Taught(bank.genes, basis, [(each.component_scores() @ turn).astype(np.float32) for each in found])
    sizes = [len(lesson) for lesson in lessons]
    chosen = np.sort(np.random.default_rng(seed).choice(sum(sizes), min(SAMPLE, sum(sizes)), replace=False))
    starts = np.cumsum([0, *sizes])
    rows = [chosen[(chosen >= start) & (chosen < stop)] - start for start, stop in pairwise(starts)]

    def sampled() -> Iterator[tuple[slice, np.ndarray]]:
        for genes in _gene_slices(len(bank.genes), len(chosen)):
            yield (
                genes,
                np.concatenate([each.expression(genes, which) for each, which in zip(found, rows, strict=True)]),
            )

    basis = basis_of_predictions(sampled, len(chosen), len(bank.genes))
    return Taught(bank.genes, basis, [basis.scores(each.blocks(), len(each.lesson)) for each in found])


class _Answers:
    """A teacher before one lesson: its neighbours are found once."""

    def __init__(self, model: TrainedModel, bank: ReferenceBank, lesson: Lesson, genes: Sequence[str]) -> None:
        self.model, self.bank, self.lesson = model, bank, lesson
        self.config = model.config.head.within(len(bank))
        queries, self.reduced = split_features(lesson.teacher_sees, model)
        self.neighbours = bank.searcher().nearest(queries, self.config.k)
        column = {gene: number for number, gene in enumerate(bank.genes)}
        self.column_of = np.array([column.get(gene, -1) for gene in genes])

    def component_scores(self) -> np.ndarray:
        """Of all locations: (locations, components) float32."""
        return component_scores(self.model, self.bank, self.config, self.neighbours, self.reduced)[0]

    def expression(self, genes: slice, rows: np.ndarray | None = None) -> np.ndarray:
        """Some genes at some locations, averaged; NaN where nobody measured them: (locations, genes) float32."""
        near = self.neighbours
        if rows is not None:
            near = Neighbours(near.ids[rows], near.similarity[rows])
        columns = self.column_of[genes]
        known = columns >= 0
        found = np.full((len(near.ids), len(columns)), np.nan, np.float32)
        if known.any() and len(found):
            found[:, known] = average_expression(near, self.bank, self.config, columns[known])[0]
        return found

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """All genes at all locations, some genes at a time."""
        for genes in _gene_slices(len(self.column_of), len(self.lesson)):
            yield genes, self.expression(genes)


def _gene_slices(genes: int, locations: int) -> Iterator[slice]:
    step = max(16, _NUMBERS_AT_ONCE // max(locations, 1))
    for start in range(0, genes, step):
        yield slice(start, min(start + step, genes))
