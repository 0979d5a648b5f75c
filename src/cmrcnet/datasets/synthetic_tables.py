"""Tables other than counts, planted in synthetic tissue, so that the right answer is known.

Three quarters of the features follow what the picture shows (``traits @ weights``), the others are noise alone. Every
section has a level and a spread of its own in a continuous table, as stains do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import sparse

from cmrcnet.datasets.synthetic import synthetic_cohort, synthetic_truth
from cmrcnet.errors import BadOption
from cmrcnet.slides.section import Cohort, Section
from cmrcnet.slides.slide_stack import SlideStack
from cmrcnet.slides.table_kinds import TableKind, table_kind

CELLS = 40
"""Cells of a location, of which proportions are counted."""


@dataclass(frozen=True, eq=False)
class PlantedTable:
    """A section with a planted table.

    Parameters
    ----------
    section : Section
        With the table in place of the counts.
    truth : numpy.ndarray, shape (spots, features), float64
        What the picture tells of each feature, before noise: its level, log-odds or, of proportions, log-ratio.
    linked : numpy.ndarray, shape (features,), bool
        Which features follow the picture.
    """

    section: Section
    truth: np.ndarray
    linked: np.ndarray


def plant_table(section: Section, kind: TableKind, *, features: int = 12, noise: float = 0.7) -> PlantedTable:
    """Put a table of another kind in place of the counts of a synthetic section.

    The links are the same in every section; the noise is drawn by the name of the section's plan.

    Parameters
    ----------
    section : Section
        Of `synthetic_cohort` or `synthetic_section`.
    kind : {"continuous", "proportions", "binary"}
        Of the table.
    features : int
        Columns, at least 4.
    noise : float
        Deviation of the noise of a continuous table, where the links have 1.

    Returns
    -------
    PlantedTable

    Raises
    ------
    BadOption
        The section has no plan; too few features; the kind is counts.

    Examples
    --------
    >>> from cmrcnet import synthetic_cohort
    >>> planted = plant_table(synthetic_cohort(patients=1, spots=12).read("P1S1"), "proportions", features=4)
    >>> planted.section.table_kind, planted.section.counts.sum(axis=1).round(6).ravel().tolist()[0][:2]
    ('proportions', [1.0, 1.0])
    """
    if table_kind(kind) == "counts":
        raise BadOption(
            "kind", kind, want="continuous, proportions or binary; a synthetic section holds counts already"
        )
    if features < 4:
        raise BadOption("features", features, want="4 or more")
    traits = synthetic_truth(section).traits
    names, linked, weights = _links(traits.shape[1], features)
    level = (traits - 0.5) @ weights
    level = level / np.where(linked, np.sqrt(0.08 * (weights**2).sum(axis=0)), 1.0)
    random = np.random.default_rng(list(section.metadata["synthetic"].encode()))
    if kind == "continuous":
        values = level + noise * random.normal(size=level.shape)
        values = values * random.uniform(0.5, 2.0, features) + random.normal(0, 2, features)
    elif kind == "binary":
        values = (random.uniform(size=level.shape) < 1 / (1 + np.exp(-1.5 * level))).astype(np.float64)
    else:
        shares = np.exp(level) / np.exp(level).sum(axis=1, keepdims=True)
        values = random.multinomial(CELLS, shares) / CELLS
        level = level - level.mean(axis=1, keepdims=True)
    table = sparse.csr_matrix(values.astype(np.float32))
    planted = replace(section, counts=table, genes=names, absent_genes="unmeasured", table_kind=kind)
    return PlantedTable(planted, level, linked)


def planted_slides(
    *,
    slides: int = 60,
    groups: int = 5,
    spots: int = 16,
    features: int = 12,
    noise: float = 0.7,
    where: Literal["everywhere", "tumour"] = "everywhere",
    seed: int = 0,
) -> tuple[Cohort, np.ndarray]:
    """A cohort with one row a slide: a continuous table that follows the mean tissue of synthetic slides.

    Every slide is of a patient of its own; each group of slides is a section (`slides.slide_stack`), and is held out
    together. With ``where="tumour"`` a location counts by its share of tumour, so that the plain mean over the slide
    is not what the table follows.

    Returns
    -------
    cohort : Cohort
        Sections ``G1``, ``G2``, ..., whose spots are slides.
    truth : numpy.ndarray, shape (slides, features)
        What the tissue tells of each feature, group after group; 0 for the features that follow nothing.

    Raises
    ------
    BadOption

    Examples
    --------
    >>> cohort, truth = planted_slides(slides=4, groups=2, spots=6, features=4)
    >>> cohort.sections, cohort.read("G2").spots.barcodes, truth.shape
    (('G1', 'G2'), ('P3S1', 'P4S1'), (4, 4))
    """
    if not 1 < groups <= slides // 2:
        raise BadOption("groups", groups, want=f"2 or more, of 2 slides or more each of the {slides}")
    made = tuple(synthetic_cohort(patients=slides, spots=spots, genes=24, seed=seed))
    if where not in ("everywhere", "tumour"):
        raise BadOption("where", where, want="everywhere or tumour")
    each = [synthetic_truth(section).traits for section in made]
    counts = [of[:, 0] + 1e-3 if where == "tumour" else np.ones(len(of)) for of in each]
    traits = np.array([np.average(of, axis=0, weights=weight) for of, weight in zip(each, counts, strict=True)])
    names, linked, weights = _links(traits.shape[1], features)
    level = (traits - traits.mean(axis=0)) / traits.std(axis=0) @ weights
    level = level / np.where(linked, np.sqrt((weights**2).sum(axis=0)), 1.0)
    values = level + noise * np.random.default_rng([seed, slides]).normal(size=level.shape)
    sections = []
    for number, rows in enumerate(np.array_split(np.arange(slides), groups), 1):
        stack = SlideStack([made[row].slide for row in rows], f"G{number}")
        placed = stack.spots([made[row].name for row in rows])
        table = sparse.csr_matrix(values[rows].astype(np.float32))
        within = tuple(made[row].patient for row in rows)
        group = Section(f"G{number}", f"G{number}", stack, placed, table, names, table_kind="continuous")
        sections.append(replace(group, patients_within=within))
    return Cohort.of(sections, f"{slides} synthetic slides"), level


def _links(traits: int, features: int) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Names of the features, which follow the tissue (bool), and their weights (traits, features), always the same."""
    linked = np.arange(features) % 4 != 3
    weights = np.random.default_rng(17).normal(size=(traits, features)) * linked
    return tuple(f"feature-{number + 1:02d}" for number in range(features)), linked, weights


def planted_cohort(cohort: Cohort, kind: TableKind, *, features: int = 12, noise: float = 0.7) -> Cohort:
    """A synthetic cohort whose sections hold planted tables (see `plant_table`)."""
    tables = [plant_table(section, kind, features=features, noise=noise).section for section in cohort]
    return Cohort.of(tables, f"{cohort.name}, {kind}")
