"""Choosing a option without the test section: each training unit is held in once, and the HVG Pearson there decides."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np

from cmrcnet.evaluation.methods.method import TrainingData
from cmrcnet.evaluation.metrics.gene_metrics import over_genes
from cmrcnet.genes.spatial_stats import pearson_per_gene

Candidate = TypeVar("Candidate", bound=Hashable)


def hvg_of(training: TrainingData) -> np.ndarray:
    """Log-normalised expression of the training HVG at every training spot: (spots, HVG) float32."""
    column = {gene: i for i, gene in enumerate(training.genes)}
    return np.asarray(training.expression[:, [column[gene] for gene in training.sets["HVG"]]].todense())


def section_pearson(truth: np.ndarray, guess: np.ndarray, section_of: np.ndarray) -> float:
    """Mean Pearson over genes in each section, then over sections; 0 where nothing is defined.

    Parameters
    ----------
    truth, guess : array, shape (spots, genes)
    section_of : array, shape (spots,)
        Section name of each row.

    Returns
    -------
    float
    """
    per_section = [
        over_genes(pearson_per_gene(truth[section_of == name], guess[section_of == name]))[0]
        for name in dict.fromkeys(section_of)
    ]
    return float(np.nanmean(per_section)) if not np.isnan(per_section).all() else 0.0


def validation_scores(
    training: TrainingData, guesses: Callable[[np.ndarray], Mapping[Candidate, np.ndarray]]
) -> dict[Candidate, float]:
    """Score every candidate value of a option on each training unit in turn.

    Parameters
    ----------
    training : TrainingData
    guesses : callable
        Takes the mask (spots,) of the rows that may be learnt from; gives, for each candidate, its prediction of the
        training HVG at the other rows.

    Returns
    -------
    dict
        Candidate to validation HVG Pearson, mean over sections, then over units. Empty when there is one training unit
        only: then nothing can be held in.
    """
    units = list(dict.fromkeys(training.unit_of))
    if len(units) < 2:
        return {}
    truth = hvg_of(training)
    scores: dict[Candidate, list[float]] = {}
    for unit in units:
        inside = training.unit_of != unit
        for candidate, guess in guesses(inside).items():
            score = section_pearson(truth[~inside], guess, training.section_of[~inside])
            scores.setdefault(candidate, []).append(score)
    return {candidate: float(np.mean(values)) for candidate, values in scores.items()}
